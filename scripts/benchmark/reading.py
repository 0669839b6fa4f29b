"""Reading a table: wall and CPU seconds of each walk of the preparation, without the cache, and MB of CSV a second.

python scripts/benchmark/reading.py --data DIR [--table adult] [--megabytes 1000] [--repeats 5] [--json FILE]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

sys.path.insert(0, str(Path(__file__).parents[2]))

from datamodules.prepare import Preparation
from scripts.benchmark.page import ROOT, markdown, publish
from trainer.config import instantiate

COMMAND = "python scripts/benchmark/reading.py --data DIR"
WALKS = {
    "look": "the kinds of the columns",
    "clean": "reading and cleaning",
    "gather": "statistics",
    "encode": "encoding",
}
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
    """Wall and CPU seconds of `TableDataModule.setup` and of its walks."""
    times: Times = {}
    plain = {walk: getattr(Preparation, f"_{walk}") for walk in WALKS}
    for walk, function in plain.items():
        setattr(Preparation, f"_{walk}", timed(function, walk, times))
    settings.path, settings.cache = str(path), None
    datamodule = instantiate(settings)
    timed(datamodule.setup, "whole", times)()
    for walk, function in plain.items():
        setattr(Preparation, f"_{walk}", function)
    return times


def repeat(source: Path, megabytes: float, path: Path) -> None:
    """A CSV file of about this size: the rows of another, again and again."""
    table = pl.read_csv(source, infer_schema=False)
    rows = table.write_csv(include_header=False)
    with path.open("w") as file:
        file.write(table.head(0).write_csv())
        for _ in range(max(1, round(megabytes * 1e6 / len(rows)))):
            file.write(rows)


def shown(runs: list[Times], what: Mapping[str, str], megabytes: float) -> list[list[str]]:
    rows = []
    for name, words in what.items():
        wall, cpu = (median(run[name][kind] for run in runs) for kind in (0, 1))
        rows.append([words, f"{megabytes:,.0f}", f"{wall:.2f}", f"{cpu:.2f}", f"{megabytes / wall:.0f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data")
    parser.add_argument("--table", default="adult", help="of one file, with a target")
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument("--repeats", type=int, default=5, help="of the file as it is; the large one is read once")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [f"data={given.table}", f"paths.data={Path(given.data).resolve()}"])
    settings, source = OmegaConf.create(OmegaConf.to_container(config.data, resolve=True)), Path(config.data.path)
    assert isinstance(settings, DictConfig)
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.csv", Path(folder) / "large.csv"
        repeat(source, 0, small)
        runs = [measure(settings, small) for _ in range(given.repeats + 1)][1:]
        repeat(source, given.megabytes, large)
        once = measure(settings, large)
        sizes = [path.stat().st_size / 1e6 for path in (small, large)]
    what = {"whole": "all of setup", **WALKS}
    rows = shown(runs, what, sizes[0]) + shown([once], what, sizes[1])
    body = (
        f"{markdown(['walk', 'CSV, MB', 'wall, s', 'CPU, s', 'MB/s'], rows)}\n\nMedian of {given.repeats} for the file"
        " as it is, one run of the large one."
    )
    publish("Reading a table", COMMAND, body, {"small": runs, "large": once, "megabytes": sizes}, given.json)


if __name__ == "__main__":
    main()
