"""A cache of prepared data on disk, keyed by settings, files and code; entries are complete or absent."""

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

PACKAGES = ("datamodules", "common")
"""Packages whose code affects the prepared data."""


def key(settings: Mapping[str, Any], files: Sequence[str]) -> str:
    """The cache key of settings and files; a file is identified by its path, size and modification time."""
    root = Path(__file__).parents[2]
    sources = [file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))]
    code = hashlib.sha256(b"".join(file.read_bytes() for file in sources))
    stamps = [(file, status.st_size, status.st_mtime_ns) for file in files for status in [Path(file).stat()]]
    content = [settings, stamps, code.hexdigest(), torch.__version__, pl.__version__]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:20]


def find_or_make(folder: Path, make: Callable[[Path], None]) -> bool:
    """Returns whether `folder` exists; if not, `make` fills a temporary folder next to it, which is then renamed.

    If several jobs need it at the same time, one makes it and the others wait. The processes of one job make it
    together.
    """
    group = ProcessGroup()
    is_first = group.rank == 0
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")) if is_first else nullcontext():
        if group.gather(folder.exists())[0]:
            return True
        if is_first:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
        group.wait()
        try:
            make(unfinished)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        if is_first:
            unfinished.rename(folder)
        group.wait()
    return False


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released when the process ends, even if it is killed
        yield
