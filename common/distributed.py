"""Rank and world size, from the environment variables of torchrun or srun, or from torch.distributed."""

import os
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """A start of several processes by torchrun or srun (`by`): this process is `rank` of `world`, and `local` of them
    run on this machine."""

    by: str
    rank: int
    world: int
    local: int


def launch() -> Launch | None:
    """Returns the launch by torchrun or srun; None if neither has started several processes."""
    given = os.environ
    if "TORCHELASTIC_RUN_ID" in given:
        found = Launch("torchrun", *(int(given[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")))
    elif "SLURM_STEP_NUM_TASKS" in given:  # set by srun only, not by a batch script without srun
        tasks, nodes = int(given["SLURM_STEP_NUM_TASKS"]), int(given["SLURM_STEP_NUM_NODES"])
        found = Launch("srun", int(given["SLURM_PROCID"]), tasks, tasks // nodes)
    else:
        return None
    return found if found.world > 1 else None


def launched_rank() -> int:
    """Rank of this process according to its launch; 0 if there is only one process."""
    here = launch()
    return 0 if here is None else here.rank


def world_size() -> int:
    """Number of processes in torch.distributed's group; 1 if it is not initialized."""
    import torch.distributed as dist  # here, because the check of the settings does not wait for torch

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process in torch.distributed's group; 0 if it is not initialized."""
    import torch.distributed as dist  # as above

    return dist.get_rank() if world_size() > 1 else 0


class ProcessGroup:
    """The processes that prepare the data and train together: `rank` of `world`, `local` of them on this machine."""

    def __init__(self) -> None:
        self.rank = rank()
        self.world = world_size()
        self.local = int(os.environ.get("LOCAL_WORLD_SIZE", self.world)) if self.world > 1 else 1

    def gather(self, value: T) -> list[T]:
        """Returns the values of all processes, in the order of their ranks, in each of them."""
        import torch.distributed as dist  # as above

        if self.world == 1:
            return [value]
        values = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Blocks until all processes have called it."""
        import torch.distributed as dist  # as above

        if self.world > 1:
            dist.barrier()
