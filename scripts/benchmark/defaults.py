"""Default settings on real tables: metrics, seconds and artifact size over seeds, each run from the command line.

python scripts/benchmark/defaults.py --data DIR [--tables adult telco_churn] [--seeds 0 1 2] [--json FILE]
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.benchmark.page import ROOT, markdown, publish

METRICS = {
    "breast_cancer": ("test/accuracy",),
    "adult": ("test/accuracy", "test/auroc"),
    "telco_churn": ("test/accuracy", "test/auroc"),
    "titanic": ("test/accuracy", "test/auroc"),
    "electricity": ("test/accuracy", "test/auroc"),
    "california_housing": ("test/rmse",),
    "diamonds": ("test/rmse",),
    "bike_sharing": ("test/rmse",),
}
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % quantiles of Student's t by number of runs: half the width of a 95 % interval, in standard errors."""


def measure(table: str, seed: int, data: str, settings: list[str], run: Path | None = None) -> dict[str, Any]:
    """Runs once, in a temporary folder or in `run`. Returns the metrics, wall seconds and artifact size."""
    with tempfile.TemporaryDirectory() as folder:
        run = run or Path(folder) / "run"
        command = [sys.executable, "train.py", f"data={table}", f"seed={seed}", f"paths.data={data}", *settings]
        command += [f"hydra.run.dir={run}", f"paths.cache={folder}/cache"]  # the preparation is included in the time
        started = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
        metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
        exported = re.search(r"exported in ([\d.]+) s", done.stdout + done.stderr)
        if exported is None:  # Word2Vec has no artifact
            return metrics | {"seconds": seconds}
        return metrics | {
            "seconds": seconds,
            "export_seconds": float(exported[1]),
            "megabytes": (run / "model.pt").stat().st_size / 1e6,
        }


def interval(values: list[float]) -> str:
    mean = statistics.mean(values)
    if len(values) not in STUDENT:
        return f"{mean:.5g}"
    half = STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.5g} ± {float(f'{half:.2g}'):g}"  # 210, not 2.1e+02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data")
    parser.add_argument("--tables", nargs="+", choices=list(METRICS), default=list(METRICS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--settings", nargs="*", default=[], help="overrides for every run")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    rows, figures = [], {}
    for table in arguments.tables:
        data = str(Path(arguments.data).resolve())
        runs = [measure(table, seed, data, arguments.settings) for seed in arguments.seeds]
        figures[table] = runs
        shown = ", ".join(f"{name.split('/')[1]} {interval([run[name] for run in runs])}" for name in METRICS[table])
        seconds = sorted(run["seconds"] for run in runs)
        rows.append(
            [
                table,
                shown,
                f"{statistics.median(run['fit/epochs'] for run in runs):.0f}",
                f"{statistics.median(seconds):.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f})",
                f"{max(run['export_seconds'] for run in runs):.1f}",
                f"{max(run['megabytes'] for run in runs):.2f}",
            ]
        )
        print(rows[-1], file=sys.stderr)
    headings = [
        "table",
        "test metrics, mean ± 95 % CI",
        "epochs",
        "seconds, launch to end",
        "export, s",
        "model.pt, MB",
    ]
    body = f"{markdown(headings, rows)}\n\nSeeds {arguments.seeds}, split with seed 0; median seconds (range)."
    publish("Default settings", "python scripts/benchmark/defaults.py --data DIR", body, figures, arguments.json)


if __name__ == "__main__":
    main()
