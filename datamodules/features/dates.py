"""Encodes dates as numbers: calendar parts and elapsed days."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

PERIODS = {"month": 12.0, "weekday": 7.0, "hour": 24.0}
"""Period of cyclic parts, which become a sine and a cosine, so that December is next to January."""


class Dates(nn.Module):
    """Derives number columns from date columns, for the chosen parts of each.

    "days" since 1970, "year" and "day" (of the month) are numbers, float64; "month", "weekday" and "hour" are a sine
    and a cosine each: `NAME month (sin)`, `NAME month (cos)`. Hours include minutes as a fraction.
    """

    # TorchScript cannot infer the type of an empty list.
    names: list[str]
    parts: list[list[str]]
    periods: dict[str, float]

    def __init__(self, names: Sequence[str], parts: Sequence[Sequence[str]]) -> None:
        """`parts` holds the parts of each column, see `calendar` and `varying_parts`."""
        super().__init__()
        self.names = list(names)
        self.parts = [list(chosen) for chosen in parts]
        self.periods = dict(PERIODS)

    def forward(self, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        """The derived columns of seconds since 1970-01-01 UTC, (rows,), NaN for missing; none for absent columns."""
        derived: dict[str, Tensor] = {}
        for i, name in enumerate(self.names):
            if name in numbers:
                found = calendar(numbers[name].to(torch.float64))
                for part in self.parts[i]:
                    values = found[part]
                    if part in self.periods:
                        angle = values * (2 * math.pi / self.periods[part])
                        derived[name + " " + part + " (sin)"] = angle.sin()
                        derived[name + " " + part + " (cos)"] = angle.cos()
                    else:
                        derived[name + " " + part] = values
        return derived


def calendar(seconds: Tensor) -> dict[str, Tensor]:
    """The parts of float64 seconds since 1970-01-01 UTC in the proleptic Gregorian calendar; NaN stays NaN.

    Months and days start at 1, weekdays at 0 (Monday). The algorithm is Howard Hinnant's `civil_from_days`
    (https://howardhinnant.github.io/date_algorithms.html), where years start in March.
    """
    whole = seconds.floor()
    second = whole.remainder(86400.0)
    days = (whole - second) / 86400.0
    since_era = days + 719468.0  # from 0000-03-01
    era = (since_era / 146097.0).floor()
    day_of_era = since_era - era * 146097.0
    leap_days = (day_of_era / 1460.0).floor() - (day_of_era / 36524.0).floor() + (day_of_era / 146096.0).floor()
    year_of_era = ((day_of_era - leap_days) / 365.0).floor()
    before_year = 365.0 * year_of_era + (year_of_era / 4.0).floor() - (year_of_era / 100.0).floor()
    day_of_year = day_of_era - before_year
    from_march = ((5.0 * day_of_year + 2.0) / 153.0).floor()
    month = torch.where(from_march < 10, from_march + 3.0, from_march - 9.0)
    return {
        "days": seconds / 86400.0,
        "year": year_of_era + era * 400.0 + (month <= 2).to(torch.float64),
        "month": month,
        "day": day_of_year - ((153.0 * from_march + 2.0) / 5.0).floor() + 1.0,
        "weekday": (days + 3.0).remainder(7.0),
        "hour": second / 3600.0,
    }


def varying_parts(seconds: Tensor) -> list[str]:
    """The parts that vary among these dates, float64 (rows,), NaN for missing; "days" is first if any part varies."""
    present = seconds[seconds.isfinite()]
    return [part for part, values in calendar(present).items() if (values != values[:1]).any()]
