"""Runs that signals end, at real moments: they say how to go on, and who goes on ends with the same weights."""

import json
import os
import re
import resource
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from datamodules.schema import DataError
from scripts.benchmark.kills import differing, start
from tests.conftest import run_script
from trainer.config.errors import ConfigError
from trainer.folders.signals import Interrupted, watch

RunHere = Callable[..., Path]

RUN = (
    "data=breast_cancer",
    "data.batch_size=64",
    "trainer.max_epochs=4",
    "model.hidden=[16]",
    "model.dropout=0.2",
    "logger=none",
    "export=none",
    "baselines=false",
)
MEASURED = ("val/loss", "val/auroc", "test/accuracy", "test/log_loss", "fit/best_epoch")
SENDER = ("allowed_targets=[tests.]", "+callbacks.sender._target_=tests.trainer.sender.Sender")


@pytest.fixture
def whole(run_here: RunHere, tmp_path: Path) -> Callable[..., Path]:
    def carry_out(*settings: str) -> Path:
        return run_here(*RUN, *settings, folder=tmp_path / "whole")

    return carry_out


@pytest.fixture
def broken(run_here: RunHere, tmp_path: Path) -> Callable[..., Path]:
    """A run that a signal ends at call `at` of `hook`, and that goes on to its end."""

    def carry_out(hook: str, at: int, *settings: str) -> Path:
        folder = tmp_path / "broken"
        sender = (*SENDER, "+callbacks.sender.name=SIGTERM", f"+callbacks.sender.hook={hook}")
        with pytest.raises(Interrupted), watch.installed():
            run_here(*RUN, *settings, *sender, f"+callbacks.sender.at={at}", folder=folder)
        assert not (folder / "metrics.json").exists()
        assert not list(folder.rglob("*.unfinished"))
        return run_here(*RUN, *settings, folder=folder)

    return carry_out


EMA = ("callbacks=ema", "trainer.fast=off")


@pytest.mark.parametrize(
    ("hook", "at", "settings"),
    [
        ("on_train_batch_end", 8, ()),  # in the midst of an epoch of 6 batches
        ("on_train_batch_end", 12, ()),  # before a validation
        ("on_validation_batch_end", 3, ()),
        ("on_train_epoch_end", 4, ()),
        ("on_train_batch_end", 8, EMA),
        ("on_validation_batch_end", 3, EMA),  # while the average is in the place of the weights
        ("on_train_batch_end", 8, ("trainer.accumulate_grad_batches=4",)),
        ("on_train_batch_end", 3, ("trainer.compile=true",)),
        ("on_train_batch_end", 4, ("+trainer.val_check_interval=2",)),
        ("on_train_batch_end", 6, ("+trainer.check_val_every_n_epoch=2",)),
        ("on_train_batch_end", 14, ("trainer.max_epochs=-1", "trainer.max_steps=14")),
        ("on_test_start", 1, ("trainer.max_epochs=20", "callbacks.early_stopping.patience=1", "optimizer.lr=0.1")),
    ],
)
def test_a_run_ends_with_the_weights_of_one_that_was_not_interrupted(
    whole: Callable[..., Path], broken: Callable[..., Path], hook: str, at: int, settings: tuple[str, ...]
) -> None:
    assert differing(whole(*settings), broken(hook, at, *settings)) == []


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138), ("SIGUSR2", 140)])
def test_the_exit_says_how_to_go_on(tmp_path: Path, name: str, code: int) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    run = start([*RUN, "trainer.max_epochs=10000", f"hydra.run.dir={folder}"], log)
    wait_for(folder, run, "checkpoints/last.ckpt")
    send(run, signal.Signals[name])
    assert finish(run) == code
    last = log.read_text().splitlines()[-1]
    assert last == f"Interrupted by {name}. Go on with: python train.py resume={folder}"
    assert last in (folder / "train.log").read_text()
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["error"]) == ("interrupted", code, f"Interrupted by {name}")


def test_ctrl_c_twice_ends_at_once(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    slow = ("allowed_targets=[tests.]", "+callbacks.slow._target_=tests.trainer.sender.Slow")
    run = start([*RUN, *slow, f"hydra.run.dir={folder}"], log)
    wait_for(folder, run, "slow")
    send(run, signal.SIGINT)
    while "Interrupted: ending after this step. Ctrl-C again ends at once." not in log.read_text():
        assert run.is_alive()
    send(run, signal.SIGINT)
    assert finish(run) == -signal.SIGINT


def test_before_the_first_checkpoint_it_starts_anew_in_the_same_folder(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    run = start([*RUN, f"hydra.run.dir={folder}"], log)
    wait_for(folder, run, "overrides.yaml")
    send(run, signal.SIGTERM)
    assert finish(run) == 143
    assert log.read_text().splitlines()[-1] == (
        "Interrupted by SIGTERM. There is no checkpoint of it. Start anew, in the same folder, with: python train.py"
        f" resume={folder}"
    )
    assert finish(start([f"resume={folder}"], log)) == 0
    assert f"resume: {folder} has no checkpoint yet: starting anew in it\n" in log.read_text()
    assert (folder / "metrics.json").exists()


def test_without_checkpoints_nothing_is_promised(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    sender = (*SENDER, "+callbacks.sender.name=SIGUSR1", "+callbacks.sender.hook=on_train_batch_end")
    assert (
        finish(start([*RUN, "callbacks=none", *sender, "+callbacks.sender.at=3", f"hydra.run.dir={folder}"], log))
        == 138
    )
    assert log.read_text().splitlines()[-1] == (
        "Interrupted by SIGUSR1. There is no checkpoint of it. Start anew, in the same folder, with: python train.py"
        f" resume={folder}"
    )


@pytest.fixture
def reference(whole: Callable[..., Path]) -> Path:
    return whole()


@pytest.mark.parametrize(
    "name",
    ["on_train_batch_end", "on_validation_batch_end", "overrides.yaml", "checkpoints/.last.ckpt.*", "metrics.json"],
)
def test_a_killed_run_goes_on_to_the_same_weights(reference: Path, tmp_path: Path, name: str) -> None:
    """`name`: the hook in which the process is killed, or the file that is waited for."""
    folder, log = tmp_path / "killed", tmp_path / "log"
    command = [*RUN, f"hydra.run.dir={folder}", "resume=auto"]
    if name.startswith("on_"):
        sender = [*SENDER, "+callbacks.sender.name=SIGKILL", f"+callbacks.sender.hook={name}"]
        run = start([*command, *sender, f"+callbacks.sender.at={14 if 'train' in name else 3}"], log)
    else:
        run = start(command, log)
        wait_for(folder, run, name)
        run.kill()
    assert finish(run) == -signal.SIGKILL
    again = [*command, "+callbacks.sender.at=99"] if name.startswith("on_") else command
    assert finish(start(again, log)) == 0, log.read_text()
    assert differing(reference, folder) == []
    assert not list(folder.rglob("*.unfinished"))
    first, second = (json.loads((each / "metrics.json").read_text()) for each in (reference, folder))
    assert [first[name] for name in MEASURED] == [second[name] for name in MEASURED]


def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so(tmp_path: Path) -> None:
    """A limit to the size of files stands for the disk; the checkpoint grows by the optimizer's state at its first."""
    folder = tmp_path / "run"
    command = ["data=iris", "model.hidden=[256,256]", "logger=none", "export=none", "baselines=false"]
    log = tmp_path / "log"
    assert finish(start([*command, "trainer.max_epochs=1", f"hydra.run.dir={folder}"], log)) == 0
    last = folder / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    again = [f"resume={folder}", "trainer.max_epochs=2"]
    size = len(before) // 2
    full = run_script("train.py", *again, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    assert full.returncode == 2, full.stderr
    said = re.sub(r"\(\d+\.\d+ MB\)", "(N MB)", full.stdout.splitlines()[-1])
    path = folder / "checkpoints" / "best.ckpt"  # the first of the two
    assert said == (
        f"{path}: the checkpoint (N MB) was not written: File too large. The one before it is whole. Make room, then go"
        f" on with: python train.py resume={folder}"
    )
    assert last.read_bytes() == before
    assert sorted(each.name for each in last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert finish(start(again, log)) == 0


def test_other_data_other_steps_and_fewer_epochs_are_refused(run_here: RunHere) -> None:
    folder = run_here(*RUN, "trainer.max_epochs=3")
    with pytest.raises(DataError) as data:
        run_here(*RUN, "data.split.seed=1")
    assert str(data.value) == (
        "resume: the run began with other data, or other splits of them (then 363 train, 91 val, 115 test rows, now 365"
        " train, 91 val, 113 test). Its weights mean nothing here, and rows that it has learned from may be tested:"
        " leave the data and their settings as they were, or start anew."
    )
    with pytest.raises(ConfigError) as steps:
        run_here(*RUN, "data.batch_size=32")
    assert str(steps.value) == (
        "resume: an epoch was 6 batches, 1 a step, and is 12 batches, 1 a step now: the schedule and the place in the"
        " epoch are counted in them. Leave data.batch_size and trainer.accumulate_grad_batches as they were."
    )
    with pytest.raises(ConfigError) as epochs:
        run_here(*RUN, "trainer.max_epochs=1")
    assert str(epochs.value) == (
        "resume: the run has already trained for more epochs than trainer.max_epochs=1: keep the value of the run, or"
        " choose a larger one."
    )
    run_here(*RUN, "data.eval_batch_size=32", "data.store=disk")  # which change nothing of it
    assert json.loads((folder / "metrics.json").read_text())["fit/epochs"] == 4


def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    sender = (*SENDER, "+callbacks.sender.name=SIGKILL", "+callbacks.sender.hook=on_fit_start")
    assert finish(start([*RUN, *sender, "+callbacks.sender.at=0", f"hydra.run.dir={folder}"], log)) == 0
    names = ("overrides.yaml", "config.yaml", "environment.json", "audit.json", "status.json")

    def resumed(*changes: str) -> tuple[int | None, list[bytes]]:
        code = finish(start([f"resume={folder}", *changes], log))
        return code, [(folder / name).read_bytes() for name in names]

    before = [(folder / name).read_bytes() for name in names]
    assert resumed("model.hidden=[8]") == (2, before)
    assert resumed("data.batch_size=32") == (2, before)  # nothing is left to train
    code, files = resumed("trainer.max_epochs=5", "callbacks.sender.at=1")
    assert (code, files[:-1]) == (-signal.SIGKILL, before[:-1])
    assert resumed("trainer.max_epochs=5")[0] == 0, log.read_text()
    assert "- trainer.max_epochs=5\n" in (folder / "overrides.yaml").read_text()
    assert "  max_epochs: 5\n" in (folder / "config.yaml").read_text()


def send(process: ForkServerProcess, number: signal.Signals) -> None:
    assert process.pid is not None
    os.kill(process.pid, number)


def finish(process: ForkServerProcess) -> int | None:
    process.join(timeout=120)
    return process.exitcode


def wait_for(folder: Path, process: ForkServerProcess, name: str) -> None:
    """Until a file of this name is there, and no longer than the process lives."""
    while process.is_alive():
        if next(folder.glob(name), None) is not None:
            return
    raise AssertionError(f"ended before there was {folder}/{name}")
