"""Atomic writes of files."""

import os
from pathlib import Path

UNFINISHED = ".unfinished"
"""Suffix of temporary files; one that is left over can be deleted when no process writes to the folder."""


def atomic_write(path: Path, content: bytes | memoryview) -> None:
    """Writes a temporary file, syncs it to disk, and renames it, so that readers always find the old or new content.

    Raises OSError and keeps the old file if it fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # makes the rename durable
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
