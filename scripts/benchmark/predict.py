"""Scoring a large file with scripts/predict.py: seconds and peak memory of the whole process.

python scripts/benchmark/predict.py --artifact model.pt --rows-of adult.csv.gz [--rows 1000000] [--json FILE]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.benchmark.page import ROOT, markdown, publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", required=True)
    parser.add_argument("--rows-of", required=True, help="a table whose rows are drawn, with replacement")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rows.csv"
        source = pl.read_csv(arguments.rows_of, infer_schema=False)
        source.sample(arguments.rows, with_replacement=True, seed=0).write_csv(table)
        seconds = []
        for _ in range(arguments.repeats):
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, "scripts/predict.py", "--artifact", arguments.artifact]
                + ["--input", str(table), "--output", f"{folder}/answers.parquet"],
                cwd=ROOT,
                check=True,
            )
            seconds.append(time.perf_counter() - started)
        answered = pl.scan_parquet(f"{folder}/answers.parquet").select(pl.len()).collect().item()
        megabytes = table.stat().st_size / 1e6
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    seconds.sort()
    middle = seconds[len(seconds) // 2]
    headings = ["rows", "CSV, MB", "answered", "seconds", "rows/s", "peak GB"]
    spread = f"{middle:.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f})"
    row = [f"{arguments.rows:,}", f"{megabytes:.0f}", f"{answered:,}", spread]
    row += [f"{arguments.rows / middle:,.0f}", f"{peak:.2f}"]
    figures = {"rows": arguments.rows, "answered": answered, "seconds": seconds, "peak_gigabytes": peak}
    body = f"{markdown(headings, [row])}\n\nMedian of {arguments.repeats} runs (range), start-up included."
    publish("Scoring a file", "python scripts/benchmark/predict.py", body, figures, arguments.json)


if __name__ == "__main__":
    main()
