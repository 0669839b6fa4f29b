"""What a search chooses from: Hydra's lists, ranges and intervals as distributions of Optuna."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from trainer.config.composer import Composer
from trainer.config.errors import Problem
from trainer.config.settings import COMMAND, Setting

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LOG = "log"
"""The tag of an interval that is even in the logarithm: tag(log,interval(1e-4,1e-1))."""
EXAMPLE = "'optimizer.lr=tag(log,interval(1e-4,1e-1))'"


def validate_search_space(settings: Sequence[Setting], composer: Composer, sampler: str | None) -> Iterator[Problem]:
    """What the settings of a sweep give to choose from that cannot be chosen; without a sampler it is no search."""
    swept = [
        (setting, override)
        for setting in settings
        if composer.is_sweep(setting) and (override := composer.parse(setting))
    ]
    if sampler is not None and not swept:
        yield Problem(COMMAND, "search", f"has nothing to choose: give a setting several values, as {EXAMPLE}.")
    for setting, override in swept:
        for what in _problems(override.value(), sampler):
            yield Problem(setting.where, setting.key, what)


def _problems(value: Any, sampler: str | None) -> Iterator[str]:
    if not isinstance(value, IntervalSweep):
        if sampler == "cmaes" and not isinstance(value, RangeSweep):
            yield "cmaes has no lists: give an interval or a range, or take search.sampler=tpe."
        return
    low, high = _ends(value)
    if sampler is None:
        yield "an interval is for a search: add search=optuna."
    elif low >= high:
        yield f"an interval goes up: {low:g} is not below {high:g}."
    elif LOG in value.tags and low <= 0:
        yield f"the logarithm of {low:g} is none: begin the interval above 0."
    elif sampler == "grid":
        yield "a grid has no intervals: give a list or a range, or take search.sampler=tpe."


def _ends(interval: IntervalSweep) -> tuple[float, float]:
    assert interval.start is not None
    assert interval.end is not None
    return interval.start, interval.end


def distribution(override: Override) -> "BaseDistribution":
    """Intervals hold both ends, and whole numbers alone where both are, as in int(interval(16,512)); a range is one of
    numbers; of anything else each value is a choice."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        low, high = _ends(value)
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=LOG in value.tags)
        return FloatDistribution(low, high, log=LOG in value.tags)
    if isinstance(value, RangeSweep):
        numbers = sorted(value.range())
        if all(isinstance(number, int) for number in numbers):
            return IntDistribution(numbers[0], numbers[-1], step=abs(int(value.step)))
        return FloatDistribution(numbers[0], numbers[-1], step=abs(value.step))
    return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))


def grid(space: Mapping[str, Override]) -> list[dict[str, Any]]:
    """All combinations of lists and ranges."""
    values = [
        list(value.range()) if isinstance(value := override.value(), RangeSweep) else override.sweep_string_iterator()
        for override in space.values()
    ]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*values)]
