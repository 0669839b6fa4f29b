"""Prepared data on disk, found again by what they were made of: made once, whole or not there."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import polars as pl
import torch

from common.distributed import ProcessGroup

ROOMS = ("datamodules", "common")
"""What is prepared hangs on the code of these."""


def key(settings: Mapping[str, Any], files: Sequence[str]) -> str:
    """A name for what these settings make of these files; a file is known by its path, size and time of change."""
    house = Path(__file__).parents[2]
    sources = [file for room in ROOMS for file in sorted((house / room).rglob("*.py"))]
    code = hashlib.sha256(b"".join(file.read_bytes() for file in sources))
    seen = [(file, status.st_size, status.st_mtime_ns) for file in files for status in [Path(file).stat()]]
    made_of = [settings, seen, code.hexdigest(), torch.__version__, pl.__version__]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:20]


def find_or_make(folder: Path, make: Callable[[Path], None]) -> bool:
    """Whether `folder` was there; where not, `make` fills one beside it, which takes the name once it is whole.

    Of several jobs that want it at the same time one makes it, and the others wait; the processes of one job make it
    together.
    """
    ranks = ProcessGroup()
    first = ranks.rank == 0
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")) if first else nullcontext():
        if ranks.gather(folder.exists())[0]:
            return True
        if first:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
        ranks.wait()
        try:
            make(unfinished)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        if first:
            unfinished.rename(folder)
        ranks.wait()
    return False


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # let go when the process ends, however it ends
        yield
