"""Folds and members at once: what they leave is what they leave one after the other, however they end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from omegaconf import OmegaConf
from polars.testing import assert_frame_equal

from common.errors import InputError
from inference.artifact import Artifact
from tests.conftest import ROOT, run_script
from trainer.command.prepare import prepare
from trainer.folders.status import lock_folder
from trainer.multirun import process_pool
from trainer.multirun.process_pool import choose_processes

RunHere = Callable[..., Path]
QUICK = ("data=iris", "logger=none", "baselines=false", "callbacks.early_stopping=null")
SHORT = (*QUICK, "trainer.max_epochs=3")
ENDLESS = (*QUICK, "trainer.max_epochs=1000000", "export=none")
FAILING = ("allowed_targets=[tests]", "+callbacks.failing._target_=tests.trainer.failing.Failing")


def assert_same(folder: Path, other: Path) -> None:
    """All weights and figures, bit for bit; seconds aside."""
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


@pytest.mark.parametrize("several", ["cross_validate=3", "ensemble=3"])
def test_runs_at_once_end_as_one_after_the_other(run_here: RunHere, tmp_path: Path, several: str) -> None:
    model = ("model=tabm", "model.members=4", "model.hidden=[8]", "model.keep=2")
    whole = run_here(several, "n_jobs=1", *SHORT, *model, folder=tmp_path / "one")
    folder = run_here(several, "n_jobs=2", *SHORT, *model, folder=tmp_path / "two")
    assert_same(whole, folder)
    if several == "cross_validate=3":
        files = [pl.read_parquet(each / "out_of_fold.parquet") for each in (whole, folder)]
        assert_frame_equal(files[0], files[1], abs_tol=0, rel_tol=0)


def test_the_console_has_a_line_of_each_and_its_log_the_rest(tmp_path: Path) -> None:
    done = run_script("train.py", "cross_validate=2", "n_jobs=2", *SHORT, f"hydra.run.dir={tmp_path}", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "processes: 2 of 2 runs at once (given)\n" in done.stdout
    assert done.stdout.count("Columns") == 1
    assert "device: " not in done.stdout
    for fold in range(2):
        loss = json.loads((tmp_path / f"fold_{fold}" / "metrics.json").read_text())["val/loss"]
        assert f"fold_{fold}: val/loss {loss:.5g}; 3 epochs in " in done.stdout
        log = (tmp_path / f"fold_{fold}" / "train.log").read_text()
        assert "threads: 1 of " in log
        assert "\nrun folder  " in log


def test_one_that_stops_at_an_error_ends_the_others(tmp_path: Path) -> None:
    broken = (*FAILING, "+callbacks.failing.name=fold_1", "+callbacks.failing.killed=false")
    command = ("cross_validate=3", "n_jobs=2", *ENDLESS, *broken, f"hydra.run.dir={tmp_path}")
    done = run_script("train.py", *command)
    assert done.returncode == 1
    said = f"RuntimeError: fold_1 stopped at an error; its log is {tmp_path}/fold_1/train.log.\nTraceback "
    assert said in done.stdout
    assert done.stdout.rstrip().endswith("\nArithmeticError: one and one are three")
    assert "ArithmeticError: one and one are three" in (tmp_path / "fold_1" / "train.log").read_text()
    assert not (tmp_path / "fold_2").exists()
    with lock_folder(tmp_path / "fold_0"):  # nobody is at work there
        pass


def test_one_that_is_killed_is_named(run_here: RunHere) -> None:
    broken = (*FAILING, "+callbacks.failing.name=member_1", "+callbacks.failing.killed=true")
    with pytest.raises(RuntimeError) as error:
        run_here("ensemble=2", "n_jobs=2", *ENDLESS, *broken)
    assert str(error.value) == (
        "member_1 was killed by SIGKILL, as the system does where memory is short: n_jobs=1 takes less of it."
    )


def test_one_of_other_settings_is_named(run_here: RunHere, tmp_path: Path) -> None:
    (tmp_path / "run" / "fold_1").mkdir(parents=True)
    OmegaConf.save({"seed": 3}, tmp_path / "run" / "fold_1" / "config.yaml")
    with pytest.raises(InputError, match=r"^fold_1: .*/fold_1 was begun with other settings of "):
        run_here("cross_validate=2", "n_jobs=2", *ENDLESS)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_what_ends_the_run_ends_all_and_it_goes_on_where_it_was(
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
    run_here(*settings, "n_jobs=2", folder=folder)
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
        ({}, (4, "8 cores, 1 of them a run")),
        ({"threads": 3}, (2, "8 cores, 3 of them a run")),
        ({"threads": 16}, (1, "8 cores, 16 of them a run")),
    ],
)
def test_how_many_is_chosen_by_the_cores(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], chosen: tuple[int, str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(process_pool, "available_cores", lambda: 8)
    monkeypatch.setattr(process_pool, "THREADS", 8)
    monkeypatch.setattr(process_pool, "free_memory", lambda: 10**11)
    config = OmegaConf.create({"n_jobs": "auto", "trainer": settings})
    assert choose_processes(config, 4) == chosen
    config.n_jobs = 6
    assert choose_processes(config, 4) == (4, "given")
    config.n_jobs = "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_processes(config, 4) == (1, "they share a GPU")


def test_memory_may_not_do_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(process_pool, "available_cores", lambda: 8)
    monkeypatch.setattr(process_pool, "THREADS", 8)
    config = OmegaConf.create({"n_jobs": "auto", "trainer": {}})
    for free, count in ((3_500_000_000, 3), (500_000_000, 1)):
        monkeypatch.setattr(process_pool, "free_memory", lambda free=free: free)
        assert choose_processes(config, 4)[0] == count
    assert choose_processes(config, 4)[1] == "500 MB of memory are free"


def test_no_number_of_processes_is_an_error() -> None:
    with pytest.raises(InputError) as error:
        prepare(["ensemble=2", "n_jobs=0"])
    assert str(error.value) == ("A setting is wrong:\n  command line: n_jobs: must be 1 or more, or auto; it is 0.")
