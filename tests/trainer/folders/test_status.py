"""status.json of a run, for every way in which the run can end."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from tests.conftest import ROOT
from trainer.folders.signals import Interrupted
from trainer.folders.status import Status, lock_folder, read, track_status

QUICK = ("data=iris", "trainer.max_epochs=1", "logger=none", "export=none", "baselines=false")


def status(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return facts


def test_a_finished_run_is_done(run_here: Callable[..., Path]) -> None:
    run = run_here(*QUICK)
    said = status(run)
    assert said["value"] == json.loads((run / "metrics.json").read_text())["val/loss"]
    assert (said["monitor"], said["mode"], said["state"]) == ("val/loss", "min", "done")
    assert (said["error"], said["exit_code"]) == (None, 0)
    assert said["seconds"] > 0
    assert [path for path in run.iterdir() if path.suffix == ".new"] == []


def test_a_run_on_bad_data_has_the_first_line_of_the_error(tmp_path: Path, run_here: Callable[..., Path]) -> None:
    run = tmp_path / "run"
    with pytest.raises(InputError) as caught:
        run_here("data=table", "data.path=nowhere.csv", "data.target=y", folder=run)
    said = status(run)
    assert (said["state"], said["exit_code"], said["value"]) == ("failed", 2, None)
    assert said["error"] == "no such file: nowhere.csv"
    assert said["error"] == str(caught.value).splitlines()[0]


def test_a_crash_has_the_class_of_its_exception(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), track_status(tmp_path, "val/auroc", "max"):
        raise RuntimeError("asked to fail\nand more")
    said = status(tmp_path)
    assert (said["state"], said["exit_code"]) == ("failed", 1)
    assert said["error"] == "RuntimeError: asked to fail"


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(1)])
def test_a_base_exception_interrupts(tmp_path: Path, ending: BaseException) -> None:
    with pytest.raises(type(ending)), track_status(tmp_path, "val/loss", "min"):
        raise ending
    assert (status(tmp_path)["state"], status(tmp_path)["exit_code"]) == ("interrupted", 130)


def test_a_state_that_was_set_before_is_kept(tmp_path: Path) -> None:
    with track_status(tmp_path, "val/loss", "min") as record:
        record.value = float("nan")
        record.end("pruned", 0)
    assert (status(tmp_path)["state"], status(tmp_path)["value"]) == ("pruned", None)


def test_a_live_run_is_running_and_a_killed_one_is_interrupted(tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path; from trainer.folders.status import track_status\n"
        f"with track_status(Path({str(tmp_path)!r}), 'val/loss', 'min'): print('begun', flush=True); input()"
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
        pytest.raises(InputError, match=f"^{tmp_path}: another run is using this folder"),
        track_status(tmp_path, "val/loss", "min"),
    ):
        pass
    assert read(tmp_path) == alive  # unchanged by the rejected one
    process.send_signal(signal.SIGKILL)
    process.communicate()
    dead = read(tmp_path)
    assert dead is not None
    assert (dead.state, dead.exit_code) == ("interrupted", 1)
    assert dead.error == f"process {alive.pid} on {alive.host} is gone"


def test_locking_removes_temporary_files_except_those_of_runs_below(tmp_path: Path) -> None:
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


def test_if_the_status_cannot_be_written_the_error_of_the_run_is_reported(tmp_path: Path) -> None:
    """A limit on the file size stands for a full disk."""
    code = (
        "import resource; from pathlib import Path; from common.errors import InputError\n"
        "from trainer.folders.status import track_status\n"
        f"with track_status(Path({str(tmp_path)!r}), 'val/loss', 'min'):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1)); raise InputError('no room for a checkpoint')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"{tmp_path}/status.json was not written: File too large\n")
    assert done.stderr.endswith("\ncommon.errors.InputError: no room for a checkpoint\n")
    ended = read(tmp_path)
    assert ended is not None
    assert ended.state == "interrupted"


def test_a_file_system_without_locks_is_rejected_and_its_status_is_read_unchanged(
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
        f"{tmp_path}: files cannot be locked here (No locks available), but a run must lock its folder. Choose a folder"
        " on another file system."
    )
    said = read(tmp_path)
    assert said is not None
    assert said.state == "running"


def test_an_interruption_can_be_pickled() -> None:
    interrupted = pickle.loads(pickle.dumps(Interrupted(signal.SIGTERM)))
    assert (str(interrupted), interrupted.exit_code) == ("Interrupted by SIGTERM", 143)


def test_a_missing_status_is_none_and_an_invalid_one_is_reported(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/status.json is not a valid status of a run (Expecting property name enclosed in double quotes:"
        " line 1 column 2 (char 1)): delete it, and the run counts as not started."
    )


def test_reading_a_status_imports_neither_torch_nor_lightning() -> None:
    code = "import sys, trainer.folders.status; print({'torch', 'pytorch_lightning'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert Status("val/loss", "min").state == "running"
