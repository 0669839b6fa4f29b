"""Runs that are interrupted by signals: they report how to resume, and a resumed run ends with the same weights.

A signal to this process stands for one to a process of its own, except where the exit of the process is tested.
"""

import json
import os
import re
import resource
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest.mock import Mock

import pytest

from common.errors import InputError
from datamodules.schema import DataError
from scripts.benchmark.kills import differing, start
from trainer import compose, train
from trainer.config.errors import ConfigError
from trainer.folders.layout import what_next
from trainer.folders.signals import Interrupted

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
FILES = ("overrides.yaml", "config.yaml", "environment.json", "audit.json", "status.json")


def sender(name: str, hook: str, at: int) -> tuple[str, ...]:
    """Settings of a callback that sends the signal at call number `at` of a hook; 0: never."""
    return (*SENDER, f"+callbacks.sender.name={name}", f"+callbacks.sender.hook={hook}", f"+callbacks.sender.at={at}")


def resumed(folder: Path, *changes: str) -> Path:
    """Resumes the run in the folder, in this process."""
    return train(compose(f"resume={folder}", *changes)).folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of the run with these settings, trained once."""
    folders: dict[tuple[str, ...], Path] = {}

    def run(*settings: str) -> Path:
        if settings not in folders:
            folder = tmp_path_factory.mktemp("whole") / "run"
            folders[settings] = train(compose(*RUN, *settings, f"hydra.run.dir={folder}")).folder
        return folders[settings]

    return run


EMA = ("callbacks=ema", "trainer.fast=off")


@pytest.mark.parametrize(
    ("hook", "at", "settings"),
    [
        ("on_train_batch_end", 8, ()),  # within an epoch of 6 batches
        pytest.param("on_train_batch_end", 12, (), marks=pytest.mark.slow),  # before a validation
        ("on_validation_batch_end", 3, ()),
        ("on_train_epoch_end", 4, ()),
        pytest.param("on_train_batch_end", 8, EMA, marks=pytest.mark.slow),
        ("on_validation_batch_end", 3, EMA),  # while the network has the averaged weights
        ("on_train_batch_end", 8, ("trainer.accumulate_grad_batches=4",)),
        pytest.param("on_train_batch_end", 3, ("trainer.compile=true",), marks=pytest.mark.slow),
        pytest.param("on_train_batch_end", 4, ("+trainer.val_check_interval=2",), marks=pytest.mark.slow),
        pytest.param("on_train_batch_end", 6, ("+trainer.check_val_every_n_epoch=2",), marks=pytest.mark.slow),
        pytest.param(
            "on_train_batch_end", 14, ("trainer.max_epochs=-1", "trainer.max_steps=14"), marks=pytest.mark.slow
        ),
        ("on_test_start", 1, ("trainer.max_epochs=20", "callbacks.early_stopping.patience=1", "optimizer.lr=0.1")),
    ],
)
def test_a_resumed_run_ends_with_the_same_weights(
    run_here: RunHere, tmp_path: Path, uninterrupted: RunHere, hook: str, at: int, settings: tuple[str, ...]
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_here(*RUN, *settings, *sender("SIGTERM", hook, at), folder=folder)
    assert not (folder / "metrics.json").exists()
    assert not list(folder.rglob("*.unfinished"))
    resumed(folder, "callbacks.sender.at=0")
    assert differing(uninterrupted(*settings), folder) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("SIGTERM", 143),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("SIGINT", 130), ("SIGUSR1", 138), ("SIGUSR2", 140))
        ),
    ],
)
def test_the_last_line_says_how_to_resume(tmp_path: Path, name: str, code: int) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    run = start([*RUN, "trainer.max_epochs=10000", f"hydra.run.dir={folder}"], log)
    wait_for(folder, run, "checkpoints/last.ckpt")
    send(run, signal.Signals[name])
    assert finish(run) == code
    last = log.read_text().splitlines()[-1]
    assert last == f"Interrupted by {name}. Resume it with: python train.py resume={folder}"
    assert last in (folder / "train.log").read_text()
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["error"]) == ("interrupted", code, f"Interrupted by {name}")


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    slow = ("allowed_targets=[tests.]", "+callbacks.slow._target_=tests.trainer.sender.Slow")
    run = start([*RUN, *slow, f"hydra.run.dir={folder}"], log)
    wait_for(folder, run, "slow")
    send(run, signal.SIGINT)
    while "Press Ctrl-C again to end at once." not in log.read_text():
        assert run.is_alive()
    send(run, signal.SIGINT)
    assert finish(run) == -signal.SIGINT


def test_without_a_checkpoint_a_run_starts_again_in_its_folder(
    run_here: RunHere, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match="Interrupted by SIGTERM"):
        run_here(*RUN, *sender("SIGTERM", "on_train_start", 1), folder=folder)
    (folder / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
    command = f"python train.py resume={folder}"
    assert what_next(folder) == f"It has no checkpoint. Start it again, in the same folder, with: {command}"
    resumed(folder, "callbacks.sender.at=0")
    assert capsys.readouterr().out.startswith(f"resume: {folder} has no checkpoint yet: ")
    assert (folder / "metrics.json").exists()


def test_a_run_without_checkpoints_says_that_it_has_none(run_here: RunHere, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match="Interrupted by SIGUSR1"):
        run_here(*RUN, "callbacks=none", *sender("SIGUSR1", "on_train_batch_end", 3), folder=folder)
    assert not list(folder.rglob("*.ckpt"))
    assert what_next(folder).startswith("It has no checkpoint. ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["on_train_batch_end", "on_validation_batch_end", "overrides.yaml", "checkpoints/.last.ckpt.*", "metrics.json"],
)
def test_a_killed_run_resumes_to_the_same_weights(uninterrupted: RunHere, tmp_path: Path, name: str) -> None:
    """`name`: the hook in which the process is killed, or the file after whose creation it is."""
    folder, log, reference = tmp_path / "killed", tmp_path / "log", uninterrupted()
    command = [*RUN, f"hydra.run.dir={folder}", "resume=auto"]
    if name.startswith("on_"):
        run = start([*command, *sender("SIGKILL", name, 14 if "train" in name else 3)], log)
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


def test_a_full_disk_leaves_the_previous_checkpoint(run_here: RunHere, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    folder = tmp_path / "run"
    settings = ("data=iris", "model.hidden=[256,256]", "logger=none", "export=none", "baselines=false")
    run_here(*settings, "trainer.max_epochs=1", folder=folder)
    last = folder / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(InputError) as error:
            resumed(folder, "trainer.max_epochs=2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    path = folder / "checkpoints" / "best.ckpt"  # the first of the two
    assert re.sub(r"\(\d+\.\d+ MB\)", "(N MB)", str(error.value)) == (
        f"{path}: the checkpoint (N MB) was not written: File too large. The previous checkpoint is intact. Free some"
        f" space, then resume with: python train.py resume={folder}"
    )
    assert last.read_bytes() == before
    assert sorted(each.name for each in last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    resumed(folder, "trainer.max_epochs=2")
    assert json.loads((folder / "metrics.json").read_text())["fit/epochs"] == 2


def test_other_data_other_steps_and_fewer_epochs_are_rejected(run_here: RunHere) -> None:
    folder = run_here(*RUN, "trainer.max_epochs=3")
    with pytest.raises(DataError) as data:
        resumed(folder, "data.split.seed=1")
    assert str(data.value) == (
        "resume: the run started with other data or splits (then 363 train, 91 val, 115 test rows, now 365 train, 91"
        " val, 113 test). Its weights do not fit these data, and may have been trained on rows that are now test rows:"
        " restore the data and their settings, or start a new run."
    )
    with pytest.raises(ConfigError) as steps:
        resumed(folder, "data.batch_size=32")
    assert str(steps.value) == (
        "resume: an epoch had 6 batches (1 per step) and now has 12 batches (1 per step), but the schedule and the"
        " position in the epoch are counted in batches. Keep data.batch_size and trainer.accumulate_grad_batches of the"
        " run."
    )
    with pytest.raises(ConfigError) as epochs:
        resumed(folder, "trainer.max_epochs=1")
    assert str(epochs.value) == (
        "resume: the run has already trained for more epochs than trainer.max_epochs=1: keep the value of the run, or"
        " choose a larger one."
    )
    resumed(folder, "data.eval_batch_size=32", "data.store=disk", "trainer.max_epochs=4")  # these may change
    assert json.loads((folder / "metrics.json").read_text())["fit/epochs"] == 4


def test_a_rejected_resume_leaves_the_run_as_it_was(run_here: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_here(*RUN)

    def contents() -> list[bytes]:
        return [(folder / name).read_bytes() for name in FILES]

    before = contents()
    for change in ("model.hidden=[8]", "data.batch_size=32"):  # the latter although nothing is left to train
        with pytest.raises(ConfigError):
            resumed(folder, change)
        assert contents() == before
    with monkeypatch.context() as patched:
        patched.setattr("trainer.loop.trainer.Trainer.fit", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            resumed(folder, "trainer.max_epochs=5")
    assert contents()[:-1] == before[:-1]
    resumed(folder, "trainer.max_epochs=5")
    assert "- trainer.max_epochs=5\n" in (folder / "overrides.yaml").read_text()
    assert "  max_epochs: 5\n" in (folder / "config.yaml").read_text()


def send(process: ForkServerProcess, number: signal.Signals) -> None:
    assert process.pid is not None
    os.kill(process.pid, number)


def finish(process: ForkServerProcess) -> int | None:
    process.join(timeout=120)
    return process.exitcode


def wait_for(folder: Path, process: ForkServerProcess, name: str) -> None:
    """Waits until a file of this name exists, or the process has ended."""
    while process.is_alive():
        if next(folder.glob(name), None) is not None:
            return
    raise AssertionError(f"the process ended before {folder}/{name} existed")
