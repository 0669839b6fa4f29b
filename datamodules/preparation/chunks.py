"""Cleaned rows in the order they were read, iterated several times; in memory up to a limit, then on disk."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
import torch
from polars import selectors
from torch import Tensor

from datamodules.loading.store import load_part, save_part, size_of

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Chunk:
    """Some rows: the number among all chunks, the cells, and the images by column, uint8 (rows, C, H, W)."""

    number: int
    frame: pl.DataFrame
    images: Mapping[str, Tensor]

    def filter(self, mask: np.ndarray) -> "Chunk":
        """The rows where `mask`, bool (rows,), is true."""
        if mask.all():
            return self
        index = torch.from_numpy(np.flatnonzero(mask))
        images = {name: pixels[index] for name, pixels in self.images.items()}
        return Chunk(self.number, self.frame.filter(pl.Series(mask)), images)


class Chunks:
    """Chunks that are kept in memory up to `limit` bytes, and further ones in `folder`."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self.bytes = 0
        self._chunks: list[Chunk | int] = []

    def append(self, chunk: Chunk) -> None:
        self.bytes += int(chunk.frame.estimated_size()) + size_of(dict(chunk.images))
        if self.bytes <= self.limit:
            self._chunks.append(chunk)
            return
        self.folder.mkdir(exist_ok=True)
        chunk.frame.write_ipc(self._file(chunk.number, "arrow"), compression="lz4")
        if chunk.images:
            save_part(self._file(chunk.number, "images"), dict(chunk.images))
        self._chunks.append(chunk.number)

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._chunks:
            if isinstance(chunk, Chunk):
                yield chunk
                continue
            images = self._file(chunk, "images")
            frame = pl.read_ipc(self._file(chunk, "arrow"))
            yield Chunk(chunk, frame, load_part(images) if images.exists() else {})

    def _file(self, number: int, kind: str) -> Path:
        return self.folder / f"{number}.{kind}"


def as_strings(frame: pl.DataFrame) -> pl.DataFrame:
    """Casts Categorical columns to String."""
    return frame.cast({selectors.categorical(): pl.String})


def in_parallel(function: Callable[[S], T], chunks: Iterable[S]) -> Iterator[T]:
    """Yields the results for the chunks in order; each core processes one chunk at a time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # within a chunk, since each core has a chunk
    waiting: deque[Future[T]] = deque()
    try:
        with ThreadPoolExecutor(threads) as pool:
            for chunk in chunks:
                waiting.append(pool.submit(function, chunk))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)
