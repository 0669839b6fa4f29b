"""Concurrent folds and members: they give the results of sequential ones, and end together."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from omegaconf import OmegaConf
from polars.testing import assert_frame_equal

from common.errors import InputError
from inference.artifact import Artifact
from tests.conftest import ROOT
from trainer import compose, train
from trainer.command.prepare import prepare
from trainer.folders.status import lock_folder
from trainer.multirun import process_pool
from trainer.multirun.process_pool import choose_n_jobs, run_all

RunHere = Callable[..., Path]
QUICK = ("data=iris", "logger=none", "baselines=false", "callbacks.early_stopping=null")
SHORT = (*QUICK, "trainer.max_epochs=3")
ENDLESS = (*QUICK, "trainer.max_epochs=1000000", "export=none")
FAILING = ("allowed_targets=[tests]", "+callbacks.failing._target_=tests.trainer.failing.Failing")


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and log messages of a cross-validation of two folds at once."""
    folder, stream, root = tmp_path_factory.mktemp("folds") / "run", io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(stream), root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        train(compose("cross_validate=2", "n_jobs=2", *SHORT, f"hydra.run.dir={folder}"))
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    return folder, stream.getvalue()


def assert_same(folder: Path, other: Path) -> None:
    """Compares all weights and metrics bit for bit, except times."""
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.ckpt"))
    assert len(names) == 2 * len(list(folder.glob("*_[0-9]")))
    for name in names:
        one, two = (torch.load(each / name, weights_only=True)["state_dict"] for each in (folder, other))
        assert all(torch.equal(values, two[key]) for key, values in one.items())
    names = [path.relative_to(folder) for path in folder.rglob("metrics.json")]
    for name in names:
        figures = [json.loads((each / name).read_text()) for each in (folder, other)]
        one, two = ({key: value for key, value in each.items() if "second" not in key} for each in figures)
        assert one == two
    rows = pl.DataFrame({"sepal length (cm)": ["5.1", "6.3"], "petal width (cm)": ["0.2", "1.5"]})
    one, two = (Artifact.load(each / "model.pt").score(rows).answers for each in (folder, other))
    assert_frame_equal(one, two, abs_tol=0, rel_tol=0)


def test_concurrent_folds_end_like_sequential_ones(run_here: RunHere, tmp_path: Path, folds: tuple[Path, str]) -> None:
    whole, (folder, _) = run_here("cross_validate=2", "n_jobs=1", *SHORT, folder=tmp_path / "one"), folds
    assert_same(whole, folder)
    files = [pl.read_parquet(each / "out_of_fold.parquet") for each in (whole, folder)]
    assert_frame_equal(files[0], files[1], abs_tol=0, rel_tol=0)


@pytest.mark.slow
def test_concurrent_members_end_like_sequential_ones(run_here: RunHere, tmp_path: Path) -> None:
    settings = ("ensemble=3", *SHORT, "model=tabm", "model.members=4", "model.hidden=[8]", "model.keep=2")
    whole = run_here("n_jobs=1", *settings, folder=tmp_path / "one")
    assert_same(whole, run_here("n_jobs=2", *settings, folder=tmp_path / "two"))


def test_the_process_logs_a_line_per_fold_and_train_log_has_all_messages(
    folds: tuple[Path, str],
) -> None:
    folder, messages = folds
    assert "processes: 2 of 2 runs at once (given)\n" in messages
    assert messages.count("Columns") == 1
    assert "device: " not in messages
    for fold in range(2):
        loss = json.loads((folder / f"fold_{fold}" / "metrics.json").read_text())["val/loss"]
        assert f"fold_{fold}: val/loss {loss:.5g}; 3 epochs in " in messages
        log = (folder / f"fold_{fold}" / "train.log").read_text()
        assert "threads: 1 of " in log
        assert "\nrun folder  " in log


def pool(*runs: Callable[[], Any], folder: Path, n_jobs: int = 2) -> list[Any]:
    """The results of functions that take no time, in folders named by their numbers."""
    return run_all({folder / str(number): run for number, run in enumerate(runs)}, OmegaConf.create({"n_jobs": n_jobs}))


def test_results_are_in_the_order_of_the_runs(tmp_path: Path) -> None:
    assert pool(partial(time.sleep, 0.5), partial(int, "7"), partial(os.getpid), folder=tmp_path)[:2] == [None, 7]
    assert sorted(path.name for path in tmp_path.glob("*/train.log")) == ["train.log"] * 3


def test_an_error_ends_the_other_runs(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        pool(partial(time.sleep, 600), partial(divmod, 1, 0), partial(int), folder=tmp_path)
    message = str(error.value)
    assert message.startswith(f"1 failed; its log is {tmp_path}/1/train.log.\nTraceback (most recent call last):\n")
    assert "\nZeroDivisionError: " in message
    assert "\nZeroDivisionError: " in (tmp_path / "1" / "train.log").read_text()
    assert not (tmp_path / "2").exists()


def test_a_killed_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        pool(partial(time.sleep, 600), partial(signal.raise_signal, signal.SIGKILL), folder=tmp_path)
    assert str(error.value) == "1 was killed by SIGKILL, possibly because memory ran out: n_jobs=1 needs less."
    with pytest.raises(RuntimeError) as error:
        pool(partial(int), partial(os._exit, 3), folder=tmp_path)
    assert str(error.value) == "1 ended with exit code 3; its log has no error."


def test_a_run_with_other_settings_is_named(run_here: RunHere, tmp_path: Path) -> None:
    (tmp_path / "run" / "fold_1").mkdir(parents=True)
    OmegaConf.save({"seed": 3}, tmp_path / "run" / "fold_1" / "config.yaml")
    with pytest.raises(InputError, match=r"^fold_1: .*/fold_1 was started with other values of "):
        run_here("cross_validate=2", "n_jobs=2", *ENDLESS)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_fold_that_fails_ends_the_others(run_here: RunHere, tmp_path: Path, killed: bool) -> None:
    broken = (*FAILING, "+callbacks.failing.name=fold_1", f"+callbacks.failing.killed={killed}")
    with pytest.raises(RuntimeError, match=r"^fold_1 (was killed by SIGKILL|failed; its log is )"):
        run_here("cross_validate=3", "n_jobs=2", *ENDLESS, *broken)
    assert not (tmp_path / "run" / "fold_2").exists()
    with lock_folder(tmp_path / "run" / "fold_0"):  # its process has ended
        pass


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_ends_all_processes_and_resumes(
    run_here: RunHere, tmp_path: Path, ending: signal.Signals
) -> None:
    settings = (*QUICK, "cross_validate=2", "trainer.max_epochs=100")
    folder = tmp_path / "broken"
    command = [sys.executable, str(ROOT / "train.py"), *settings, "n_jobs=2", f"hydra.run.dir={folder}"]
    run = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(lambda: all((folder / f"fold_{fold}" / "checkpoints" / "last.ckpt").exists() for fold in range(2)))
    if ending == signal.SIGINT:
        os.killpg(run.pid, ending)  # as a terminal does
    else:
        run.kill()
    said = run.communicate()[0].decode()
    if ending == signal.SIGINT:
        assert run.returncode == 130, said
        assert "Interrupted" in said
    wait_for(lambda: all(free(folder / f"fold_{fold}") for fold in range(2)))
    assert not (folder / "fold_0" / "metrics.json").exists()
    assert "epoch 100/100" not in (folder / "fold_0" / "train.log").read_text()
    run_here(*settings, "n_jobs=2", "resume=auto", folder=folder)
    assert_same(folder, run_here(*settings, "n_jobs=1", folder=tmp_path / "whole"))


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def free(folder: Path) -> bool:
    try:
        with lock_folder(folder):
            return True
    except InputError:
        return False


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({}, (4, "8 cores, 1 per run")),
        ({"threads": 3}, (2, "8 cores, 3 per run")),
        ({"threads": 16}, (1, "8 cores, 16 per run")),
    ],
)
def test_the_number_of_jobs_depends_on_the_cores(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], chosen: tuple[int, str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(process_pool, "available_cores", lambda: 8)
    monkeypatch.setattr(process_pool, "THREADS", 8)
    monkeypatch.setattr(process_pool, "free_memory", lambda: 10**11)
    config = OmegaConf.create({"n_jobs": "auto", "trainer": settings})
    assert choose_n_jobs(config, 4) == chosen
    config.n_jobs = 6
    assert choose_n_jobs(config, 4) == (4, "given")
    config.n_jobs = "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_n_jobs(config, 4) == (1, "they share a GPU")


def test_the_number_of_jobs_depends_on_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(process_pool, "available_cores", lambda: 8)
    monkeypatch.setattr(process_pool, "THREADS", 8)
    config = OmegaConf.create({"n_jobs": "auto", "trainer": {}})
    for free, count in ((3_500_000_000, 3), (500_000_000, 1)):
        monkeypatch.setattr(process_pool, "free_memory", lambda free=free: free)
        assert choose_n_jobs(config, 4)[0] == count
    assert choose_n_jobs(config, 4)[1] == "500 MB of memory free"


def test_an_invalid_number_of_jobs_is_rejected() -> None:
    with pytest.raises(InputError) as error:
        prepare(["ensemble=2", "n_jobs=0"])
    assert str(error.value) == ("A setting is wrong:\n  command line: n_jobs: must be 1 or more, or auto; it is 0.")
