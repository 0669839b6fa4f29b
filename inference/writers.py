"""Rows written to a file chunk by chunk: CSV, Parquet or JSON lines by its ending, whole or not at all."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from common.atomic_write import UNFINISHED
from common.errors import InputError

Append = Callable[[pl.DataFrame], None]

STANDARD = "-"
SINKS: dict[str, Callable[[pl.LazyFrame, Path], object]] = {
    ".csv": pl.LazyFrame.sink_csv,
    ".parquet": pl.LazyFrame.sink_parquet,
    ".jsonl": pl.LazyFrame.sink_ndjson,
}


@contextmanager
def writing(path: str) -> Iterator[Append]:
    """Gives a function that appends rows; the file is there when the block ends without an error. To "-", standard
    output, CSV is written at once.

    At least one chunk must be appended, be it without rows. Raises InputError for an unknown ending, and where the
    system does not take the file.
    """
    if path == STANDARD:
        yield _to_standard_output()
        return
    target = Path(path)
    if target.suffix not in SINKS:
        raise InputError(f"{path}: rows cannot be written as '{target.suffix}'. End the name with {', '.join(SINKS)}.")
    with as_input_error(path):
        folder = tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=UNFINISHED, dir=target.parent)
    with folder as name:
        parts: list[Path] = []

        def append(frame: pl.DataFrame) -> None:
            parts.append(Path(name) / f"{len(parts)}.part")
            with as_input_error(path):
                frame.write_parquet(parts[-1])

        yield append
        with as_input_error(path):
            whole = Path(name) / target.name
            SINKS[target.suffix](pl.scan_parquet(parts), whole)
            whole.replace(target)


def _to_standard_output() -> Append:
    first = True

    def append(frame: pl.DataFrame) -> None:
        nonlocal first
        sys.stdout.write(frame.write_csv(include_header=first))
        sys.stdout.flush()
        first = False

    return append


@contextmanager
def as_input_error(path: str) -> Iterator[None]:
    """What the system refuses of a file to be written, as an InputError that names it."""
    try:
        yield
    except (OSError, pl.exceptions.ComputeError) as error:  # polars gives a full disk the one name or the other
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path}: cannot be written: {reason}.") from error
