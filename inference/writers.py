"""Writes rows chunk by chunk and atomically, as CSV, Parquet or JSON lines, depending on the file extension."""

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
    """Yields a function that appends rows. The file appears when the block ends without an error. With "-", CSV is
    written to standard output immediately.

    At least one chunk must be appended; it may be empty. Raises InputError for an unknown extension, and if the file
    cannot be written.
    """
    if path == STANDARD:
        yield _to_standard_output()
        return
    target = Path(path)
    if target.suffix not in SINKS:
        raise InputError(
            f"{path}: cannot write rows as '{target.suffix}'. Use one of the extensions {', '.join(SINKS)}."
        )
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
            complete = Path(name) / target.name
            SINKS[target.suffix](pl.scan_parquet(parts), complete)
            complete.replace(target)


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
    """Turns errors of writing a file into an InputError that names it."""
    try:
        yield
    except (OSError, pl.exceptions.ComputeError) as error:  # on a full disk, Polars raises either
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path}: cannot be written: {reason}.") from error
