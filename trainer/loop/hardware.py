"""The choice of the device, the precision and the number of threads."""

import copy
import time
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from common.distributed import ProcessGroup
from common.hardware import available_cores
from models.training.lightning_module import Batch, SupervisedModule

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true", "64", "32", "16", "bf16", 64, 32, 16]
SMALL_STEP = 30_000_000
"""Multiplications per step below which more threads gain little, and lose much if another process is busy."""
SPEEDUP = 1.15
"""Minimum speedup of a step for which the number of threads is doubled."""
TRIALS = 3
"""Maximum number of timed steps for each number of threads."""
TRIAL_SECONDS = 0.5
"""Seconds after which no further step is timed: threads that wait for others are slow."""
THREADS = torch.get_num_threads()
"""Number of threads at the start of the process."""


def choose_accelerator(accelerator: str) -> str:
    """Replaces "auto". Raises ValueError if a GPU is asked for and torch finds none."""
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"trainer.accelerator={accelerator}: torch {torch.__version__} finds no CUDA device here. Use trainer=cpu,"
            " or install a driver and a build of torch with CUDA"
        )
    return accelerator


def choose_precision(precision: Precision, accelerator: str) -> tuple[Any, str]:
    """Returns the precision for Lightning and the reason: bfloat16 if the GPU computes it fast, else float32."""
    if precision != "auto":
        return precision, "given"
    if accelerator not in ("gpu", "cuda"):
        return "32-true", "a CPU"
    if torch.cuda.get_device_capability()[0] >= 8:
        return "bf16-mixed", "the GPU computes bfloat16 fast"
    return "32-true", "the GPU has no fast bfloat16"


def set_threads(threads: int | Literal["auto"], module: SupervisedModule, batch: Batch) -> str:
    """Sets torch's number of threads; returns it and the reason.

    "auto": one thread for a small step; otherwise the number is doubled as long as a step gets `SPEEDUP` times faster.
    """
    if threads != "auto":
        torch.set_num_threads(threads)
        return f"{threads} (given)"
    cores = available_cores()
    processes = ProcessGroup().local
    most = max(min(cores // processes, THREADS), 1)
    chosen, why = 1, f"torch was started with {most}" if processes == 1 else f"{processes} processes share them"
    if most > 1:
        cost = multiplications(module.network, batch)
        why = f"{cost / 1e6:,.1f} million multiplications a step: few"
        if cost >= SMALL_STEP:
            fastest = seconds_per_step(module, batch, 1)
            why = f"a step takes {1000 * fastest:.3g} ms with 1"
            while chosen < most:
                more = min(2 * chosen, most)
                seconds = seconds_per_step(module, batch, more)
                why += f", {1000 * seconds:.3g} ms with {more}"
                if seconds * SPEEDUP >= fastest:
                    break
                chosen, fastest = more, seconds
    torch.set_num_threads(chosen)
    return f"{chosen} of {cores} ({why})"


def seconds_per_step(module: SupervisedModule, batch: Batch, threads: int) -> float:
    """Seconds of a forward and backward pass: the minimum of several, because other processes may use the cores."""
    rehearsal = copy.deepcopy(module)
    torch.set_num_threads(threads)
    times: list[float] = []
    with torch.random.fork_rng([]):
        for _ in range(1 + TRIALS):
            started = time.perf_counter()
            torch.autograd.backward(rehearsal.objective(rehearsal.augment_batch(batch))[1])
            times.append(time.perf_counter() - started)
            if len(times) > 1 and sum(times) > TRIAL_SECONDS:
                break
    return min(times[1:])


def multiplications(network: nn.Module, rows: dict[str, Tensor]) -> int:
    """Multiplications of a forward pass in matrix products and convolutions; embedding lookups count as none.

    The network's statistics and torch's random state stay as they are.
    """
    network.eval()
    with torch.no_grad(), torch.random.fork_rng([]), FlopCounterMode(display=False) as counter:
        network(rows)
    network.train()
    return int(counter.get_total_flops()) // 2
