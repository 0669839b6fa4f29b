"""What a search chooses from: Hydra's lists, ranges and intervals as distributions of Optuna."""

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from trainer.problems import Problem

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LOG = "log"
"""The tag of an interval that is even in the logarithm: tag(log,interval(1e-4,1e-1))."""
EXAMPLE = "'optimizer.lr=tag(log,interval(1e-4,1e-1))'"


def problems(space: Mapping[str, tuple[str, Override]], sampler: str) -> Iterator[Problem]:
    """What a sampler cannot choose from; `space` has the place and the override of each key."""
    if not space:
        yield Problem("command line", "search", f"has nothing to choose: give a setting several values, as {EXAMPLE}.")
    for key, (where, override) in space.items():
        value = override.value()
        if isinstance(value, IntervalSweep):
            low, high = value.start, value.end
            assert low is not None
            assert high is not None
            if low >= high:
                yield Problem(where, key, f"an interval goes up: {low:g} is not below {high:g}.")
            elif LOG in value.tags and low <= 0:
                yield Problem(where, key, f"the logarithm of {low:g} is none: begin the interval above 0.")
            elif sampler == "grid":
                yield Problem(where, key, "a grid has no intervals: give a list or a range, or take search.sampler=tpe.")
        elif sampler == "cmaes" and not isinstance(value, RangeSweep):
            yield Problem(where, key, "cmaes has no lists: give an interval or a range, or take search.sampler=tpe.")


def distribution(override: Override) -> "BaseDistribution":
    """Intervals hold both ends, and whole numbers alone where both are, as in int(interval(16,512)); a range is one of
    numbers; of anything else each value is a choice."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        assert low is not None
        assert high is not None
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=LOG in value.tags)
        return FloatDistribution(low, high, log=LOG in value.tags)
    if isinstance(value, RangeSweep):
        numbers = sorted(value.range())
        kind: Any = IntDistribution if isinstance(numbers[0], int) else FloatDistribution
        return kind(numbers[0], numbers[-1], step=abs(value.step))
    return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))


def grid(space: Mapping[str, Override]) -> list[dict[str, Any]]:
    """All combinations of lists and ranges."""
    values = [
        list(value.range()) if isinstance(value := override.value(), RangeSweep) else override.sweep_string_iterator()
        for override in space.values()
    ]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*values)]
