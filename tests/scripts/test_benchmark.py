"""scripts/benchmark/: each script runs on little data and prints a table and JSON. Figures are not checked."""

import json
from pathlib import Path

import pytest
import torch

from scripts.benchmark import page
from tests.conftest import ROOT, run_script

ONE_EPOCH = ["--seeds", "0", "--settings", "trainer.max_epochs=1"]
ALONE = {
    "defaults": ["--tables", "breast_cancer", *ONE_EPOCH],
    "kinds": ["--cases", "digits", *ONE_EPOCH],
    "kills": ["--kills", "1"],
    "scaling": ["--rows", "500", "1000", "--columns", "3", "--processes", "2", "--at", "500", "--epochs", "2"],
    "size": ["--rows", "2000"],
    "training": ["--variants", "ordinary", "fast", "lightning", "--rounds", "1", "--rows", "2000"],
}
ON_TABLES = {
    "folds": [
        *("--table", "titanic", "--runs", "2", "--processes", "2", "--rounds", "1", "--steps", "2", "--settings"),
        *("trainer.max_epochs=1", "baselines=false", "logger=none"),
    ],
    "linear": ["--tables", "titanic", "--seeds", "0"],
    "search": ["--trials", "2", "--kill", "1", "--epochs", "1"],
    "quality": ["--tables", "titanic", "--seeds", "0", "--recipes", "model=linear"],
}


SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "scripts" / "benchmark").glob("*.py")
    if "__main__" in path.read_text() and path.stem != "others"
)
"""Scripts with options; others.py is run by training.py in other environments."""


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_benchmark_has_a_help_text(name: str) -> None:
    done = run_script(f"scripts/benchmark/{name}.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {name}.py")


def check(name: str, arguments: list[str], folder: Path) -> None:
    figures = folder / "figures.json"
    done = run_script(f"scripts/benchmark/{name}.py", *arguments, "--json", str(figures))
    assert done.returncode == 0, done.stderr
    assert "| --- |" in done.stdout
    assert json.loads(figures.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ALONE))
def test_a_benchmark_of_synthetic_rows(name: str, tmp_path: Path) -> None:
    check(name, ALONE[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ON_TABLES))
def test_a_benchmark_on_real_tables(name: str, data_dir: Path, tmp_path: Path) -> None:
    folder = ["--runs", str(tmp_path / "runs")] if name == "quality" else []
    check(name, [*ON_TABLES[name], *folder, "--data", str(data_dir)], tmp_path)


def test_a_benchmark_of_predict(adult_run: Path, data_dir: Path, tmp_path: Path) -> None:
    rows = ["--rows-of", str(data_dir / "adult" / "adult.csv.gz"), "--rows", "1000", "--repeats", "1"]
    check("predict", ["--artifact", str(adult_run / "model.pt"), *rows], tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_benchmark_of_a_gpu(tmp_path: Path) -> None:
    check("gpu", ["--cases", "T:64", "I:64", "--rounds", "1", "--rows", "2000"], tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_gpu_the_benchmark_prints_one_line() -> None:
    done = run_script("scripts/benchmark/gpu.py")
    assert done.returncode == 0
    assert done.stdout == f"torch {torch.__version__} finds no CUDA device: nothing to measure\n"


def test_a_section_replaces_its_predecessor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "benchmarks.md"
    monkeypatch.setattr(page, "PAGE", written)
    for section, body in (("First", "old"), ("Second", "kept"), ("First", "new")):
        page.publish(section, "python benchmark.py", body, {}, None)
    text = written.read_text()
    assert text.startswith("# Benchmarks\n\n## Second\n\n`python benchmark.py`\n")
    assert text.endswith("\n\nnew\n")
    assert "kept" in text
    assert "old" not in text


@pytest.mark.slow
def test_startup_measures_each_launch(tmp_path: Path) -> None:
    file = tmp_path / "startup.json"
    done = run_script("scripts/benchmark/startup.py", "--table", "iris", "--repeats", "1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert list(figures) == [
        "`python train.py --help`",
        "`model.hiden=64`, a misspelled setting",
        "`python train.py --cfg job`",
        "`python train.py data=iris`, to the end of the first step",
        "import Hydra and compose the config",
        "`import torch`",
        "`import pytorch_lightning`",
        "the same, as imported by `train.py`",
    ]
    assert [len(times) for times in figures.values()] == [1] * len(figures)
    assert done.stdout.count("\n| ") == len(figures) + 1


def test_reading_measures_each_pass(tmp_path: Path, data_dir: Path) -> None:
    file = tmp_path / "reading.json"
    arguments = ["--data", str(data_dir), "--table", "titanic", "--megabytes", "0.1", "--repeats", "1"]
    done = run_script("scripts/benchmark/reading.py", *arguments, "--json", str(file))
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert [list(run) for run in figures["large"]] == [
        ["plain", "parse", "infer", "clean", "gather", "encode", "whole"]
    ]
    assert done.stdout.count("\n| ") == 15


@pytest.mark.slow
def test_scoring_measures_each_format(tmp_path: Path, default_run: tuple[Path, str]) -> None:
    file = tmp_path / "scoring.json"
    formats = ["checked", "scripted", "frozen", "optimized", "features", "eager", "onnx"]
    arguments = ["--run", str(default_run[0]), "--rows", "8", "--calls", "2", "--formats", *formats]
    done = run_script("scripts/benchmark/scoring.py", *arguments, "--json", str(file))
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert [(name, len(figures[name]["one"]), len(figures[name]["many"])) for name in formats] == [
        (name, 2, 1) for name in formats
    ]
    assert done.stdout.count("\n| ") == len(formats) + 1
