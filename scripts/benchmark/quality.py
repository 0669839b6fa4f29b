"""The recipes on seven tables, compared with other systems on the same rows and splits.

python scripts/benchmark/quality.py --data DIR [--baselines FILE.csv] [--recipes experiment=tabm model=mlp]
    [--tables adult] [--seeds 0 1 2] [--runs FOLDER] [--jobs 2] [--json FILE]

FILE.csv has the columns table, system, seeds, metric, mean, std, median_seconds. Finished runs in FOLDER
are not repeated.
"""

import argparse
import csv
import json
import statistics
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.benchmark.defaults import measure
from scripts.benchmark.page import ROOT, markdown, publish

DROPPED: dict[str, list[str]] = {
    "adult": [],
    "telco_churn": ["customerID"],
    "titanic": ["PassengerId", "Name", "Ticket", "Cabin"],
    "electricity": [],
    "california_housing": [],
    "diamonds": [],
    "bike_sharing": ["instant", "dteday"],
}
"""Columns that no system uses, in addition to those dropped by the config of the table."""
IN_ORDER = ("bike_sharing",)
"""Tables whose last rows are the test rows; the others are split by a seeded permutation."""
METRICS = {"rmse": False, "accuracy": True, "auroc": True}
"""Metrics, and whether larger values are better."""
BOUNDS = {"rmse": 0.01, "accuracy": 0.004, "auroc": 0.005}
"""Differences that count as not worse than the best boosted tree: relative for RMSE, absolute for the others."""
TREES = ("xgboost", "lightgbm", "catboost")
RECIPES = ("experiment=tabm", "experiment=realmlp", "model=mlp", "model=linear")


def write_table(name: str, data: Path, folder: Path) -> Path:
    """Writes the table with a column `split`: 64, 16, 20 % train, val and test rows by position. Returns its path."""
    config = yaml.safe_load((ROOT / "conf" / "data" / f"{name}.yaml").read_text())
    source = config["path"].replace("${paths.data}", str(data))
    frame = pl.read_csv(source, infer_schema=False).drop(DROPPED[name])
    rows = len(frame)
    order = np.arange(rows) if name in IN_ORDER else np.random.default_rng(0).permutation(rows)
    part = np.full(rows, "test", dtype=object)
    part[order[: int(0.80 * rows)]] = "val"
    part[order[: int(0.64 * rows)]] = "train"
    path = folder / f"{name}.csv"
    frame.with_columns(split=pl.Series(part.tolist())).write_csv(path)
    return path


def run(recipe: str, table: Path, seed: int, data: Path, folder: Path) -> dict[str, Any]:
    """Runs a recipe on a table. Returns its metrics, seconds, megabytes, and milliseconds for one row."""
    done = folder / f"{recipe.split('=')[1]}-{table.stem}-{seed}.json"
    if not done.exists():
        settings = [recipe, f"data.path={table}", "data.split.by=column", "data.split.column=split"]
        measured = measure(table.stem, seed, str(data), settings, folder / done.stem)
        measured["milliseconds"] = milliseconds(folder / done.stem / "model.pt")
        done.write_text(json.dumps(measured))
        print(done.stem, f"{measured['seconds']:.0f} s", file=sys.stderr, flush=True)
    found: dict[str, Any] = json.loads(done.read_text())
    return found


def milliseconds(artifact: Path) -> float:
    """Median time of the artifact for one raw row in this process."""
    import torch

    from common.torchscript import quiet

    extra = {"selftest.json": ""}
    with quiet():
        pipeline = torch.jit.load(str(artifact), _extra_files=extra)
    rows = json.loads(extra["selftest.json"])
    numbers = {name: torch.tensor(values[:1], dtype=torch.float64) for name, values in rows["numbers"].items()}
    strings = {name: cells[:1] for name, cells in rows["strings"].items()}
    torch.set_num_threads(1)
    times = []
    for _ in range(300):
        started = time.perf_counter()
        pipeline(numbers, strings, {})
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def against(metric: str, value: float, best: float) -> str:
    """How a value stands to the best boosted tree's."""
    lead = value - best if METRICS[metric] else (best - value) / best
    return "better" if lead > 0 else "within" if lead >= -BOUNDS[metric] else "worse"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--baselines", type=Path)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--tables", nargs="+", choices=list(DROPPED), default=list(DROPPED))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("outputs/quality"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    folder = arguments.runs.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: write_table(name, arguments.data.resolve(), folder) for name in arguments.tables}
    jobs = [(recipe, name, seed) for recipe in arguments.recipes for name in tables for seed in arguments.seeds]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        measured = pool.map(lambda job: run(job[0], tables[job[1]], job[2], arguments.data.resolve(), folder), jobs)
        runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for (recipe, name, _), found in zip(jobs, measured, strict=True):
            runs[name, recipe].append(found)
    others: dict[tuple[str, str], dict[str, dict[str, str]]] = defaultdict(dict)
    if arguments.baselines is not None:
        with arguments.baselines.open() as file:
            for row in csv.DictReader(file):
                others[row["table"], row["system"]][row["metric"]] = row
    body = page(runs, others, arguments.tables, arguments.recipes)
    body += f"\n\nSeeds {arguments.seeds}, mean ± standard deviation."
    figures = {f"{name} {recipe}": found for (name, recipe), found in runs.items()}
    publish("Quality on seven tables", "python scripts/benchmark/quality.py --data DIR", body, figures, arguments.json)


def page(
    runs: dict[tuple[str, str], list[dict[str, Any]]],
    others: dict[tuple[str, str], dict[str, dict[str, str]]],
    tables: list[str],
    recipes: list[str],
) -> str:
    """Table of all systems, and the number of tables on which each recipe beats the best boosted tree."""
    lines: list[list[str]] = []
    verdicts: dict[str, list[list[str]]] = defaultdict(list)
    for name in tables:
        names = [metric for metric in METRICS if f"test/{metric}" in runs[name, recipes[0]][0]]
        trees = [row for (table, system), row in others.items() if table == name and system in TREES]
        for recipe in recipes:
            found = runs[name, recipe]
            cells, stands = [], []
            for metric in names:
                values = [one[f"test/{metric}"] for one in found]
                cell = f"{metric} {spread(values)}"
                if trees:
                    best = (max if METRICS[metric] else min)(float(row[metric]["mean"]) for row in trees)
                    stands.append(against(metric, statistics.mean(values), best))
                    cell += f" ({stands[-1]})"
                cells.append(cell)
            if stands:
                verdicts[recipe].append(stands)
            seconds, ms = (statistics.median(one[key] for one in found) for key in ("seconds", "milliseconds"))
            size = max(one["megabytes"] for one in found)
            lines.append([name, f"**{recipe}**", ", ".join(cells), f"{seconds:.0f}", f"{size:.2f}", f"{ms:.2f}"])
        for (table, system), row in others.items():
            if table == name:
                shown = ", ".join(f"{m} {plus_minus(float(row[m]['mean']), float(row[m]['std']))}" for m in names)
                lines.append([name, system, shown, row[names[0]]["median_seconds"], "", ""])
    text = markdown(["table", "system", "test metrics", "seconds", "model.pt, MB", "one row, ms"], lines)
    for recipe, tables_of in verdicts.items():
        better = sum("better" in stands and "worse" not in stands for stands in tables_of)
        held = sum("worse" not in stands for stands in tables_of)
        text += (
            f"\n\n- {recipe}: compared with the best boosted tree of each table, better in one metric and worse in none"
        )
        text += f" on {better} of {len(tables_of)}, within the bounds in all metrics on {held}."
    return text


def spread(values: list[float]) -> str:
    return plus_minus(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def plus_minus(mean: float, deviation: float) -> str:
    return f"{mean:.5g} ± {float(f'{deviation:.2g}'):g}"  # 210, not 2.1e+02


if __name__ == "__main__":
    main()
