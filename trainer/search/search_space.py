"""The search space: Hydra's lists, ranges and intervals as Optuna distributions."""

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
"""Tag of an interval with a logarithmic scale: tag(log,interval(1e-4,1e-1))."""
EXAMPLE = "'optimizer.lr=tag(log,interval(1e-4,1e-1))'"


def validate_search_space(settings: Sequence[Setting], composer: Composer, sampler: str | None) -> Iterator[Problem]:
    """Finds swept settings that the sampler does not support. `sampler` is None for a sweep without a search."""
    swept = [
        (setting, override)
        for setting in settings
        if composer.is_sweep(setting) and (override := composer.parse(setting))
    ]
    if sampler is not None and not swept:
        yield Problem(COMMAND, "search", f"has nothing to search: give a setting several values, such as {EXAMPLE}.")
    for setting, override in swept:
        for what in _problems(override.value(), sampler):
            yield Problem(setting.where, setting.key, what)


def _problems(value: Any, sampler: str | None) -> Iterator[str]:
    if not isinstance(value, IntervalSweep):
        if sampler == "cmaes" and not isinstance(value, RangeSweep):
            yield "cmaes does not support lists: give an interval or a range, or use search.sampler=tpe."
        return
    low, high = _ends(value)
    if sampler is None:
        yield "an interval needs a search: add search=optuna."
    elif low >= high:
        yield f"the lower end {low:g} of the interval is not below the upper end {high:g}."
    elif LOG in value.tags and low <= 0:
        yield f"{low:g} has no logarithm: start the interval above 0."
    elif sampler == "grid":
        yield "grid does not support intervals: give a list or a range, or use search.sampler=tpe."


def _ends(interval: IntervalSweep) -> tuple[float, float]:
    assert interval.start is not None
    assert interval.end is not None
    return interval.start, interval.end


def distribution(override: Override) -> "BaseDistribution":
    """Returns the distribution of a swept setting: uniform or log-uniform for an interval, including both ends, and of
    integers if both ends are, as in int(interval(16,512)); discrete for a range; categorical for other values."""
    # here, because only a search waits for Optuna
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
    """Returns all combinations of lists and ranges."""
    values = [
        list(value.range()) if isinstance(value := override.value(), RangeSweep) else override.sweep_string_iterator()
        for override in space.values()
    ]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*values)]
