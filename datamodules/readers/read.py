"""Files to Polars frames of raw cells, which keep the file and the line of each row."""

import codecs
import glob
import gzip
import io
import json
import logging
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import polars as pl
from torch import Tensor

from common.cells import as_text
from datamodules.readers.delimited import BYTE_ORDER_MARK, SHOWN, decode, read_delimited
from datamodules.schema import DataError

log = logging.getLogger(__name__)

FILE, LINE = "lathe.file", "lathe.line"
BAD = pl.Schema({"file": pl.String, "line": pl.Int64, "column": pl.String, "rule": pl.String, "value": pl.String})
"""Cells and rows that cannot be used: where they are, the rule they break ("" for the column where it is the row)."""
STANDARD_INPUT = "-"
DELIMITED = {".csv": None, ".tsv": "\t", ".tab": "\t", ".txt": None, ".data": None}
"""Endings of delimited text, and the separator where the ending says it."""
JSON_LINES = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".feather", ".ipc")
KNOWN = (*DELIMITED, *JSON_LINES, *PARQUET, *ARROW)
ENDINGS = f"{' '.join(KNOWN)}, and text also as .gz and .zst"
CHUNK = 65_536
"""Rows of a chunk."""
ZSTANDARD = b"\x28\xb5\x2f\xfd"
"""How such a file begins."""


@dataclass(frozen=True)
class Raw:
    """`frame`: raw cells as the file has them, with FILE and LINE (the line where the row begins, from 1; the number of
    the row in Parquet and Arrow). Cells of delimited text are String, an empty one "", quoted or not. `bad`: what is no
    row of the table, as BAD.
    """

    frame: pl.DataFrame
    bad: pl.DataFrame
    images: Mapping[str, Tensor] = field(default_factory=dict)
    """Image columns that come as pixels, uint8 (rows, C, H, W); their cells in the frame say where they are from."""

    @property
    def root(self) -> Path:
        """The folder of the file, or the folder that was read: paths in cells begin there, and may not leave it.
        Any folder where there are no rows.
        """
        file = Path(self.frame[FILE][0]) if len(self.frame) else Path()
        return file if file.is_dir() else file.parent


def concat(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Chunks one after the other; a column of more than one type becomes numbers if all are, and text otherwise."""
    for name in dict.fromkeys(name for frame in frames for name in frame.columns):
        kinds = {frame.schema.get(name, pl.Null) for frame in frames} - {pl.Null}
        if len(kinds) > 1 and not all(kind.is_numeric() for kind in kinds):
            frames = [frame.with_columns(as_text(frame[name])) if name in frame.columns else frame for frame in frames]
    return pl.concat(frames, how="diagonal_relaxed")


def read_share(path: str | Path | Sequence[str], rank: int, world: int, **settings: Any) -> Iterator[tuple[int, Raw]]:
    """The chunks of one of `world` processes that read the path together, each with its number among all.

    Of Parquet each process reads a run of chunks, and so only the row groups that hold them; other formats are read by
    all, and each keeps some of their chunks.
    """
    files = find(path)
    if world == 1 or not all(_format(file) in PARQUET for file in files):
        for number, raw in enumerate(read_chunks(files, rows=CHUNK, **settings)):
            if number % world == rank:
                yield number, raw
        return
    chunks = [(file, first) for file in files for first in range(0, _count_rows(file), CHUNK)]
    with _told(files[0]):
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
    """At most `rows` rows at a time, in memory that does not grow with the files.

    CSV and the like (.csv .tsv .tab .txt .data) and JSON lines (.jsonl .ndjson .json), also as .gz or .zst; Parquet;
    Arrow. `path`: a file, several, a glob, a folder, or "-" for CSV from standard input. All files have the same
    columns; only JSON lines may leave keys out, and then so may chunks. `names`: of the columns of delimited text
    without a header. `replace_invalid`: bytes of text that are no UTF-8 become U+FFFD, and are counted. Raises
    DataError, with file and line.
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
            f"{bad[0]}, line {bad[1]}: {bad[3]}, and no other row is better; give the separator with data.separator,"
            " or mend the file"
        )
    raise DataError(f"{', '.join(files)}: {'there is a header, but' if columns else 'there is'} no row in it")


def find(path: str | Path | Sequence[str]) -> list[str]:
    """The files that the path means; those of a glob or a folder in order of their names."""
    if not path:
        raise DataError("no file is named: give a file, several, a glob or a folder")
    if not isinstance(path, str | Path):
        return [file for one in path for file in find(one)]
    text = str(Path(path).expanduser())
    if text == STANDARD_INPUT or Path(text).is_file():
        return [text]
    if Path(text).is_dir():
        files = [file for file in find(f"{glob.escape(text)}/*") if _format(file) in KNOWN]
        if not files:
            raise DataError(f"{text}: no file in this folder is a table; known are {ENDINGS}")
        return files
    files = sorted(file for file in glob.glob(text, recursive=True) if Path(file).is_file())
    if files:
        return files
    if glob.has_magic(text):
        raise DataError(f"no file matches {text}")
    folder = Path(text).parent
    if not folder.is_dir():
        raise DataError(
            f"no such file: {text}; there is no folder {folder} either (for a ready table, its file in conf/data says"
            " where to get it)"
        )
    near = get_close_matches(Path(text).name, [file.name for file in folder.iterdir()], n=1)
    raise DataError(f"no such file: {text}" + (f"; did you mean {folder / near[0]}?" if near else ""))


def _format(file: str) -> str:
    """The ending that tells the format, in small letters."""
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
    """`first`: the row to begin with, of Parquet."""
    kind = _format(file)
    if kind not in KNOWN:
        raise DataError(f"{file}: its ending tells no format; known are {ENDINGS}")
    if names and kind not in DELIMITED:
        raise DataError(f"{file}: data.names is for text without a header, {kind} has names of its own; leave it out")
    with _told(file):
        if kind in DELIMITED:
            with _open(file, replace_invalid) as stream:
                yield from _read_delimited(stream, file, separator or DELIMITED[kind], names, rows)
        elif kind in JSON_LINES:
            with _open(file, replace_invalid) as stream:
                yield from _read_json_lines(stream, file, rows)
        elif kind in PARQUET:
            yield from _read_typed(pl.scan_parquet(file, glob=False), file, rows, first)
        else:
            yield from _read_typed(pl.scan_ipc(file, glob=False), file, rows)


@contextmanager
def _told(file: str) -> Iterator[None]:
    """What goes wrong while a file is read, as a DataError that names it."""
    try:
        yield
    except (pl.exceptions.PolarsError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"{file}: the file is damaged, or not what its ending says: {reason}") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


class _Repaired(io.RawIOBase):
    """The bytes of a stream, with what is no UTF-8 replaced by U+FFFD and counted."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, file: str) -> None:
        self.stream = stream
        self.file = file
        self.replaced = 0
        codecs.register_error("lathe.replace", self._replace)
        self.decoder = codecs.getincrementaldecoder("utf-8")("lathe.replace")
        self.rest = memoryview(b"")

    def _replace(self, error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        self.replaced += error.end - error.start
        return "\ufffd", error.end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self.rest:
            block = self.stream.read(1 << 20)
            self.rest = memoryview(self.decoder.decode(block, final=not block).encode())
            if not block:
                break
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count

    def close(self) -> None:
        if self.replaced and not self.closed:
            log.warning("%s: bytes that are no UTF-8 became U+FFFD: %s", self.file, f"{self.replaced:,}")
        self.stream.close()
        super().close()


class _Unpacked(io.RawIOBase):
    """The bytes of a .zst file, which Python reads from 3.14 on; polars unpacks it, some lines at a time.

    A carriage return before a line break inside a quoted cell is lost.
    """

    def __init__(self, file: str) -> None:
        with open(file, "rb") as stream:
            if stream.read(4) != ZSTANDARD:
                raise EOFError("it is no Zstandard file")
        self.parts = iter(pl.scan_lines(file, glob=False).collect_batches(chunk_size=10_000))
        self.rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self.rest and (part := next(self.parts, None)) is not None:
            self.rest = memoryview("".join(line + "\n" for line in part.to_series()).encode())
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count


def _open(file: str, replace_invalid: bool) -> BinaryIO | gzip.GzipFile:
    stream = _unpack(file)
    return cast(BinaryIO, io.BufferedReader(_Repaired(stream, file))) if replace_invalid else stream


def _unpack(file: str) -> BinaryIO | gzip.GzipFile:
    if file == STANDARD_INPUT:
        return cast(BinaryIO, sys.stdin.buffer)
    if file.lower().endswith(".gz"):
        return gzip.open(file)
    if file.lower().endswith(".zst"):
        return cast(BinaryIO, io.BufferedReader(_Unpacked(file)))
    return open(file, "rb")


def _read_delimited(
    stream: BinaryIO | gzip.GzipFile, file: str, separator: str | None, names: Sequence[str] | None, rows: int
) -> Iterator[Raw]:
    """Cuts the blocks into chunks of `rows` rows: where they end may not hang on bytes, as rounding hangs on them."""
    rest: pl.DataFrame | None = None
    bad = pl.DataFrame(schema=BAD)
    for part in read_delimited(stream, file, separator=separator, names=names):
        _check_columns(part.cells.schema, file)
        ragged = [(file, line, "", rule, text) for line, rule, text in part.ragged]
        bad = bad.vstack(pl.DataFrame(ragged, schema=BAD, orient="row"))
        frame = part.cells.with_columns(pl.lit(file).alias(FILE), part.lines.alias(LINE))
        rest = frame if rest is None else rest.vstack(frame)
        while len(rest) > rows:
            yield Raw(rest.head(rows), bad)
            rest, bad = rest.slice(rows), bad.clear()
    if rest is not None:
        yield Raw(rest, bad)


def _count_rows(file: str) -> int:
    with _told(file):
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
                decode(text, file, line)  # says where, if this is why
                if not _is_object(text):
                    bad.append((file, line, "", "no JSON object", _shown(text)))
            if not bad:
                raise
            wrong = {line for _, line, *_ in bad}
            texts = [(line, text) for line, text in texts if line not in wrong]
            if texts:
                frame = _parse_json_lines(texts)
            elif frame is not None:
                frame = frame.clear()
            else:
                raise DataError(
                    f"{file}, line {bad[0][1]}: {bad[0][4]!r} is no JSON object; each line must be one, as with:"
                    " jq -c '.[]' OLD > NEW"
                ) from None
        _check_columns(frame.schema, file)
        numbers = pl.Series(LINE, [line for line, _ in texts], pl.Int64)
        yield Raw(frame.with_columns(pl.lit(file).alias(FILE), numbers), pl.DataFrame(bad, schema=BAD, orient="row"))


def _parse_json_lines(texts: Sequence[tuple[int, bytes]]) -> pl.DataFrame:
    return pl.read_ndjson(io.BytesIO(b"".join(text for _, text in texts)), infer_schema_length=None)


def _is_object(text: bytes) -> bool:
    """Whether it is one by the standard, which has no NaN."""
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
            raise DataError(f"{file}: column {name!r} holds {kind}; a cell is one value: spread it over columns first")
        if name in (FILE, LINE):
            raise DataError(f"{file}: the name of column {name!r} is kept for the place of the row; rename the column")


def _check_given(names: Sequence[str]) -> None:
    for position, name in enumerate(names):
        if not name or name in names[:position]:
            wrong = f"{name!r} is given twice" if name else f"name {position + 1} is empty"
            raise DataError(f"data.names: {wrong}; each column needs a name of its own")


def _as_columns(frame: pl.DataFrame, columns: Sequence[str], file: str, first: str) -> pl.DataFrame:
    """The columns in the order of the first file."""
    extra = [name for name in frame.columns if name not in columns]
    lacking = [name for name in columns if name not in frame.columns]
    if extra or lacking:
        what = [f"{word} {', '.join(names)}" for word, names in (("lacks", lacking), ("has also", extra)) if names]
        raise DataError(f"{file}: not the columns of {first}: it {' and '.join(what)}; give files of one table")
    return frame.select(columns)
