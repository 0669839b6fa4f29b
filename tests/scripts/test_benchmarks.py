"""The benchmarks of speed work, by the smallest counts; no time is asserted."""

import json
from pathlib import Path

import polars as pl
from tests.conftest import run_script


def test_startup_measures_each_launch(tmp_path: Path) -> None:
    file = tmp_path / "startup.json"
    done = run_script("scripts/benchmark/startup.py", "--table", "iris", "--repeats", "1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert list(figures) == [
        "`python train.py --help`",
        "`python train.py model.hiden=64`, a mistake",
        "`python train.py --cfg job`",
        "`python train.py data=iris`, to the end of the first step",
        "Hydra imported, the config composed",
        "`import torch`",
        "`import pytorch_lightning`",
        "the same as `train.py` imports it",
    ]
    assert [len(times) for times in figures.values()] == [1] * len(figures)
    assert done.stdout.count("\n| ") == len(figures) + 1
