"""Learning rate schedules, as factors of the optimizer's learning rate.

Schedules over the whole run take `total_steps`, which `SupervisedModule` fills in; their times are fractions of it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau


def cosine(optimizer: Optimizer, total_steps: int, *, warmup: float = 0.0, final: float = 0.0) -> LambdaLR:
    """Linear warmup, then half a cosine from 1 to `final` (arXiv 1608.03983)."""
    return _over_run(optimizer, total_steps, warmup, lambda t: _half_cosine(t, 1, final))


def onecycle(
    optimizer: Optimizer, total_steps: int, *, peak: float = 0.3, start: float = 0.04, final: float = 4e-6
) -> LambdaLR:
    """Half a cosine from `start` to 1 at fraction `peak` of the run, then one from 1 to `final` (arXiv 1708.07120)."""
    if not 0 < peak < 1:
        raise ValueError(f"scheduler.peak={peak}: must be a fraction of the run, above 0 and below 1.")

    def factor(t: float) -> float:
        return _half_cosine(t / peak, start, 1) if t < peak else _half_cosine((t - peak) / (1 - peak), 1, final)

    return _over_run(optimizer, total_steps, 0.0, factor)


def step(
    optimizer: Optimizer,
    total_steps: int,
    *,
    milestones: Sequence[float] = (0.5, 0.75),
    gamma: float = 0.1,
    warmup: float = 0.0,
) -> LambdaLR:
    """Linear warmup, then multiplication by `gamma` at each milestone, a fraction of the steps after the warmup."""
    return _over_run(optimizer, total_steps, warmup, lambda t: gamma ** sum(t >= m for m in milestones))


def flat_cosine(
    optimizer: Optimizer, total_steps: int, *, warmup: float = 0.0, flat: float = 0.5, final: float = 0.0
) -> LambdaLR:
    """Linear warmup, then 1 for the fraction `flat` of the steps after it, then half a cosine to `final`."""
    if not 0 <= flat < 1:
        raise ValueError(f"scheduler.flat={flat}: must be a fraction of the run, at least 0 and below 1.")
    return _over_run(optimizer, total_steps, warmup, lambda t: final + (1 - final) * flat_cos(t, flat))


def flat_cos(t: float, flat: float = 0.5) -> float:
    """Returns 1 up to the fraction `flat` of a run, then half a cosine to 0 at its end."""
    return _half_cosine(max(t - flat, 0.0) / (1 - flat), 1, 0)


def coslog4(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """Four cosine cycles from 0 to 1 and back, each twice as long as the previous one (arXiv 2407.04491).

    The learning rate is 0 after 1/15, 3/15, 7/15 and all of the run, so that good epochs occur early and late.
    """
    return _over_run(optimizer, total_steps, 0.0, lambda t: (1 - math.cos(2 * math.pi * math.log2(1 + 15 * t))) / 2)


def plateau(
    optimizer: Optimizer,
    mode: Literal["min", "max"],
    *,
    factor: float = 0.1,
    patience: int = 5,
    min_lr: float = 0.0,
) -> ReduceLROnPlateau:
    """Multiplies by `factor` when the monitored metric has not improved for `patience` epochs or validations."""
    return ReduceLROnPlateau(optimizer, mode, factor=factor, patience=patience, min_lr=min_lr)


def _over_run(optimizer: Optimizer, total_steps: int, warmup: float, factor: Callable[[float], float]) -> LambdaLR:
    """`factor` as a function of the fraction of the run after the warmup; a run longer than planned keeps the last."""
    if not 0 <= warmup < 1:
        raise ValueError(f"scheduler.warmup={warmup}: must be a fraction of the run, at least 0 and below 1.")
    start = round(warmup * total_steps)

    def rate(now: int) -> float:
        if now < start:
            return (now + 1) / start
        return factor(min((now - start) / max(total_steps - start, 1), 1.0))

    return LambdaLR(optimizer, rate)


def _half_cosine(t: float, first: float, last: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * t)) / 2
