"""Reads files as Polars frames of raw cells, with the file and line of each row."""

import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl
from torch import Tensor

from common.cells import as_text
from datamodules.readers.byte_streams import STANDARD_INPUT, open_bytes
from datamodules.readers.delimited import BYTE_ORDER_MARK, SHOWN, decode, read_delimited
from datamodules.schema import DataError

FILE, LINE = "lathe.file", "lathe.line"
BAD = pl.Schema({"file": pl.String, "line": pl.Int64, "column": pl.String, "rule": pl.String, "value": pl.String})
"""Schema of bad cells and rows: location, violated rule and value; the column is "" for a whole row."""
DELIMITED = {".csv": None, ".tsv": "\t", ".tab": "\t", ".txt": None, ".data": None}
"""Suffixes of delimited text, with the separator if the suffix implies it."""
JSON_LINES = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".feather", ".ipc")
SUFFIXES = (*DELIMITED, *JSON_LINES, *PARQUET, *ARROW)
SUPPORTED = f"{' '.join(SUFFIXES)}, and text also as .gz and .zst"
CHUNK = 65_536
"""Number of rows per chunk."""


@dataclass(frozen=True)
class Raw:
    """Raw rows: `frame` has the raw cells with FILE and LINE; `bad` has rejected rows in the schema BAD.

    LINE is the first line of a row, from 1, or the row number in Parquet and Arrow files. Cells of delimited text are
    String; an empty cell, quoted or not, is "".
    """

    frame: pl.DataFrame
    bad: pl.DataFrame
    images: Mapping[str, Tensor] = field(default_factory=dict)
    """Decoded images by column, uint8 (rows, C, H, W); the cells of such a column give the source of the image."""

    @property
    def root(self) -> Path:
        """The folder that was read, or that of the file. Paths in cells are relative to it and may not leave it."""
        file = Path(self.frame[FILE][0]) if len(self.frame) else Path()
        return file if file.is_dir() else file.parent


def concat(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Concatenates chunks; columns of different types become numbers if all types are numeric, otherwise text."""
    for name in dict.fromkeys(name for frame in frames for name in frame.columns):
        kinds = {frame.schema.get(name, pl.Null) for frame in frames} - {pl.Null}
        if len(kinds) > 1 and not all(kind.is_numeric() for kind in kinds):
            frames = [frame.with_columns(as_text(frame[name])) if name in frame.columns else frame for frame in frames]
    return pl.concat(frames, how="diagonal_relaxed")


def read_share(path: str | Path | Sequence[str], rank: int, world: int, **settings: Any) -> Iterator[tuple[int, Raw]]:
    """Yields the chunks of one of `world` processes, each with its number among all chunks.

    With Parquet, each process reads a range of chunks, and so only their row groups. Other formats are read completely
    by each process, which keeps its chunks.
    """
    files = find(path)
    if world == 1 or not all(_format(file) in PARQUET for file in files):
        for number, raw in enumerate(read_chunks(files, rows=CHUNK, **settings)):
            if number % world == rank:
                yield number, raw
        return
    chunks = [(file, first) for file in files for first in range(0, _count_rows(file), CHUNK)]
    with _naming_file(files[0]):
        columns = [*pl.scan_parquet(files[0], glob=False).collect_schema(), FILE, LINE]
    for number in range(len(chunks) * rank // world, len(chunks) * (rank + 1) // world):
        file, first = chunks[number]
        for raw in _read_file(file, None, None, CHUNK, first=first):
            yield number, Raw(_as_columns(raw.frame, columns, file, files[0]), raw.bad)
            break


def read_chunks(
    path: str | Path | Sequence[str],
    *,
    separator: str | None = None,
    names: Sequence[str] | None = None,
    replace_invalid: bool = False,
    rows: int = CHUNK,
) -> Iterator[Raw]:
    """Yields chunks of at most `rows` rows; the memory does not grow with the files.

    Formats are delimited text (.csv .tsv .tab .txt .data) and JSON lines (.jsonl .ndjson .json), also as .gz or .zst;
    Parquet; and Arrow. All files must have the same columns, except that JSON lines, and so their chunks, may omit
    keys.

    Args:
        path: A file, several files, a glob, a folder, or "-" for CSV from standard input.
        separator: Separator of delimited text; found automatically if None.
        names: Column names of delimited text without a header.
        replace_invalid: Replaces bytes that are not UTF-8 by U+FFFD and counts them.
        rows: Maximum number of rows per chunk.

    Raises:
        DataError: The files cannot be read; the message names the file and line.
    """
    _check_given(names or ())
    columns: list[str] = []
    first = ""
    found = 0
    bad: tuple[str, int, str, str, str] | None = None
    files = find(path)
    for file in files:
        for raw in _read_file(file, separator, names, rows, replace_invalid=replace_invalid):
            bad = bad or next(raw.bad.iter_rows(), None)
            if not columns:
                columns, first = raw.frame.columns, file
            elif raw.frame.columns != columns and _format(file) not in JSON_LINES:
                raw = Raw(_as_columns(raw.frame, columns, file, first), raw.bad)
            found += len(raw.frame)
            yield raw
    if found:
        return
    if bad:
        raise DataError(
            f"{bad[0]}, line {bad[1]}: {bad[3]}, and no row is valid; give the separator with data.separator, or fix"
            " the file"
        )
    raise DataError(f"{', '.join(files)}: {'it has a header but' if columns else 'it has'} no rows")


def find(path: str | Path | Sequence[str]) -> list[str]:
    """The files of a path, a glob or a folder, or of several; those of a glob or folder are sorted by name."""
    if not path:
        raise DataError("no file is given: give a file, several files, a glob or a folder")
    if not isinstance(path, str | Path):
        return [file for one in path for file in find(one)]
    text = str(Path(path).expanduser())
    if text == STANDARD_INPUT or Path(text).is_file():
        return [text]
    if Path(text).is_dir():
        files = [file for file in find(f"{glob.escape(text)}/*") if _format(file) in SUFFIXES]
        if not files:
            raise DataError(f"{text}: no file in this folder is a table; supported are {SUPPORTED}")
        return files
    files = sorted(file for file in glob.glob(text, recursive=True) if Path(file).is_file())
    if files:
        return files
    if glob.has_magic(text):
        raise DataError(f"no file matches {text}")
    folder = Path(text).parent
    if not folder.is_dir():
        raise DataError(
            f"no such file: {text}; the folder {folder} does not exist either (for a ready table, its file in conf/data"
            " says where to get it)"
        )
    near = get_close_matches(Path(text).name, [file.name for file in folder.iterdir()], n=1)
    raise DataError(f"no such file: {text}" + (f"; did you mean {folder / near[0]}?" if near else ""))


def _format(file: str) -> str:
    """The suffix that gives the format, in lower case, without .gz or .zst."""
    suffixes = [suffix.lower() for suffix in Path(file).suffixes]
    if suffixes[-1:] in ([".gz"], [".zst"]):
        suffixes.pop()
    return ".csv" if file == STANDARD_INPUT else suffixes[-1] if suffixes else ""


def _read_file(
    file: str,
    separator: str | None,
    names: Sequence[str] | None,
    rows: int,
    *,
    first: int = 0,
    replace_invalid: bool = False,
) -> Iterator[Raw]:
    """Yields the chunks of a file; `first` is the first row to read, for Parquet only."""
    kind = _format(file)
    if kind not in SUFFIXES:
        raise DataError(f"{file}: unknown format; supported are {SUPPORTED}")
    if names and kind not in DELIMITED:
        raise DataError(f"{file}: data.names is for text without a header, but {kind} files contain names; remove it")
    with _naming_file(file):
        if kind in DELIMITED:
            with open_bytes(file, replace_invalid) as stream:
                yield from _read_delimited(stream, file, separator or DELIMITED[kind], names, rows)
        elif kind in JSON_LINES:
            with open_bytes(file, replace_invalid) as stream:
                yield from _read_json_lines(stream, file, rows)
        elif kind in PARQUET:
            yield from _read_typed(pl.scan_parquet(file, glob=False), file, rows, first)
        else:
            yield from _read_typed(pl.scan_ipc(file, glob=False), file, rows)


@contextmanager
def _naming_file(file: str) -> Iterator[None]:
    """Converts errors of reading a file to a DataError that names the file."""
    try:
        yield
    except (pl.exceptions.PolarsError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"{file}: the file is damaged, or its suffix is wrong: {reason}") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def _read_delimited(
    stream: BinaryIO | gzip.GzipFile, file: str, separator: str | None, names: Sequence[str] | None, rows: int
) -> Iterator[Raw]:
    """Cuts blocks into chunks of exactly `rows` rows, since rounding errors depend on where chunks end."""
    rest: pl.DataFrame | None = None
    bad = pl.DataFrame(schema=BAD)
    for part in read_delimited(stream, file, separator=separator, names=names):
        _check_columns(part.cells.schema, file)
        rejected = [(file, line, "", rule, text) for line, rule, text in part.rejected]
        bad = bad.vstack(pl.DataFrame(rejected, schema=BAD, orient="row"))
        frame = part.cells.with_columns(pl.lit(file).alias(FILE), part.lines.alias(LINE))
        rest = frame if rest is None else rest.vstack(frame)
        while len(rest) > rows:
            yield Raw(rest.head(rows), bad)
            rest, bad = rest.slice(rows), bad.clear()
    if rest is not None:
        yield Raw(rest, bad)


def _count_rows(file: str) -> int:
    with _naming_file(file):
        return int(pl.scan_parquet(file, glob=False).select(pl.len()).collect().item())


def _read_typed(table: pl.LazyFrame, file: str, rows: int, first: int = 0) -> Iterator[Raw]:
    _check_columns(table.collect_schema(), file)
    table = (
        table.slice(first, rows if first else None)
        .with_row_index(LINE, offset=first + 1)
        .with_columns(pl.col(LINE).cast(pl.Int64), pl.lit(file).alias(FILE))
    )
    table = table.select(pl.exclude(FILE, LINE), FILE, LINE)
    for frame in table.collect_batches(chunk_size=rows):
        yield Raw(frame, pl.DataFrame(schema=BAD))


def _read_json_lines(stream: BinaryIO | gzip.GzipFile, file: str, rows: int) -> Iterator[Raw]:
    numbered = ((line, text.removeprefix(BYTE_ORDER_MARK)) for line, text in enumerate(stream, 1) if text.strip())
    frame: pl.DataFrame | None = None
    while texts := list(islice(numbered, rows)):
        bad: list[tuple[str, int, str, str, str]] = []
        try:
            frame = _parse_json_lines(texts)
        except pl.exceptions.ComputeError:
            for line, text in texts:
                decode(text, file, line)  # raises DataError with the line if this is the cause
                if not _is_object(text):
                    bad.append((file, line, "", "not a JSON object", _shown(text)))
            if not bad:
                raise
            bad_lines = {line for _, line, *_ in bad}
            texts = [(line, text) for line, text in texts if line not in bad_lines]
            if texts:
                frame = _parse_json_lines(texts)
            elif frame is not None:
                frame = frame.clear()
            else:
                raise DataError(
                    f"{file}, line {bad[0][1]}: {bad[0][4]!r} is not a JSON object; each line must be one, as with:"
                    " jq -c '.[]' OLD > NEW"
                ) from None
        _check_columns(frame.schema, file)
        numbers = pl.Series(LINE, [line for line, _ in texts], pl.Int64)
        yield Raw(frame.with_columns(pl.lit(file).alias(FILE), numbers), pl.DataFrame(bad, schema=BAD, orient="row"))


def _parse_json_lines(texts: Sequence[tuple[int, bytes]]) -> pl.DataFrame:
    return pl.read_ndjson(io.BytesIO(b"".join(text for _, text in texts)), infer_schema_length=None)


def _is_object(text: bytes) -> bool:
    """Returns whether a text is a standard JSON object, without NaN."""
    try:
        return isinstance(json.loads(text, parse_constant=_refuse), dict)
    except ValueError:
        return False


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _shown(text: bytes) -> str:
    return text.decode(errors="replace").strip()[:SHOWN]


def _check_columns(schema: pl.Schema, file: str) -> None:
    for name, kind in schema.items():
        if kind.is_nested() or kind in (pl.Binary, pl.Object):
            raise DataError(f"{file}: column {name!r} holds {kind}; a cell must be one value: split it into columns")
        if name in (FILE, LINE):
            raise DataError(f"{file}: the column name {name!r} is reserved for row locations; rename the column")


def _check_given(names: Sequence[str]) -> None:
    for position, name in enumerate(names):
        if not name or name in names[:position]:
            problem = f"{name!r} is given twice" if name else f"name {position + 1} is empty"
            raise DataError(f"data.names: {problem}; each column needs a unique name")


def _as_columns(frame: pl.DataFrame, columns: Sequence[str], file: str, first: str) -> pl.DataFrame:
    """Orders the columns as in the first file. Raises DataError if they are not the same."""
    extra = [name for name in frame.columns if name not in columns]
    absent = [name for name in columns if name not in frame.columns]
    if extra or absent:
        what = [f"{word} {', '.join(names)}" for word, names in (("lacks", absent), ("also has", extra)) if names]
        raise DataError(f"{file}: other columns than {first}: it {' and '.join(what)}; give files of one table")
    return frame.select(columns)
