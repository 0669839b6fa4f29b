"""Files that are there whole or not at all."""

import os
from pathlib import Path

UNFINISHED = ".unfinished"
"""Ending of what is being written: of no use once nobody writes in the folder."""


def atomic_write(path: Path, content: bytes | memoryview) -> None:
    """Writes under a temporary name, waits for the disk, and renames: whenever the process is killed, a reader finds
    the old file or the new one. Raises OSError, and leaves the old file as it was."""
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
    folder = os.open(path.parent, os.O_RDONLY)  # the new name is on the disk once the folder is
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
