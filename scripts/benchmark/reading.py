"""Wall and CPU seconds of each pass of the preparation, without the cache, and MB of CSV per second, compared with the
time in which Polars reads the same file as text.

python scripts/benchmark/reading.py --data DIR [--table adult] [--megabytes 1000] [--repeats 5] [--json FILE]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

sys.path.insert(0, str(Path(__file__).parents[2]))

from datamodules.preparation import pipeline
from scripts.benchmark.page import ROOT, markdown, publish
from trainer.config.instantiate import instantiate

COMMAND = "python scripts/benchmark/reading.py --data DIR"
PASSES = {
    "infer": "kinds of the columns",
    "clean": "parsing and cleaning",
    "gather": "statistics",
    "encode": "encoding",
}
LABELS = {
    "plain": "`pl.read_csv`, all columns String",
    "parse": "only parsing, chunk by chunk",
    **PASSES,
    "whole": "entire setup: from files to encoded rows",
}
FUNCTIONS: dict[str, tuple[Any, str]] = {
    "infer": (pipeline.Preparation, "_infer_schema"),
    "clean": (pipeline.Preparation, "_clean"),
    "gather": (pipeline, "gather_statistics"),
    "encode": (pipeline, "encode_chunks"),
}
"""Where each pass is defined."""
Times = dict[str, tuple[float, float]]


def timed(function: Callable[..., Any], name: str, times: Times) -> Callable[..., Any]:
    @wraps(function)
    def call(*arguments: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = function(*arguments)
        times[name] = time.perf_counter() - wall, time.process_time() - cpu
        return result

    return call


def measure(settings: DictConfig, path: Path) -> Times:
    """Wall and CPU seconds of plain Polars, of parsing, of `TableDataModule.setup` and of its passes."""
    times: Times = {}
    timed(lambda: pl.read_csv(path, infer_schema=False), "plain", times)()
    settings.path, settings.cache = str(path), None
    datamodule = instantiate(settings)
    timed(lambda: sum(len(raw.frame) for _, raw in datamodule.read(path, 0, 1)), "parse", times)()
    untimed = {step: getattr(*place) for step, place in FUNCTIONS.items()}
    for step, function in untimed.items():
        setattr(*FUNCTIONS[step], timed(function, step, times))
    timed(datamodule.setup, "whole", times)()
    for step, function in untimed.items():
        setattr(*FUNCTIONS[step], function)
    return times


def repeat(source: Path, megabytes: float, path: Path) -> None:
    """Writes a CSV file of about this size by repeating the rows of another one."""
    table = pl.read_csv(source, infer_schema=False)
    rows = table.write_csv(include_header=False)
    with path.open("w") as file:
        file.write(table.head(0).write_csv())
        for _ in range(max(1, round(megabytes * 1e6 / len(rows)))):
            file.write(rows)


def format_rows(runs: list[Times], megabytes: float) -> list[list[str]]:
    rows = []
    for name, words in LABELS.items():
        wall, cpu = (median(run[name][kind] for run in runs) for kind in (0, 1))
        ratios = [median(run[name][kind] / run["plain"][kind] for run in runs) for kind in (0, 1)]
        figures = [f"{megabytes:,.0f}", f"{wall:.2f}", f"{cpu:.2f}", f"{megabytes / wall:.0f}"]
        rows.append([words, *figures, *(f"{ratio:.1f}" for ratio in ratios)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data")
    parser.add_argument("--table", default="adult", help="a table in one file, with a target")
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument("--repeats", type=int, default=5, help="repetitions per file")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [f"data={given.table}", f"paths.data={Path(given.data).resolve()}"])
    settings, source = OmegaConf.create(OmegaConf.to_container(config.data, resolve=True)), Path(config.data.path)
    assert isinstance(settings, DictConfig)
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.csv", Path(folder) / "large.csv"
        repeat(source, 0, small)
        repeat(source, given.megabytes, large)
        measure(settings, small)  # performs the deferred imports
        runs = {path.stem: [measure(settings, path) for _ in range(given.repeats)] for path in (small, large)}
        megabytes = {path.stem: path.stat().st_size / 1e6 for path in (small, large)}
    rows = [row for name, times in runs.items() for row in format_rows(times, megabytes[name])]
    headings = ["step", "CSV, MB", "wall, s", "CPU, s", "MB/s", "relative to Polars", "in CPU time"]
    body = (
        f"{markdown(headings, rows)}\n\nMedians of {given.repeats}. Polars has {pl.thread_pool_size()} threads;"
        " the large file repeats the rows of the small one."
    )
    publish("Reading a table", COMMAND, body, {**runs, "megabytes": megabytes}, given.json)


if __name__ == "__main__":
    main()
