"""Measures how the time and memory of a run of model=mlp grow with rows, columns and processes.

python scripts/benchmark/scaling.py [--rows 10000 100000 1000000] [--columns 10 100 1000] [--processes 1 2]
    [--at 100000] [--epochs 3] [--threads 1] [--json FILE]

Runs each number of rows with the first number of columns, each number of columns with `--at` rows, and each number of
processes (trainer=ddp) with the largest number of rows. The batches are the same: processes share each batch.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.benchmark.page import markdown, publish
from scripts.benchmark.predict import measure

TARGET = 1.05
"""Maximum exponent of time over rows."""
CELLS_A_FILE = 10**7


class EpochSeconds(Callback):
    """Callback that writes the seconds of each epoch to the run folder."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.times.append(time.perf_counter())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = np.diff([*self.times, time.perf_counter()])
        if trainer.is_global_zero:
            Path(trainer.default_root_dir, "epochs.json").write_text(json.dumps(seconds.tolist()))


def write(rows: int, columns: int, folder: Path) -> None:
    """Writes a table of numbers to Parquet files; `y` is yes or no, by a weighted sum of the numbers plus noise."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal(columns, dtype=np.float32) / columns**0.5
    most = CELLS_A_FILE // columns
    folder.mkdir()
    for first in range(0, rows, most):
        values = generator.standard_normal((min(most, rows - first), columns), dtype=np.float32)
        yes = values @ weights + generator.standard_normal(len(values)) > 0
        frame = pl.DataFrame(values, [f"x{index}" for index in range(columns)])
        frame.with_columns(y=np.where(yes, "yes", "no")).write_parquet(folder / f"{first:010}.parquet")


def run(rows: int, columns: int, processes: int, epochs: int, threads: int) -> dict[str, Any]:
    """Runs once on a new table. Reports the fastest epoch except the first, and the memory of rank 0."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(rows, columns, folder / "rows")
        command = [sys.executable, "train.py", "model=mlp", "data=table", f"data.path={folder / 'rows'}"]
        command += ["data.target=y", "data.batch_size=1024", f"trainer.max_epochs={epochs}"]
        command += ["trainer=cpu"] if processes == 1 else ["trainer=ddp", "trainer.accelerator=cpu"]
        command += [f"trainer.devices={processes}"]
        command += [f"trainer.threads={threads}", "baselines=false", "allowed_targets=[scripts.]"]
        command += ["+callbacks.seconds._target_=scripts.benchmark.scaling.EpochSeconds"]
        seconds, peak = measure([*command, f"hydra.run.dir={folder / 'run'}", f"paths.cache={folder / 'cache'}"])
        epoch = min(json.loads((folder / "run" / "epochs.json").read_text())[1:])
    table = {"rows": rows, "columns": columns, "processes": processes}
    return {**table, "seconds": seconds, "epoch_seconds": epoch, "peak_gigabytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[10**4, 10**5, 10**6], help="at least two numbers")
    parser.add_argument("--columns", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--at", type=int, default=10**5)
    parser.add_argument("--epochs", type=int, default=3, help="at least two")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    tables = [(rows, given.columns[0], 1) for rows in given.rows]
    tables += [(given.at, columns, 1) for columns in given.columns]
    tables += [(max(given.rows), given.columns[0], processes) for processes in given.processes]
    runs = [run(*table, given.epochs, given.threads) for table in dict.fromkeys(tables)]

    rows = [
        [
            f"{each['rows']:,}",
            f"{each['columns']:,}",
            f"{each['processes']}",
            f"{each['seconds']:.1f}",
            f"{each['epoch_seconds']:.3g}",
            f"{1e6 * each['epoch_seconds'] / each['rows']:.2f}",
            f"{each['peak_gigabytes']:.2f}",
        ]
        for each in runs
    ]
    sizes = np.log(given.rows)
    times = np.log([each["epoch_seconds"] for each in runs[: len(sizes)]])
    exponent = float(np.polyfit(sizes, times, 1)[0])
    between = [float(each) for each in np.diff(times) / np.diff(sizes)]
    headings = ["rows", "columns", "processes", "whole run, s", "epoch, s", "epoch, us per row", "peak GB"]
    body = (
        f"{markdown(headings, rows)}\n\nThe seconds of an epoch grow with rows to the power of {exponent:.2f} (target:"
        f" at most {TARGET}); between consecutive numbers of rows {', '.join(f'{each:.2f}' for each in between)}. Runs"
        f" with {given.epochs} epochs and batches of 1,024, threads: {given.threads}; 64 % of the rows are training"
        " rows, 16 % validation rows. One process uses the fast loop, several use Lightning's own."
    )
    figures = {"runs": runs, "exponent": exponent, "between": between}
    command = shlex.join(["python", "scripts/benchmark/scaling.py", *sys.argv[1:]])
    publish("Growth with rows, columns and processes", command, body, figures, given.json)


if __name__ == "__main__":
    main()
