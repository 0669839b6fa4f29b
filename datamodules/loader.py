"""Whole batches cut from tensors in memory, in an order that is counted, not streamed."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class Batches:
    """An iterable of batches for Lightning: no dataset of rows, no collating.

    The order of epoch e is a permutation drawn from (seed, e) alone, so any point of a run can be found again. A last
    batch of a single row joins the one before it, because batch normalisation needs two.
    """

    def __init__(self, rows: dict[str, Tensor], batch_size: int, *, shuffle: bool = False, seed: int = 0) -> None:
        self.rows = rows
        self.count = len(rows["target"])
        self.batch_size = batch_size
        self.shuffle = shuffle
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
        return max(whole + (rest > 1), 1)

    def order(self) -> Tensor:
        """The row numbers of this epoch, int64 (rows,)."""
        if not self.shuffle:
            return torch.arange(self.count)
        generator = torch.Generator().manual_seed((self.seed << 32) + self.epoch)
        return torch.randperm(self.count, generator=generator)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = self.order()
        start, self.start = self.start, 0
        for batch in range(start, len(self)):
            end = self.count if batch == len(self) - 1 else (batch + 1) * self.batch_size
            index = order[batch * self.batch_size : end]
            self.position = (batch + 1) % len(self)
            yield {name: values.index_select(0, index) for name, values in self.rows.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = self.position = state["position"]
