"""Whole batches cut from a store, in an order that is counted, not streamed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.distributed import ProcessGroup
from datamodules.loading.store import CPU, OFFSETS, MemoryStore, Rows, Store, cut, join, take
from datamodules.schema import DataError

WINDOW = 64 * 10**6
"""Bytes of rows that are mixed with each other: what is larger is shuffled part by part, then in such windows."""
GATHERED = 10**6
"""Bytes of rows that are gathered at once, about what a core's cache holds; batches are cut from them."""


class Batches:
    """An iterable of batches for Lightning: no dataset of rows, no collating.

    The order of epoch e is drawn from (seed, e) alone, so any point of a run can be found again, and it is the same
    whatever the store. A last batch of a single row joins the one before it, because batch normalisation needs two.
    With `balanced`, rows are drawn with replacement, so that each class comes up as often as any other. Batches lie
    where the rows lie, or on `device` where that is a GPU.

    Of several processes (`ranks`) each gets its part of every batch, one row more or less than another's; the batches
    of all are those of one process. A last batch that has not a row for each joins the one before it.
    """

    def __init__(
        self,
        store: Store,
        batch_size: int,
        *,
        shuffle: bool = False,
        balanced: bool = False,
        seed: int = 0,
        ranks: ProcessGroup | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.store = store
        self.device = device
        self.ranks = ranks or ProcessGroup()
        self.count = sum(store.lengths)
        if min(self.count, batch_size) < self.ranks.world > 1:
            raise DataError(
                f"{self.count} rows in batches of {batch_size} are too few for {self.ranks.world} processes: take fewer"
                " trainer.devices, or a larger data.batch_size"
            )
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.balanced = balanced
        self.seed = seed
        self.epoch = 0
        self.start = 0
        """First batch of the next walk: above 0 once, after a state was loaded. A walk that was left starts anew."""
        self.position = 0

    batch_sampler = None
    """Lightning asks what has a `sampler` for this too."""

    @property
    def sampler(self) -> "Batches":
        """Lightning calls `loader.sampler.set_epoch` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.count, self.batch_size)
        return max(whole + (rest >= max(self.ranks.world, 2)), 1)

    def windows(self, generator: torch.Generator) -> list[list[int]]:
        """The parts of each window of this epoch, in their order."""
        parts = range(len(self.store.lengths))
        if self.store.bytes <= WINDOW:
            return [list(parts)]
        order = torch.randperm(len(parts), generator=generator).tolist() if self.shuffle else parts
        most = WINDOW * self.count / self.store.bytes
        windows: list[list[int]] = []
        rows = most
        for part in order:
            if rows >= most:
                windows.append([])
                rows = 0
            windows[-1].append(part)
            rows += self.store.lengths[part]
        return windows

    def __iter__(self) -> Iterator[Rows]:
        start, self.start = self.start, 0
        batch = start
        pieces: list[Rows] = []
        lacking = self._size(batch)
        for rows in self._walk(skip=start * self.batch_size):
            at, count = 0, len(rows["target"])
            while at < count:
                end = min(at + lacking, count)
                pieces.append(cut(rows, at, end))
                lacking -= end - at
                at = end
                if lacking == 0:
                    batch += 1
                    self.position = batch % len(self)
                    yield join(pieces)
                    pieces, lacking = [], self._size(batch)

    def _size(self, batch: int) -> int:
        """Rows of a batch that are this process's."""
        size = self.count - batch * self.batch_size if batch == len(self) - 1 else self.batch_size
        rank, world = self.ranks.rank, self.ranks.world
        return size * (rank + 1) // world - size * rank // world

    def _own(self, places: Tensor) -> Tensor:
        """Which places in the order of the epoch are this process's, bool."""
        rank, world = self.ranks.rank, self.ranks.world
        batch = (places // self.batch_size).clamp_max(len(self) - 1)
        size = torch.where(batch == len(self) - 1, self.count - batch * self.batch_size, self.batch_size)
        inside = places - batch * self.batch_size
        return (inside >= size * rank // world) & (inside < size * (rank + 1) // world)

    def _walk(self, skip: int) -> Iterator[Rows]:
        """The rows in their order, the first `skip` left out, some batches at a time; the next window is read
        meanwhile."""
        # Of a seed torch's generator on the CPU takes 32 bits, so both numbers must be in these.
        mixed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        windows = self.windows(generator)
        if isinstance(self.store, MemoryStore) and len(windows) == 1:
            yield from self._gather(*self._order(*self.store.window(windows[0]), generator, skip, 0))
            return
        first = 0
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.store.window, windows[0])
            for number in range(len(windows)):
                rows, index = ahead.result()
                if number + 1 < len(windows):
                    ahead = pool.submit(self.store.window, windows[number + 1])
                yield from self._gather(*self._order(rows, index, generator, skip, first))
                first += len(index)

    def _gather(self, rows: Rows, index: Tensor) -> Iterator[Rows]:
        texts = any(name.startswith(OFFSETS) for name in rows)  # where a row's tokens end, the device would have to say
        batches = 1 if texts else max(int(GATHERED * self.count / self.store.bytes) // self.batch_size, 1)
        index = index.to(rows["target"].device)
        for piece in torch.split(index, batches * self._size(0)):
            yield self._sent(take(rows, piece))

    def _sent(self, rows: Rows) -> Rows:
        """On their way to the GPU, in memory that it reads from while this process goes on."""
        if self.device.type != "cuda" or rows["target"].device == self.device:
            return rows
        return {name: values.pin_memory().to(self.device, non_blocking=True) for name, values in rows.items()}

    def _order(
        self, rows: Rows, index: Tensor, generator: torch.Generator, skip: int, first: int
    ) -> tuple[Rows, Tensor]:
        """What is this process's of a window in its order; `first` is the place in the epoch of the window's first
        row."""
        if self.balanced and self.shuffle:
            classes = rows["target"].cpu()[index]
            weights = 1 / torch.bincount(classes)[classes]
            index = index[torch.multinomial(weights, len(index), replacement=True, generator=generator)]
        elif self.shuffle:
            index = index[torch.randperm(len(index), generator=generator)]
        start = max(skip, first)
        index = index[start - first :]
        if self.ranks.world > 1:
            index = index[self._own(torch.arange(start, start + len(index)))]
        return rows, index

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = self.position = state["position"]
