"""Delimited text -> rows of String cells with their line numbers; rows of another length are rejected."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from gzip import GzipFile
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import polars as pl

from datamodules.schema import DataError

if TYPE_CHECKING:
    import _csv

BLOCK = 1 << 22
"""Number of bytes read at a time."""
MAX_QUOTED = 1 << 23
"""Number of bytes after which an unclosed quote is treated as a character."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SEPARATORS = ",\t;|"
SHOWN = 200
"""Number of characters of a rejected row that are kept."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a file: their cells, String; the first line of each row, Int64; and for each rejected row its line,
    the violated rule and its text.
    """

    cells: pl.DataFrame
    lines: pl.Series
    rejected: list[tuple[int, str, str]]


def read_delimited(
    file: BinaryIO | GzipFile, name: str, *, separator: str | None, names: Sequence[str] | None
) -> Iterator[Rows]:
    """Yields the rows of a file block by block. Raises DataError, with `name` and the line, if it is not a table.

    The default separator is the most frequent one in the first line. Without `names`, the first line is the header.
    Cells may be quoted as in RFC 4180. In tab-separated files, which are rarely quoted, quotes that violate its rules
    are ordinary characters.
    """
    blocks = _blocks(file)
    first = next(blocks, b"").removeprefix(BYTE_ORDER_MARK)
    if not first.strip():
        raise DataError(f"{name}: the file is empty")
    text = decode(first, name, 1)
    if "\n" not in text and "\r" in text:
        raise DataError(
            f"{name}: its lines end in carriage returns only; convert the file, as with: tr '\\r' '\\n' < OLD > NEW"
        )
    separator = separator or _most_frequent_separator(text)
    source = io.StringIO(text, newline="")
    header = [cell.strip() for cell in next(row for row in _reader(source, separator) if row)]
    line = 1
    if names is None:
        names = _column_names(header, name)
        line += text.count("\n", 0, source.tell())
        first = text[source.tell() :].encode()
    elif len(names) != len(header):
        raise DataError(f"{name}, line 1: {len(header)} fields, but data.names gives {len(names)}: {', '.join(names)}")
    for block in chain([first], blocks):
        yield _parse(block, name, line, separator, names)
        line += _count(block, "\n")


def _most_frequent_separator(text: str) -> str:
    """The most frequent separator outside quotes in the first line."""
    header = re.sub('"[^"]*"', "", text[: 1 << 16]).lstrip().partition("\n")[0]
    return max(SEPARATORS, key=header.count)


def _blocks(file: BinaryIO | GzipFile) -> Iterator[bytes]:
    """Yields blocks of complete lines; a quoted cell with line breaks is not split."""
    while block := file.read(BLOCK) + file.readline():
        if block.count(b'"') % 2:
            block += b"".join(_to_quote(file, MAX_QUOTED - len(block)))
        yield block


def _to_quote(file: BinaryIO | GzipFile, limit: int) -> Iterator[bytes]:
    """Yields the lines up to one with an odd number of quotes, but about `limit` bytes at most."""
    while limit > 0 and (line := file.readline()):
        yield line
        limit = 0 if line.count(b'"') % 2 else limit - len(line)


def _parse(block: bytes, name: str, line: int, separator: str, names: Sequence[str]) -> Rows:
    if not block:
        return Rows(_read_cells(b"", separator, names, None), pl.Series(dtype=pl.Int64), [])
    return _parse_plain(block, line, separator, names) or _parse_rows(block, name, line, separator, names)


def _parse_plain(block: bytes, line: int, separator: str, names: Sequence[str]) -> Rows | None:
    """Reads a block with polars if it has no quotes and every line is a row of the table; otherwise returns None."""
    rows = _count(block, "\n")
    if b'"' in block or not block.endswith(b"\n") or not _count(block, separator) == rows * (len(names) - 1) > 0:
        return None
    try:
        # Polars refuses lines with too many separators; as the total is right, no line has too few.
        return Rows(_read_cells(block, separator, names, None), pl.int_range(line, line + rows, eager=True), [])
    except pl.exceptions.PolarsError:
        return None


def _parse_rows(block: bytes, name: str, line: int, separator: str, names: Sequence[str]) -> Rows:
    """Finds the start and number of fields of each row, then reads those of the right length with polars."""
    data = np.frombuffer(block, np.uint8)
    newlines = np.flatnonzero(data == ord("\n"))
    separators = np.flatnonzero(data == ord(separator))
    quotes = np.flatnonzero(data == ord('"'))
    if not _well_formed(data, quotes, ord(separator)):
        if separator != "\t":
            return _parse_exactly(block, name, line, separator, names)
        quotes = quotes[:0]
    ends = newlines[np.searchsorted(quotes, newlines) % 2 == 0]
    separators = separators[np.searchsorted(quotes, separators) % 2 == 0]
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(block))
    starts = np.append(0, ends + 1)[: len(ends)]
    fields = np.diff(np.searchsorted(separators, ends), prepend=0) + 1
    blank = (ends == starts) | ((ends == starts + 1) & (data[np.minimum(starts, len(data) - 1)] == ord("\r")))
    lines = np.searchsorted(newlines, starts) + line
    good = (fields == len(names)) & ~blank

    good_rows = block
    if not good.all():
        good_rows = b"".join(block[start : end + 1] for start, end in zip(starts[good], ends[good], strict=True))
    try:
        cells = _read_cells(good_rows, separator, names, '"' if len(quotes) else None)
    except pl.exceptions.ComputeError:
        decode(block, name, line)  # raises DataError with the line if this is the cause
        raise
    if len(cells) != good.sum():
        return _parse_exactly(block, name, line, separator, names)
    rejected = [
        (
            int(lines[row]),
            _length(int(fields[row]), names),
            _shown(block[starts[row] : ends[row]].decode(errors="replace")),
        )
        for row in np.flatnonzero(~good & ~blank)
    ]
    return Rows(cells, pl.Series(lines[good], dtype=pl.Int64), rejected)


def _count(block: bytes, character: str) -> int:
    """`block.count(character)`, ten times as fast for frequent characters."""
    return int(np.count_nonzero(np.frombuffer(block, np.uint8) == ord(character)))


def _read_cells(block: bytes, separator: str, names: Sequence[str], quote: str | None) -> pl.DataFrame:
    schema = dict.fromkeys(names, pl.String)
    if not block:
        return pl.DataFrame(schema=schema)
    return pl.read_csv(
        io.BytesIO(block),
        has_header=False,
        schema=schema,
        separator=separator,
        quote_char=quote,
        empty_string_is_null=False,
    )


def _well_formed(data: np.ndarray, quotes: np.ndarray, separator: int) -> bool:
    """Returns whether every quote opens a field, closes one, or is doubled inside one."""
    if len(quotes) % 2:
        return False
    # At the ends of the block this looks at the quote itself, which is allowed.
    before_opening = data[np.maximum(quotes[::2] - 1, 0)]
    after_closing = data[np.minimum(quotes[1::2] + 1, len(data) - 1)]
    borders = [separator, ord("\n"), ord('"')]
    return _all_in(before_opening, borders) and _all_in(after_closing, [*borders, ord("\r")])


def _all_in(data: np.ndarray, allowed: Sequence[int]) -> bool:
    table = np.zeros(256, bool)
    table[allowed] = True
    return bool(table[data].all())


def _parse_exactly(block: bytes, name: str, line: int, separator: str, names: Sequence[str]) -> Rows:
    """Reads a block with misplaced quotes by Python's reader, which is slow."""
    text = decode(block, name, line)
    source = io.StringIO(text, newline="")
    rows: list[list[str]] = []
    lines: list[int] = []
    rejected: list[tuple[int, str, str]] = []
    begin = end = 0
    for row in _reader(source, separator):
        line += text.count("\n", begin, end)
        begin, end = end, source.tell()
        if row and len(row) != len(names):
            rejected.append((line, _length(len(row), names), _shown(text[begin:end])))
        elif "\n" in text[begin:end].rstrip() and not _is_strict(text[begin:end], separator):
            rejected.append((line, "a closing quote inside a cell", _shown(text[begin:end])))
        elif row:
            rows.append(row)
            lines.append(line)
    if text.count("\n", begin) > 1 and text.count('"', begin) % 2:
        raise DataError(f"{name}, line {line}: a quote opens a cell here and is never closed; fix the line")
    cells = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
    return Rows(cells, pl.Series(lines, dtype=pl.Int64), rejected)


def _length(fields: int, names: Sequence[str]) -> str:
    return f"{fields} fields instead of {len(names)}"


def _is_strict(row: str, separator: str) -> bool:
    """Returns whether the quotes of a row are valid; otherwise it may have swallowed lines up to the next quote."""
    try:
        list(csv.reader(io.StringIO(row, newline=""), delimiter=separator, strict=True))
    except csv.Error:
        return False
    return True


def _reader(source: io.StringIO, separator: str) -> "_csv.Reader":
    csv.field_size_limit(1 << 30)
    return csv.reader(source, delimiter=separator)


def _shown(row: str) -> str:
    return row.rstrip("\r\n")[:SHOWN]


def decode(block: bytes, name: str, line: int) -> str:
    """Decodes a block that starts at `line`. Raises DataError, with line and byte, if it is not UTF-8."""
    try:
        return block.decode()
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if line == 1 and block.startswith((b"\xff\xfe", b"\xfe\xff")) else "WINDOWS-1252"
        line += block.count(b"\n", 0, error.start)
        raise DataError(
            f"{name}, line {line}: byte 0x{block[error.start]:02x} is not UTF-8;"
            f" convert the file, as with: iconv -f {encoding} -t UTF-8 OLD > NEW"
        ) from error


def _column_names(header: Sequence[str], name: str) -> list[str]:
    """The names of the columns; one without a name, such as an index, is named by its position."""
    names = [column or f"column_{position}" for position, column in enumerate(header, start=1)]
    for column in names:
        if names.count(column) > 1:
            raise DataError(
                f"{name}, line 1: {names.count(column)} columns are named {column!r}; rename one, or give all names"
                " with data.names"
            )
    return names
