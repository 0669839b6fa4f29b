"""Byte streams of files: decompressed, and optionally with invalid UTF-8 replaced."""

import codecs
import gzip
import io
import logging
import sys
from typing import BinaryIO, cast

import polars as pl

log = logging.getLogger(__name__)

STANDARD_INPUT = "-"
ZSTANDARD = b"\x28\xb5\x2f\xfd"
"""First bytes of a .zst file."""


class _Repaired(io.RawIOBase):
    """The bytes of a stream, where bytes that are not UTF-8 are replaced by U+FFFD and counted."""

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
            log.warning("%s: replaced bytes that are not UTF-8 by U+FFFD: %s", self.file, f"{self.replaced:,}")
        self.stream.close()
        super().close()


class _Decompressed(io.RawIOBase):
    """The bytes of a .zst file, decompressed by polars a few lines at a time, since Python supports it only from 3.14.

    A carriage return before a line break inside a quoted cell is lost.
    """

    def __init__(self, file: str) -> None:
        with open(file, "rb") as stream:
            if stream.read(4) != ZSTANDARD:
                raise EOFError("not a Zstandard file")
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


def open_bytes(file: str, replace_invalid: bool) -> BinaryIO | gzip.GzipFile:
    """Opens a file or standard input, decompressed; `replace_invalid` replaces bytes that are not UTF-8 by U+FFFD."""
    stream = _decompress(file)
    return cast(BinaryIO, io.BufferedReader(_Repaired(stream, file))) if replace_invalid else stream


def _decompress(file: str) -> BinaryIO | gzip.GzipFile:
    if file == STANDARD_INPUT:
        return cast(BinaryIO, sys.stdin.buffer)
    if file.lower().endswith(".gz"):
        return gzip.open(file)
    if file.lower().endswith(".zst"):
        return cast(BinaryIO, io.BufferedReader(_Decompressed(file)))
    return open(file, "rb")
