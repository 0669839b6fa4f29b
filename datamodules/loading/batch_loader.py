"""Batches cut from a store, in an order that depends only on the seed and the epoch."""

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
"""Bytes of rows that are shuffled together; in larger stores parts are shuffled, then rows within such windows."""
GATHERED = 10**6
"""Bytes of rows gathered at a time, about the size of a core's cache; batches are cut from them."""
BATCH_SIZES = {2_800: 32, 4_500: 64, 6_400: 128, 32_000: 256, 108_000: 512}
"""Batch size for fewer training rows than the key (arXiv 2410.24210); 1024 for more rows."""
EVALUATED_CELLS, MANY_COLUMNS = 2**20, 128
"""Cells per evaluation batch of tables with at least this many columns; other tables have 8,192 rows per batch."""


def auto_batch_size(rows: int) -> int:
    """The batch size for this number of training rows."""
    return next((size for limit, size in BATCH_SIZES.items() if rows < limit), 1024)


def auto_eval_batch_size(columns: int) -> int:
    """The evaluation batch size for this number of columns of numbers and categories."""
    return EVALUATED_CELLS // max(columns, MANY_COLUMNS)


class Batches:
    """An iterable of batches for Lightning, without a dataset of rows and without collation.

    The order of an epoch depends only on (seed, epoch), not on the kind of store, so training can resume at any batch.
    A last batch with a single row is merged into the one before, because batch normalization needs two rows. With
    `balanced`, rows are drawn with replacement so that all classes are equally frequent. Batches are on `device` if
    that is a GPU, otherwise on the device of the rows.

    Each process of `group` gets its part of every batch; their sizes differ by at most one row, and together they are
    the batch of a single process. A last batch with fewer rows than processes is merged into the one before.
    """

    def __init__(
        self,
        store: Store,
        batch_size: int,
        *,
        shuffle: bool = False,
        balanced: bool = False,
        seed: int = 0,
        group: ProcessGroup | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.store = store
        self.device = device
        self.group = group or ProcessGroup()
        self.count = sum(store.lengths)
        if min(self.count, batch_size) < self.group.world > 1:
            raise DataError(
                f"{self.count} rows in batches of {batch_size} are too few for {self.group.world} processes: use fewer"
                " trainer.devices or a larger data.batch_size"
            )
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.balanced = balanced
        self.seed = seed
        self.epoch = 0
        self.start = 0
        """First batch of the next iteration; above 0 only once, after a state was loaded."""
        self.position = 0

    batch_sampler = None
    """Lightning also reads this attribute of loaders with a `sampler`."""

    @property
    def sampler(self) -> "Batches":
        """Lightning calls `loader.sampler.set_epoch` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.count, self.batch_size)
        return max(whole + (rest >= max(self.group.world, 2)), 1)

    def windows(self, generator: torch.Generator) -> list[list[int]]:
        """The parts in each window of this epoch, in order."""
        parts = range(len(self.store.lengths))
        if self.store.bytes <= WINDOW:
            return [list(parts)]
        order = torch.randperm(len(parts), generator=generator).tolist() if self.shuffle else parts
        window_rows = WINDOW * self.count / self.store.bytes
        windows: list[list[int]] = []
        rows = window_rows
        for part in order:
            if rows >= window_rows:
                windows.append([])
                rows = 0
            windows[-1].append(part)
            rows += self.store.lengths[part]
        return windows

    def __iter__(self) -> Iterator[Rows]:
        start, self.start = self.start, 0
        batch = start
        pieces: list[Rows] = []
        missing = self._size(batch)
        for rows in self._rows(skip=start * self.batch_size):
            at, count = 0, len(rows["target"])
            while at < count:
                end = min(at + missing, count)
                pieces.append(cut(rows, at, end))
                missing -= end - at
                at = end
                if missing == 0:
                    batch += 1
                    self.position = batch % len(self)
                    yield join(pieces)
                    pieces, missing = [], self._size(batch)

    def _size(self, batch: int) -> int:
        """Number of rows of a batch for this process."""
        size = self.count - batch * self.batch_size if batch == len(self) - 1 else self.batch_size
        rank, world = self.group.rank, self.group.world
        return size * (rank + 1) // world - size * rank // world

    def _own(self, positions: Tensor) -> Tensor:
        """Which positions in the order of the epoch belong to this process, bool."""
        rank, world = self.group.rank, self.group.world
        batch = (positions // self.batch_size).clamp_max(len(self) - 1)
        size = torch.where(batch == len(self) - 1, self.count - batch * self.batch_size, self.batch_size)
        inside = positions - batch * self.batch_size
        return (inside >= size * rank // world) & (inside < size * (rank + 1) // world)

    def _rows(self, skip: int) -> Iterator[Rows]:
        """Yields the rows in order without the first `skip`, a few batches at a time; prefetches the next window."""
        # Torch's CPU generator uses 32 bits of its seed, so these must depend on both numbers.
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
        # Cutting texts on a GPU would wait for their offsets, so each batch of texts is gathered alone.
        texts = any(name.startswith(OFFSETS) for name in rows)
        batches = 1 if texts else max(int(GATHERED * self.count / self.store.bytes) // self.batch_size, 1)
        index = index.to(rows["target"].device)
        for piece in torch.split(index, batches * self._size(0)):
            yield self._to_device(take(rows, piece))

    def _to_device(self, rows: Rows) -> Rows:
        """Starts the copy to the GPU, from pinned memory, so that it overlaps with this process's work."""
        if self.device.type != "cuda" or rows["target"].device == self.device:
            return rows
        return {name: values.pin_memory().to(self.device, non_blocking=True) for name, values in rows.items()}

    def _order(
        self, rows: Rows, index: Tensor, generator: torch.Generator, skip: int, first: int
    ) -> tuple[Rows, Tensor]:
        """The rows of a window for this process, in order; `first` is the position of the window in the epoch."""
        if self.balanced and self.shuffle:
            classes = rows["target"].cpu()[index]
            weights = 1 / torch.bincount(classes)[classes]
            index = index[torch.multinomial(weights, len(index), replacement=True, generator=generator)]
        elif self.shuffle:
            index = index[torch.randperm(len(index), generator=generator)]
        start = max(skip, first)
        index = index[start - first :]
        if self.group.world > 1:
            index = index[self._own(torch.arange(start, start + len(index)))]
        return rows, index

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = self.position = state["position"]
