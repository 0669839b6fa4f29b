"""status.json in a run folder: the state of the run, for the table of a sweep, for a search, and for resuming."""

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
"""States of a run that need no resume."""
STATUS, LOCK = "status.json", ".lock"
INTERRUPTED = 130
"""Exit code of a process ended by Ctrl-C."""


class Pruned(Exception):
    """Ends a run that a search prunes; the message says why."""


@dataclass
class Status:
    """State of a run.

    `value`: of `monitor`, null if there is none or it is not finite. `error`: first line of the error that ended the
    run. `exit_code`: of the run alone. `started`: ISO 8601, UTC.
    """

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
    """status.json before this resume; restored if the new settings are rejected."""

    def end(self, state: Ending, exit_code: int, error: str = "") -> None:
        self.state, self.exit_code = state, exit_code
        self.error = next(iter(error.strip().splitlines()), None)


@contextmanager
def track_status(folder: Path, monitor: str, mode: Literal["min", "max"]) -> Iterator[Status]:
    """Locks the folder during a run, and writes its status at the start and at the end.

    The exception that ends the run determines the state, unless `end` was called before. After an InputError, the file
    is restored from `before`, unless that is None. Raises InputError if another run uses the folder.
    """
    with lock_folder(folder):
        path, start = folder / STATUS, time.perf_counter()
        status = Status(monitor, mode, before=path.read_bytes() if path.exists() else None)
        write(folder, status)
        try:
            yield status
        except BaseException as error:
            if status.state == "running":
                status.end(*_ending(error))
            status.seconds = time.perf_counter() - start
            try:
                if isinstance(error, InputError) and status.before is not None:
                    atomic_write(path, status.before)
                else:
                    write(folder, status)
            except OSError as write_error:  # such as a full disk, which may be the reason of `error` too
                log.error("%s was not written: %s", path, write_error.strerror)
            raise
        if status.state == "running":
            status.end("done", 0)
        status.seconds = time.perf_counter() - start
        write(folder, status)


def _ending(error: BaseException) -> tuple[Ending, int, str]:
    """State, exit code and error of a run that this exception ends."""
    if isinstance(error, Pruned):
        return "pruned", 0, str(error)
    if isinstance(error, InputError):
        return "failed", EXIT_CODE, str(error)
    if isinstance(error, Interrupted):
        return "interrupted", error.exit_code, str(error)
    message = f"{type(error).__name__}: {error}"
    return ("failed", 1, message) if isinstance(error, Exception) else ("interrupted", INTERRUPTED, message)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Locks the folder inside this context. The system releases the lock when the process ends, for any reason."""
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: another run is using this folder. Wait until it ends, or choose another folder."
            ) from error
        except OSError as error:
            raise InputError(
                f"{folder}: files cannot be locked here ({error.strerror}), but a run must lock its folder. Choose a"
                " folder on another file system."
            ) from error
        _clean(folder)
        yield


def _clean(folder: Path) -> None:
    """Removes the temporary files of a killed process, but not in run folders below, which have their own lock."""
    for path in list(folder.iterdir()):
        if path.name.startswith(".") and path.name.endswith(UNFINISHED):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif path.is_dir() and not (path / LOCK).exists():
            _clean(path)


def write(folder: Path, status: Status) -> None:
    """Writes status.json atomically."""
    facts = asdict(status)
    del facts["before"]
    facts["value"] = status.value if status.value is not None and math.isfinite(status.value) else None
    atomic_write(folder / STATUS, json.dumps(facts, indent=2).encode())


def read(folder: Path) -> Status | None:
    """Reads status.json; None if no run has started. A running run whose folder is not locked was killed: interrupted.

    Raises InputError if the file is not valid.
    """
    path = folder / STATUS
    try:
        status = Status(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} is not a valid status of a run ({error}): delete it, and the run counts as not started."
        ) from error
    if status.state == "running" and not _is_locked(folder):
        status.end("interrupted", 1, f"process {status.pid} on {status.host} is gone")
    return status


def _is_locked(folder: Path) -> bool:
    """Returns whether a process has locked the folder."""
    try:
        with (folder / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:  # unknown, as on a file system without locks
        return True
    return False
