"""The processes that prepare the data and train together: one, or those of torch.distributed."""

import os
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


class Ranks:
    """This process (`rank`) among `world`, `local` of them on this machine; alone where torch.distributed has not been
    started."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.world = dist.get_world_size() if together else 1
        self.local = int(os.environ.get("LOCAL_WORLD_SIZE", self.world)) if together else 1

    def gather(self, value: T) -> list[T]:
        """The value of each process, in their order, in all of them."""
        if self.world == 1:
            return [value]
        values = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()
