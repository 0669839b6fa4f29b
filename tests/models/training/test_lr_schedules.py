"""Learning rate schedules at known points, alone and in a run."""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.optim import Optimizer

from common.errors import InputError
from models.training import lr_schedules
from tests.models.problems import build, fit, rows

SGD = functools.partial(torch.optim.SGD, lr=2.0)
Schedule = Callable[..., Any]


def rates(schedule: Schedule, steps: int = 100) -> list[float]:
    """The learning rate factor at each step and after the last one."""
    optimizer = SGD(nn.Linear(1, 1).parameters())
    scheduler = schedule(optimizer, total_steps=steps)
    seen = []
    for _ in range(steps + 1):
        seen.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (lr_schedules.cosine, {0: 1, 25: (2 + 2**0.5) / 4, 50: 0.5, 100: 0}),
        (functools.partial(lr_schedules.cosine, final=0.2), {0: 1, 50: 0.6, 100: 0.2}),
        (functools.partial(lr_schedules.cosine, warmup=0.1), {0: 0.1, 4: 0.5, 9: 1, 10: 1, 55: 0.5, 100: 0}),
        (lr_schedules.onecycle, {0: 0.04, 15: 0.52, 30: 1, 65: 0.5, 100: 4e-6}),
        (lr_schedules.step, {0: 1, 49: 1, 50: 0.1, 74: 0.1, 75: 0.01, 100: 0.01}),
        (lr_schedules.flat_cosine, {0: 1, 50: 1, 75: 0.5, 100: 0}),
        (
            functools.partial(lr_schedules.flat_cosine, warmup=0.2, flat=0.75, final=0.1),
            {0: 0.05, 19: 1, 80: 1, 90: 0.55, 100: 0.1},
        ),
        (functools.partial(lr_schedules.step, milestones=[0.5], gamma=0.5, warmup=0.2), {9: 0.5, 59: 1, 60: 0.5}),
    ],
)
def test_a_schedule_has_the_expected_values(schedule: Schedule, points: dict[int, float]) -> None:
    seen = rates(schedule)
    assert {step: seen[step] for step in points} == pytest.approx(points, abs=1e-5)


def test_coslog4_has_four_cycles_each_twice_as_long() -> None:
    seen = rates(lr_schedules.coslog4, steps=1500)
    assert [seen[step] for step in (0, 100, 300, 700, 1500)] == pytest.approx([0] * 5, abs=1e-9)
    middles = [(2 ** (wave + 0.5) - 1) / 15 * 1500 for wave in range(4)]
    assert [seen[round(middle)] for middle in middles] == pytest.approx([1] * 4, abs=1e-3)
    assert seen[50] == pytest.approx((1 - math.cos(2 * math.pi * math.log2(1.5))) / 2)


def test_one_cycle_equals_that_of_torch() -> None:
    """torch also counts the step after the end of the schedule."""
    cycle = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=2.0, pct_start=31 / 101, cycle_momentum=False)
    torchs = rates(lambda optimizer, total_steps: cycle(optimizer, total_steps=total_steps + 2), steps=99)
    assert rates(functools.partial(lr_schedules.onecycle, peak=30 / 100))[:100] == pytest.approx(torchs, abs=1e-6)


def test_a_run_longer_than_planned_keeps_the_final_rate() -> None:
    optimizer = SGD(nn.Linear(1, 1).parameters())
    scheduler = lr_schedules.cosine(optimizer, 10, final=0.1)
    for _ in range(30):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            functools.partial(lr_schedules.cosine, warmup=1.0),
            "scheduler.warmup=1.0: must be a fraction of the run, at least 0 and below 1.",
        ),
        (
            functools.partial(lr_schedules.onecycle, peak=0),
            "scheduler.peak=0: must be a fraction of the run, above 0 and below 1.",
        ),
        (
            functools.partial(lr_schedules.flat_cosine, flat=1.0),
            "scheduler.flat=1.0: must be a fraction of the run, at least 0 and below 1.",
        ),
    ],
)
def test_fractions_out_of_range_are_refused(schedule: Schedule, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rates(schedule)


class Rates(Callback):
    """Records the learning rate of each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer: Optimizer) -> None:
        self.steps.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 14), (2, 8), (7, 2)])
def test_total_steps_is_filled_in_with_gradient_accumulation(accumulate: int, steps: int) -> None:
    """Two epochs of seven batches; the last optimizer step of an epoch may have fewer batches."""
    seen = Rates()
    module = build("binary", optimizer=SGD, scheduler=lr_schedules.cosine)
    fit(module, rows("binary", 7 * 32), epochs=2, callbacks=[seen], accumulate_grad_batches=accumulate)
    assert seen.steps == pytest.approx([1 + math.cos(math.pi * step / steps) for step in range(steps)])


def test_a_schedule_without_the_length_of_the_run_is_refused() -> None:
    message = "This schedule needs the length of the run: set trainer.max_epochs or trainer.max_steps."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        fit(build("binary", scheduler=lr_schedules.cosine), rows("binary", 64), epochs=-1)


def test_plateau_lowers_the_rate_when_the_monitor_does_not_improve() -> None:
    """The rate is so small that no improvement exceeds the threshold."""
    seen = Rates()
    plateau = functools.partial(lr_schedules.plateau, factor=0.5, patience=1)
    optimizer = functools.partial(torch.optim.SGD, lr=1e-12)
    module = build("binary", optimizer=optimizer, scheduler=plateau, monitor="val/auroc", mode="max")
    fit(module, rows("binary", 32), epochs=6, callbacks=[seen])
    assert seen.steps == pytest.approx([1e-12, 1e-12, 1e-12, 5e-13, 5e-13, 2.5e-13])


def test_a_torch_schedule_without_total_steps_counts_epochs() -> None:
    seen = Rates()
    module = build(
        "binary", optimizer=SGD, scheduler=functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    )
    fit(module, rows("binary", 64), epochs=3, callbacks=[seen])
    assert seen.steps == [2.0, 2.0, 1.0, 1.0, 0.5, 0.5]
