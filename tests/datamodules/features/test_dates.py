"""Dates: calendar parts are equal to those of Python, also in TorchScript."""

import datetime
import math
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.cells import as_date
from datamodules.features.dates import Dates, varying_parts

NAN = float("nan")
PARTS = ["days", "year", "month", "day", "weekday", "hour"]


def seconds(*moments: datetime.datetime) -> torch.Tensor:
    values = as_date(pl.Series(moments, dtype=pl.Datetime("us")), (), False)[0]
    return torch.tensor(values.to_list(), dtype=torch.float64)


@pytest.fixture(scope="module")
def scripted() -> torch.jit.ScriptModule:
    return torch.jit.script(Dates(["t"], [PARTS]))


@settings(deadline=None)
@given(st.datetimes().map(lambda moment: moment.replace(microsecond=0)))
@example(datetime.datetime(1, 1, 1))
@example(datetime.datetime(1900, 2, 28, 23, 59, 59))
@example(datetime.datetime(2000, 2, 29))
@example(datetime.datetime(9999, 12, 31, 23, 59, 59))
def test_parts_are_equal_to_those_of_python(scripted: torch.jit.ScriptModule, moment: datetime.datetime) -> None:
    values = {"t": seconds(moment)}
    parts = Dates(["t"], [PARTS])(values)
    assert parts["t year"].item() == moment.year
    assert parts["t day"].item() == moment.day
    hour = moment.hour + moment.minute / 60 + moment.second / 3600
    for name, value, period in (("month", moment.month, 12), ("weekday", moment.weekday(), 7), ("hour", hour, 24)):
        assert parts[f"t {name} (sin)"].item() == pytest.approx(math.sin(2 * math.pi * value / period), abs=1e-9)
        assert parts[f"t {name} (cos)"].item() == pytest.approx(math.cos(2 * math.pi * value / period), abs=1e-9)
    elapsed = moment - datetime.datetime(1970, 1, 1)
    assert parts["t days"].item() == pytest.approx(elapsed / datetime.timedelta(days=1), rel=1e-12, abs=1e-9)
    for name, value in scripted(values).items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-12)


def test_half_a_second_before_a_day_is_the_day_before() -> None:
    parts = Dates(["t"], [["days", "day", "hour"]])({"t": torch.tensor([-0.5, 86399.5])})
    assert parts["t day"].tolist() == [31.0, 1.0]
    assert parts["t days"].tolist() == pytest.approx([-0.5 / 86400, 86399.5 / 86400], abs=1e-7)
    assert parts["t hour (cos)"].tolist() == pytest.approx([1.0, 1.0], abs=1e-7)


def test_a_missing_date_has_no_parts_and_an_absent_column_gives_none(scripted: torch.jit.ScriptModule) -> None:
    parts = scripted({"t": torch.tensor([NAN, 0.0])})
    assert all(values.isnan().tolist() == [True, False] for values in parts.values())
    assert Dates(["t", "u"], [["days"], PARTS])({"t": torch.tensor([86400.0])}) == {"t days": torch.tensor([1.0])}


@pytest.mark.parametrize(
    ("moments", "parts"),
    [
        ([datetime.datetime(2011, 1, 3), datetime.datetime(2011, 1, 10)], ["days", "day"]),
        ([datetime.datetime(2011, 1, 3), datetime.datetime(2011, 7, 4)], ["days", "month", "day"]),
        ([datetime.datetime(2011, 1, 3), datetime.datetime(2011, 1, 3, 12)], ["days", "hour"]),
        ([datetime.datetime(2010, 1, 4, 5), datetime.datetime(2011, 1, 4, 5)], ["days", "year", "weekday"]),
        ([datetime.datetime(2011, 1, 3)] * 2, []),
        ([], []),
    ],
)
def test_parts_that_never_vary_are_left_out(moments: list[datetime.datetime], parts: list[str]) -> None:
    assert varying_parts(torch.cat([seconds(*moments), torch.tensor([NAN], dtype=torch.float64)])) == parts


def test_the_dates_of_bike_sharing_give_its_own_columns_of_month_weekday_and_hour(data_dir: Path) -> None:
    frame = pl.read_csv(data_dir / "bike_sharing" / "hour.csv")
    days, bad = as_date(frame["dteday"], (), False)
    assert not bad.any()
    moments = torch.tensor((days + 3600 * frame["hr"]).to_list(), dtype=torch.float64)
    parts = Dates(["t"], [PARTS])({"t": moments})
    assert parts["t year"].tolist() == (frame["yr"] + 2011).to_list()
    for ours, theirs, period in (
        ("month", frame["mnth"], 12),
        ("weekday", frame["weekday"] - 1, 7),
        ("hour", frame["hr"], 24),
    ):
        angle = torch.tensor(theirs.to_list()) * 2 * math.pi / period
        torch.testing.assert_close(parts[f"t {ours} (sin)"].float(), angle.sin(), rtol=0, atol=1e-5)
        torch.testing.assert_close(parts[f"t {ours} (cos)"].float(), angle.cos(), rtol=0, atol=1e-5)
