"""The encoded rows of a split: in memory, on the device, or on disk and read a window at a time."""

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
"""Columns of rows as a batch has them (`datamodules.schema.InputSpec`), "target" among them."""
StoreKind = Literal["memory", "device", "disk"]
CPU = torch.device("cpu")

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
TOKENS, OFFSETS = "tokens.", "offsets."


class MemoryStore:
    """All rows in tensors, in memory or on a device; `lengths` are the rows of each part they came in, `size` the bytes
    of all parts."""

    def __init__(self, rows: Rows, lengths: Sequence[int] | None = None, size: int | None = None) -> None:
        self.rows = rows
        self.lengths = [len(rows["target"])] if lengths is None else list(lengths)
        self.bytes = size_of(rows) if size is None else size
        ends = torch.tensor(self.lengths).cumsum(0)
        self._spans = list(zip((ends - torch.tensor(self.lengths)).tolist(), ends.tolist(), strict=True))

    def window(self, parts: Sequence[int]) -> tuple[Rows, Tensor]:
        """Rows that hold those of the parts, and the numbers of these in them, int64."""
        return self.rows, torch.cat([torch.arange(*self._spans[part]) for part in parts])


class DiskStore:
    """Each part in a file, mapped while it is copied: mapped for longer, its pages would fill the memory."""

    def __init__(self, files: Sequence[Path], lengths: Sequence[int], size: int) -> None:
        self.files = list(files)
        self.lengths = list(lengths)
        self.bytes = size

    def window(self, parts: Sequence[int]) -> tuple[Rows, Tensor]:
        rows = join([load_part(self.files[part]) for part in parts])
        if len(parts) == 1:
            rows = {name: values.clone() for name, values in rows.items()}
        return rows, torch.arange(len(rows["target"]))

    def read(self, device: torch.device) -> MemoryStore:
        """All rows, on this device; of those for a GPU memory holds a part at a time."""
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
    """The rows of these numbers, in this order; a row's tokens are cut whole."""
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
    """The rows from one number to before another, not copied where they hold no texts; all of them are themselves."""
    count = len(rows["target"])
    if (start, end) == (0, count):
        return rows
    if any(name.startswith(OFFSETS) for name in rows):
        return take(rows, torch.arange(start, end))
    return {name: values[start:end] for name, values in rows.items()}


def draw(store: Store, most: int) -> Rows:
    """At most so many rows of a store, on the CPU: all of them, or a uniform sample, in their order."""
    count = sum(store.lengths)
    chosen = np.arange(count)
    if count > most:
        chosen = np.sort(np.random.default_rng(0).choice(count, most, replace=False))
    pieces: list[Rows] = []
    start = 0
    for part, length in enumerate(store.lengths):
        wanted = torch.from_numpy(chosen[(chosen >= start) & (chosen < start + length)] - start)
        start += length
        if isinstance(store, MemoryStore):
            held, index = store.window([part])
            piece = take(held, index[wanted])
        else:
            piece = take(load_part(store.files[part]), wanted)  # reads of the file what it takes
        pieces.append({name: values.cpu() for name, values in piece.items()})
    return join(pieces)


def join(parts: Sequence[Rows]) -> Rows:
    """One after the other; a single part is itself, not a copy."""
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
    """ "2GB", "500 MB" or a number of bytes. Raises DataError for anything else."""
    found = re.fullmatch(r"\s*([0-9]+\.?[0-9]*)\s*([KMGT]?B)?\s*", str(value), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise DataError(f"{setting}={value}: give a size such as 2GB or 500MB")
    return int(float(found[1]) * UNITS[(found[2] or "B").upper()])


def choose(
    wanted: Literal["auto", "memory", "device", "disk"], size: int, limit: int, device: torch.device
) -> tuple[StoreKind, str]:
    """Where `size` bytes of rows go, and why; `limit` is what the rows may take of the memory, `device` is where the
    network is."""
    if wanted == "device" and device.type != "cuda":
        raise DataError("data.store=device: the network is not on a CUDA device; take data.store=auto")
    told = f"{readable(size)} of rows"
    if wanted != "auto":
        return wanted, f"{told}, given"
    if device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] / 2:
        return "device", f"{told}, less than half of what is free there"
    fits = size <= limit / 2
    return "memory" if fits else "disk", f"{told}, {'less' if fits else 'more'} than half of {readable(limit)}"
