"""scripts/compare.py: tables of runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import ROOT, run_script

QUICK = ("data=iris", "model=linear", "trainer.max_epochs=1", "logger=none", "export=none", "baselines=false")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of three jobs."""
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    swept = ("optimizer=adamw,sgd,adam", "optimizer.lr=0.01", f"hydra.sweep.dir={folder}")
    done = run_script("train.py", "-m", *swept, *QUICK)
    assert done.returncode == 0, done.stderr
    shutil.copytree(folder / "2_iris_linear", folder.parent / "other")
    config = folder.parent / "other" / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.01", "lr: 0.02"))
    return folder


def compare(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_script("scripts/compare.py", *map(str, arguments))


def rows(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines()[1:]]


def test_runs_are_sorted_by_monitor_with_differing_settings(sweep: Path) -> None:
    folders = sorted(sweep.glob("*_iris_linear"))
    losses = {}
    for number, folder in enumerate(folders):
        metrics = json.loads((folder / "metrics.json").read_text())
        losses[metrics["val/loss"]] = [str(number), ("adamw", "sgd", "adam")[number], f"{metrics['val/loss']:,.5g}"]
    done = compare(*reversed(folders))
    assert done.returncode == 0, done.stderr
    above, heading, *found = rows(done.stdout)
    # Momentum differs too, but only as a result of the optimizer; the learning rate is the same.
    assert above == ["val/", "test/", "test/", "test/"]
    assert heading == ["job", "optimizer", "loss", "accuracy", "auroc", "log_loss", "seconds", "state"]
    assert [row[:3] for row in found] == [losses[loss] for loss in sorted(losses)]
    assert {row[-1] for row in found} == {"done"}


def test_folders_of_runs_and_runs_of_several_folders(sweep: Path) -> None:
    done = compare(sweep, sweep.parent / "other", sweep / "2_iris_linear")
    above, heading, *found = rows(done.stdout)
    assert above[:2] == ["optimizer.", "val/"]
    assert heading[:4] == ["run", "optimizer", "lr", "loss"]
    assert sorted(row[:3] for row in found) == [
        ["0_iris_linear", "adamw", "0.01"],
        ["1_iris_linear", "sgd", "0.01"],
        ["2_iris_linear", "adam", "0.01"],
        ["other", "adam", "0.02"],
    ]
    one = compare(sweep.parent / "other")
    assert [line[:2] for line in rows(one.stdout)[:2]] == [["val/", "test/"], ["job", "loss"]]


def test_the_file_has_all_metrics_and_the_errors_of_failed_runs(sweep: Path, tmp_path: Path) -> None:
    failed = tmp_path / "failed"
    shutil.copytree(sweep / "0_iris_linear", failed)
    (failed / "metrics.json").unlink()
    status = json.loads((failed / "status.json").read_text())
    status |= {"state": "failed", "value": None, "error": "no such file: rows.csv", "exit_code": 2}
    (failed / "status.json").write_text(json.dumps(status))
    done = compare(failed, sweep / "1_iris_linear", "--csv", tmp_path / "runs.parquet")
    assert done.stdout.splitlines()[-1] == f"job 0 failed: no such file: rows.csv ({failed})"
    frame = pl.read_parquet(tmp_path / "runs.parquet")
    metrics = json.loads((sweep / "1_iris_linear" / "metrics.json").read_text())
    assert {name: frame[0, name] for name in metrics} == metrics
    assert frame["state"].to_list() == ["done", "failed"]
    assert frame[1, "test/accuracy"] is None
    assert frame["error"].to_list() == [None, "no such file: rows.csv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{place}/nope"], "there is no folder {place}/nope: give run folders, or folders of runs such as a sweep's."),
        (["{place}"], "{place} contains no run: neither it nor a folder below it has a status.json."),
        (
            ["{run}", "--csv", "{place}/runs.txt"],
            "{place}/runs.txt: cannot write rows as '.txt'. Use one of the extensions .csv, .parquet, .jsonl.",
        ),
    ],
)
def test_paths_that_cannot_be_compared(sweep: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    names = {"place": str(tmp_path), "run": str(sweep / "0_iris_linear")}
    done = compare(*(argument.format(**names) for argument in arguments))
    assert (done.returncode, done.stderr) == (2, f"{message.format(**names)}\n")


def test_compare_does_not_import_torch() -> None:
    code = "import sys, scripts.compare; print({'torch', 'pytorch_lightning'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
