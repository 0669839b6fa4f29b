"""Measures scripts/predict.py on a large file: seconds and peak memory of the process.

python scripts/benchmark/predict.py --artifact model.pt --rows-of adult.csv.gz [--rows 1000000] [--json FILE]
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.benchmark.page import ROOT, markdown, publish

COMMAND = "python scripts/benchmark/predict.py --artifact model.pt --rows-of adult.csv.gz"


def measure(command: list[str]) -> tuple[float, float]:
    """Returns the seconds of a process from launch to end, and its peak resident memory in GB (Linux).

    Polls the high-water mark of the kernel, because `getrusage` of a child includes the memory of its parent.
    """
    peak = 0.0
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if mark := re.search(r"VmHWM:\s+(\d+) kB", status):
                peak = max(peak, int(mark[1]) * 1024 / 1e9)
            time.sleep(0.02)
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--rows-of", required=True, help="a table, whose rows are sampled with replacement")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rows.csv"
        source = pl.read_csv(arguments.rows_of, infer_schema=False)
        source.sample(arguments.rows, with_replacement=True, seed=0).write_csv(table)
        predictions = f"{folder}/predictions.parquet"
        command = [sys.executable, "scripts/predict.py", "--artifact", str(arguments.artifact.resolve())]
        command += ["--input", str(table), "--output", predictions]
        runs = [measure(command) for _ in range(arguments.repeats)]
        predicted = pl.scan_parquet(predictions).select(pl.len()).collect().item()
        megabytes = table.stat().st_size / 1e6
    seconds = sorted(run[0] for run in runs)
    middle, peak = statistics.median(seconds), max(run[1] for run in runs)
    headings = ["rows", "CSV, MB", "predicted", "seconds", "rows/s", "peak GB"]
    spread = f"{middle:.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f})"
    row = [f"{arguments.rows:,}", f"{megabytes:.0f}", f"{predicted:,}", spread]
    row += [f"{arguments.rows / middle:,.0f}", f"{peak:.2f}"]
    figures = {"rows": arguments.rows, "predicted": predicted, "seconds": seconds, "peak_gigabytes": peak}
    body = f"{markdown(headings, [row])}\n\nMedian (range) of {arguments.repeats} runs, including start-up."
    publish("Scoring a file", COMMAND, body, figures, arguments.json)


if __name__ == "__main__":
    main()
