"""The encoded rows of a split: in memory, on the device, or on disk and read window by window."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from common.hardware import readable
from datamodules.schema import DataError

Rows = dict[str, Tensor]
"""Encoded columns by name, as in a batch (see `datamodules.schema.InputSpec`), and "target"."""
StoreKind = Literal["memory", "device", "disk"]
CPU = torch.device("cpu")

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
TOKENS, OFFSETS = "tokens.", "offsets."


class MemoryStore:
    """All rows as tensors, in memory or on a device.

    `lengths` holds the number of rows of each part, `size` the bytes of all parts.
    """

    def __init__(self, rows: Rows, lengths: Sequence[int] | None = None, size: int | None = None) -> None:
        self.rows = rows
        self.lengths = [len(rows["target"])] if lengths is None else list(lengths)
        self.bytes = size_of(rows) if size is None else size
        ends = torch.tensor(self.lengths).cumsum(0)
        self._spans = list(zip((ends - torch.tensor(self.lengths)).tolist(), ends.tolist(), strict=True))

    def window(self, parts: Sequence[int]) -> tuple[Rows, Tensor]:
        """Tensors that contain the rows of the parts, and the positions of these rows in them, int64."""
        return self.rows, torch.cat([torch.arange(*self._spans[part]) for part in parts])


class DiskStore:
    """Parts in files, each memory-mapped only while it is copied; otherwise its pages would fill the memory."""

    def __init__(self, files: Sequence[Path], lengths: Sequence[int], size: int) -> None:
        self.files = list(files)
        self.lengths = list(lengths)
        self.bytes = size

    def window(self, parts: Sequence[int]) -> tuple[Rows, Tensor]:
        """See `MemoryStore.window`."""
        rows = join([load_part(self.files[part]) for part in parts])
        if len(parts) == 1:
            rows = {name: values.clone() for name, values in rows.items()}
        return rows, torch.arange(len(rows["target"]))

    def read(self, device: torch.device) -> MemoryStore:
        """Reads all rows to this device; for a GPU, only one part at a time is in memory."""
        if device.type == "cpu":
            rows, _ = self.window(range(len(self.files)))
        else:
            rows = join([{name: values.to(device) for name, values in load_part(file).items()} for file in self.files])
        return MemoryStore(rows, self.lengths, self.bytes)


Store = MemoryStore | DiskStore


def size_of(rows: Rows) -> int:
    return sum(values.nbytes for values in rows.values())


def save_part(file: Path, rows: Rows) -> None:
    torch.save(rows, file)


def load_part(file: Path) -> Rows:
    rows: Rows = torch.load(file, mmap=True, weights_only=True)
    return rows


def take(rows: Rows, index: Tensor) -> Rows:
    """Selects rows by position, in this order, with all their tokens."""
    index = index.to(rows["target"].device)
    taken: Rows = {}
    for name, values in rows.items():
        if name.startswith(OFFSETS):
            starts = values[index]
            lengths = values[index + 1] - starts
            offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
            tokens = TOKENS + name.removeprefix(OFFSETS)
            moved = torch.repeat_interleave(starts - offsets[:-1], lengths)
            taken[tokens] = rows[tokens].index_select(0, moved + torch.arange(len(moved), device=index.device))
            taken[name] = offsets
        elif not name.startswith(TOKENS):
            taken[name] = values.index_select(0, index)
    return taken


def cut(rows: Rows, start: int, end: int) -> Rows:
    """The rows from `start` to before `end`, as views if there are no texts; returns `rows` itself for all of them."""
    count = len(rows["target"])
    if (start, end) == (0, count):
        return rows
    if any(name.startswith(OFFSETS) for name in rows):
        return take(rows, torch.arange(start, end))
    return {name: values[start:end] for name, values in rows.items()}


def head(store: Store, rows: int) -> Rows:
    """The first rows of a store, on the CPU."""
    parts, found = [], 0
    for part, length in enumerate(store.lengths):
        if found >= rows:
            break
        parts.append(part)
        found += length
    held, index = store.window(parts)
    return {name: values.cpu() for name, values in take(held, index[:rows]).items()}


def draw(store: Store, size: int) -> Rows:
    """A uniform sample of at most `size` rows of a store, in their order, on the CPU."""
    count = sum(store.lengths)
    chosen = np.arange(count)
    if count > size:
        chosen = np.sort(np.random.default_rng(0).choice(count, size, replace=False))
    pieces: list[Rows] = []
    start = 0
    for part, length in enumerate(store.lengths):
        wanted = torch.from_numpy(chosen[(chosen >= start) & (chosen < start + length)] - start)
        start += length
        if isinstance(store, MemoryStore):
            held, index = store.window([part])
            piece = take(held, index[wanted])
        else:
            piece = take(load_part(store.files[part]), wanted)  # memory-mapped: reads only these rows
        pieces.append({name: values.cpu() for name, values in piece.items()})
    return join(pieces)


def join(parts: Sequence[Rows]) -> Rows:
    """Concatenates parts; a single part is returned itself, not a copy."""
    if len(parts) == 1:
        return parts[0]
    joined: Rows = {}
    for name in parts[0]:
        pieces = [part[name] for part in parts]
        if name.startswith(OFFSETS):
            lengths = torch.cat([piece.diff() for piece in pieces])
            joined[name] = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        else:
            joined[name] = torch.cat(pieces)
    return joined


def as_bytes(setting: str, value: str | int) -> int:
    """Parses "2GB", "500 MB" or a number of bytes. Raises DataError for anything else."""
    found = re.fullmatch(r"\s*([0-9]+\.?[0-9]*)\s*([KMGT]?B)?\s*", str(value), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise DataError(f"{setting}={value}: give a size such as 2GB or 500MB")
    return int(float(found[1]) * UNITS[(found[2] or "B").upper()])


def choose(
    wanted: Literal["auto", "memory", "device", "disk"], size: int, limit: int, device: torch.device
) -> tuple[StoreKind, str]:
    """Chooses the store for `size` bytes of rows and returns the reason.

    `limit` is the memory that the rows may take, `device` the device of the network. Raises DataError for
    data.store=device without a GPU.
    """
    if wanted == "device" and device.type != "cuda":
        raise DataError("data.store=device: the network is not on a CUDA device; use data.store=auto")
    amount = f"{readable(size)} of rows"
    if wanted != "auto":
        return wanted, f"{amount}, given"
    if device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] / 2:
        return "device", f"{amount}, less than half of its free memory"
    fits = size <= limit / 2
    return "memory" if fits else "disk", f"{amount}, {'less' if fits else 'more'} than half of {readable(limit)}"
