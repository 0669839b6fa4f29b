"""status.json of a run folder: how the run stands, for the sweep's table, a search, and whoever goes on with it."""

import fcntl
import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from common.atomic_write import UNFINISHED, atomic_write
from common.errors import EXIT_CODE, InputError
from trainer.folders.signals import Interrupted

log = logging.getLogger(__name__)

Ending = Literal["done", "pruned", "interrupted", "failed"]
STATES = ("done", "pruned", "running", "interrupted", "failed")
DONE = ("done", "pruned")
"""States of a run that there is nothing left to do of."""
STATUS, LOCK = "status.json", ".lock"
INTERRUPTED = 130
"""Exit code of a process that Ctrl-C ended."""


class Pruned(Exception):
    """Ends a run that a search gives up; the message says why."""


@dataclass
class Status:
    """How a run stands. `value`: of `monitor`, null where the run gave none or it is not finite; `error`: the first
    line of what ended it; `exit_code`: what the run alone would exit with; `started`: ISO 8601, UTC."""

    monitor: str
    mode: Literal["min", "max"]
    state: Ending | Literal["running"] = "running"
    value: float | None = None
    seconds: float | None = None
    error: str | None = None
    exit_code: int | None = None
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    before: bytes | None = field(default=None, repr=False, compare=False)
    """The file as it was, to which a run that is gone on with returns where its new settings are refused."""

    def end(self, state: Ending, exit_code: int, error: str = "") -> None:
        self.state, self.exit_code = state, exit_code
        self.error = next(iter(error.strip().splitlines()), None)


@contextmanager
def track_status(folder: Path, monitor: str, mode: Literal["min", "max"]) -> Iterator[Status]:
    """Claims the folder while the run lasts, and writes its status at the start and at the end. What ends the run says
    its state, unless `end` was called before; after an InputError the file is as it was, where `before` still holds it.
    Raises InputError where another run is at work in the folder."""
    with lock_folder(folder):
        path, began = folder / STATUS, time.perf_counter()
        status = Status(monitor, mode, before=path.read_bytes() if path.exists() else None)
        write(folder, status)
        try:
            yield status
        except BaseException as error:
            if status.state == "running":
                status.end(*_ending(error))
            status.seconds = time.perf_counter() - began
            try:
                if isinstance(error, InputError) and status.before is not None:
                    atomic_write(path, status.before)
                else:
                    write(folder, status)
            except OSError as another:  # such as a full disk, which may be what `error` says
                log.error("%s was not written: %s", path, another.strerror)
            raise
        if status.state == "running":
            status.end("done", 0)
        status.seconds = time.perf_counter() - began
        write(folder, status)


def _ending(error: BaseException) -> tuple[Ending, int, str]:
    """State, exit code and error of a run that it ends."""
    if isinstance(error, Pruned):
        return "pruned", 0, str(error)
    if isinstance(error, InputError):
        return "failed", EXIT_CODE, str(error)
    if isinstance(error, Interrupted):
        return "interrupted", error.exit_code, str(error)
    said = f"{type(error).__name__}: {error}"
    return ("failed", 1, said) if isinstance(error, Exception) else ("interrupted", INTERRUPTED, said)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Holds the folder while the run lasts; the system lets go of it when the process ends, however it ends."""
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: another run is at work in this folder. Wait for it, or choose another folder."
            ) from error
        except OSError as error:
            raise InputError(
                f"{folder}: files cannot be locked there ({error.strerror}), by which a run knows that no other is at"
                " work in its folder. Choose a folder on another file system."
            ) from error
        _clean(folder)
        yield


def _clean(folder: Path) -> None:
    """Removes what a process that was killed was writing. Runs below, which others may hold, do so themselves."""
    for path in list(folder.iterdir()):
        if path.name.startswith(".") and path.name.endswith(UNFINISHED):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif path.is_dir() and not (path / LOCK).exists():
            _clean(path)


def write(folder: Path, status: Status) -> None:
    """Whole or not at all."""
    facts = asdict(status)
    del facts["before"]
    facts["value"] = status.value if status.value is not None and math.isfinite(status.value) else None
    atomic_write(folder / STATUS, json.dumps(facts, indent=2).encode())


def read(folder: Path) -> Status | None:
    """None where no run has begun. A run that is said to be running and has let go of its folder was killed: it is
    interrupted. Raises InputError where the file is no status."""
    path = folder / STATUS
    try:
        status = Status(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} is no status of a run ({error}): delete it, and the run counts as not begun."
        ) from error
    if status.state == "running" and not _held(folder):
        status.end("interrupted", 1, f"process {status.pid} on {status.host} is gone")
    return status


def _held(folder: Path) -> bool:
    """Whether a process has claimed the folder."""
    try:
        with (folder / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:  # nobody can say so here, as on a file system without locks
        return True
    return False
