"""The benchmarks of speed work, by the smallest counts; no time is asserted."""

import json
from pathlib import Path

from tests.conftest import run_script


def test_startup_measures_each_launch(tmp_path: Path) -> None:
    file = tmp_path / "startup.json"
    done = run_script("scripts/benchmark/startup.py", "--table", "iris", "--repeats", "1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert list(figures) == [
        "`python train.py --help`",
        "`model.hiden=64`, a mistake",
        "`python train.py --cfg job`",
        "`python train.py data=iris`, to the end of the first step",
        "Hydra imported, the config composed",
        "`import torch`",
        "`import pytorch_lightning`",
        "the same as `train.py` imports it",
    ]
    assert [len(times) for times in figures.values()] == [1] * len(figures)
    assert done.stdout.count("\n| ") == len(figures) + 1


def test_reading_measures_each_walk(tmp_path: Path, data_dir: Path) -> None:
    file = tmp_path / "reading.json"
    arguments = ["--data", str(data_dir), "--table", "titanic", "--megabytes", "0.1", "--repeats", "1"]
    done = run_script("scripts/benchmark/reading.py", *arguments, "--json", str(file))
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert list(figures["large"]) == ["look", "clean", "gather", "encode", "whole"]
    assert done.stdout.count("\n| ") == 11


def test_scoring_measures_each_format(tmp_path: Path, default_run: tuple[Path, str]) -> None:
    file = tmp_path / "scoring.json"
    formats = ["checked", "scripted", "frozen", "optimised", "features", "eager"]
    arguments = ["--run", str(default_run[0]), "--rows", "8", "--calls", "2", "--formats", *formats]
    done = run_script("scripts/benchmark/scoring.py", *arguments, "--json", str(file))
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert [(name, len(figures[name]["one"]), len(figures[name]["many"])) for name in formats] == [
        (name, 2, 1) for name in formats
    ]
    assert done.stdout.count("\n| ") == len(formats) + 1
