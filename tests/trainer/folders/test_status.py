"""What status.json says of a run, whatever ends it."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from tests.conftest import ROOT, run_script
from trainer.folders.signals import Interrupted
from trainer.folders.status import Status, lock_folder, read, track_status

QUICK = ("data=iris", "trainer.max_epochs=1", "logger=none", "export=none", "baselines=false")


def status(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return facts


def test_a_run_says_that_it_is_done(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_script("train.py", *QUICK, f"hydra.run.dir={run}").returncode == 0
    said = status(run)
    assert said["value"] == json.loads((run / "metrics.json").read_text())["val/loss"]
    assert (said["monitor"], said["mode"], said["state"]) == ("val/loss", "min", "done")
    assert (said["error"], said["exit_code"]) == (None, 0)
    assert said["seconds"] > 0
    assert [path for path in run.iterdir() if path.suffix == ".new"] == []


def test_a_run_of_bad_data_says_the_first_line_of_why(tmp_path: Path) -> None:
    run = tmp_path / "run"
    bad = run_script("train.py", "data=table", "data.path=nowhere.csv", "data.target=y", f"hydra.run.dir={run}")
    assert bad.returncode == 2
    said = status(run)
    assert (said["state"], said["exit_code"], said["value"]) == ("failed", 2, None)
    assert said["error"] == "no such file: nowhere.csv"
    assert said["error"] in bad.stdout


def test_a_crash_is_named_by_its_class(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), track_status(tmp_path, "val/auroc", "max"):
        raise RuntimeError("asked to fail\nand more")
    said = status(tmp_path)
    assert (said["state"], said["exit_code"]) == ("failed", 1)
    assert said["error"] == "RuntimeError: asked to fail"


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(1)])
def test_what_is_no_exception_interrupts(tmp_path: Path, ending: BaseException) -> None:
    with pytest.raises(type(ending)), track_status(tmp_path, "val/loss", "min"):
        raise ending
    assert (status(tmp_path)["state"], status(tmp_path)["exit_code"]) == ("interrupted", 130)


def test_a_state_that_was_said_before_stays(tmp_path: Path) -> None:
    with track_status(tmp_path, "val/loss", "min") as record:
        record.value = float("nan")
        record.end("pruned", 0)
    assert (status(tmp_path)["state"], status(tmp_path)["value"]) == ("pruned", None)


def test_who_was_killed_is_interrupted_and_who_lives_is_running(tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path; from trainer.folders.status import recorded\n"
        f"with recorded(Path({str(tmp_path)!r}), 'val/loss', 'min'): print('begun', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    alive = read(tmp_path)
    assert alive is not None
    assert (alive.state, alive.pid) == ("running", process.pid)
    with (
        pytest.raises(InputError, match=f"^{tmp_path}: another run is at work in this folder"),
        track_status(tmp_path, "val/loss", "min"),
    ):
        pass
    assert read(tmp_path) == alive  # untouched by the one that was refused
    process.send_signal(signal.SIGKILL)
    process.communicate()
    dead = read(tmp_path)
    assert dead is not None
    assert (dead.state, dead.exit_code) == ("interrupted", 1)
    assert dead.error == f"process {alive.pid} on {alive.host} is gone"


def test_who_claims_a_folder_removes_what_was_left_in_it_but_not_what_a_run_below_writes(tmp_path: Path) -> None:
    left, written = (tmp_path / name / "checkpoints" / ".last.ckpt.7.unfinished" for name in (".", "trial_0"))
    for path in (left, written):
        path.parent.mkdir(parents=True)
        path.touch()
    with lock_folder(tmp_path / "trial_0"):
        written.touch()
        with lock_folder(tmp_path):
            assert not left.exists()
            assert written.exists()
    with lock_folder(tmp_path / "trial_0"):
        assert not written.exists()


def test_where_the_status_cannot_be_written_what_ended_the_run_is_said(tmp_path: Path) -> None:
    """A limit to the size of files stands for the disk."""
    code = (
        "import resource; from pathlib import Path; from common.errors import InputError\n"
        "from trainer.folders.status import recorded\n"
        f"with recorded(Path({str(tmp_path)!r}), 'val/loss', 'min'):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1)); raise InputError('no room for a checkpoint')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"{tmp_path}/status.json was not written: File too large\n")
    assert done.stderr.endswith("\nserving.errors.InputError: no room for a checkpoint\n")
    ended = read(tmp_path)
    assert ended is not None
    assert ended.state == "interrupted"


def test_a_file_system_without_locks_is_refused_and_a_status_there_counts_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with track_status(tmp_path, "val/loss", "min"):
        running = (tmp_path / "status.json").read_bytes()
    (tmp_path / "status.json").write_bytes(running)

    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", without)
    with pytest.raises(InputError) as caught, track_status(tmp_path, "val/loss", "min"):
        pass
    assert str(caught.value) == (
        f"{tmp_path}: files cannot be locked there (No locks available), by which a run knows that no other is at work"
        " in its folder. Choose a folder on another file system."
    )
    said = read(tmp_path)
    assert said is not None
    assert said.state == "running"


def test_what_interrupts_comes_whole_from_another_process() -> None:
    interrupted = pickle.loads(pickle.dumps(Interrupted(signal.SIGTERM)))
    assert (str(interrupted), interrupted.exit_code) == ("Interrupted by SIGTERM", 143)


def test_a_folder_without_a_status_has_none_and_a_broken_one_is_said(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/status.json is no status of a run (Expecting property name enclosed in double quotes: line 1"
        " column 2 (char 1)): delete it, and the run counts as not begun."
    )


def test_a_status_needs_neither_torch_nor_lightning() -> None:
    code = "import sys, trainer.folders.status; print({'torch', 'pytorch_lightning'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert Status("val/loss", "min").state == "running"
