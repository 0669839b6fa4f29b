"""Parsing of raw cells."""

import datetime
import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cells import MANY, MISSING, as_date, as_number, as_text, between, clean_text, day_first


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("1", 1.0),
        (" 2.50\t", 2.5),
        ("\u00a07 ", 7.0),
        ("+3", 3.0),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("1e5", 1e5),
        ("1,234", 1234.0),
        ("-1,234,567.5", -1234567.5),
        ("", None),
        ("?", None),
        (" NA ", None),
        ("inf", None),
        ("-Infinity", None),
        ("1e999", None),
        (None, None),
    ],
)
def test_numbers_and_missing_as_text(cell: str | None, number: float | None) -> None:
    values, bad = as_number(pl.Series("x", [cell], pl.String), MISSING)
    assert values.to_list() == [number]
    assert bad.to_list() == [False]


@pytest.mark.parametrize("cell", ["thirty", "1_000", "0x10", "12 km", "1,2", "1,2345", "--1", "٣", "1.2.3", "$5"])
def test_text_that_is_not_a_number_is_bad_and_null(cell: str) -> None:
    values, bad = as_number(pl.Series("x", ["1", cell]), MISSING)
    assert values.to_list() == [1.0, None]
    assert bad.to_list() == [False, True]


@pytest.mark.parametrize(
    ("cell", "moment"),
    [
        ("2011-01-31", "2011-01-31"),
        (" 2011-1-5\t", "2011-01-05"),
        ("2011/01/31 10:20", "2011-01-31T10:20"),
        ("2011.01.31", "2011-01-31"),
        ("2011-01-31T10:20:30Z", "2011-01-31T10:20:30"),
        ("2011-01-31 10:20:30.25 UTC", "2011-01-31T10:20:30.250"),
        ("2011-01-31T10:20:30+05:45", "2011-01-31T04:35:30"),
        ("2011-01-31 22:20-0330", "2011-02-01T01:50"),
        ("2011-01-31 10:20:30.5+02", "2011-01-31T08:20:30.500"),
        ("31.01.2011", "2011-01-31"),
        ("31.01.2011 23:59", "2011-01-31T23:59"),
        ("01/31/2011", "2011-01-31"),
        ("1-31-2011 2:30 PM", "2011-01-31T14:30"),
        ("01/31/2011 12:00:01 am", "2011-01-31T00:00:01"),
        ("20110131", "2011-01-31"),
        ("20110131.0", "2011-01-31"),
        ("Jan 31, 2011", "2011-01-31"),
        ("OCTOBER 3 2011 10:00", "2011-10-03T10:00"),
        ("31 Jan 2011", "2011-01-31"),
        ("31-January-2011", "2011-01-31"),
        ("1296432000", "2011-01-31"),
        ("1296432000.5", "2011-01-31T00:00:00.500"),
        ("1296432000500", "2011-01-31T00:00:00.500"),
        ("0001-01-01", "0001-01-01"),
        ("9999-12-31", "9999-12-31"),
        ("NA", None),
        (None, None),
    ],
)
def test_dates_in_common_formats(cell: str | None, moment: str | None) -> None:
    # A column may contain several formats.
    seconds, bad = as_date(pl.Series("x", ["2000-01-01", cell], pl.String), MISSING, False)
    expected = moment and datetime.datetime.fromisoformat(moment).replace(tzinfo=datetime.UTC).timestamp()
    assert seconds.to_list() == [946684800.0, expected]
    assert bad.to_list() == [False, False]


@pytest.mark.parametrize(
    "cell",
    [
        *(
            "soon",
            "2011",
            "1/31/11",
            "2011-02-30",
            "31/01/2011",
            "2011-01/31",
            "+2011-01-31",
            "201-01-31",
            "3 Foo 2011",
        ),
        *("2011-01-31 25:00", "2011-01-31 10:20:61", "2011-01-31 13:30 PM", "13:30", "0", "99999999", "-1296432000"),
    ],
)
def test_text_that_is_not_a_date_is_bad_and_null(cell: str) -> None:
    seconds, bad = as_date(pl.Series("x", ["2000-01-01 00:00", cell]), MISSING, False)
    assert seconds.to_list() == [946684800.0, None]
    assert bad.to_list() == [False, True]


def test_days_above_12_decide_for_the_whole_column_whether_the_day_comes_first() -> None:
    european = pl.Series(["01/02/2011", "1/13/2011", " 31/01/2011 10:00", "30-01-2011", "?", None])
    assert day_first(european)
    assert not day_first(pl.Series(["01/02/2011", "1/13/2011"]))
    assert not day_first(pl.Series(["01/02/2011", "20.03.2011", "2011-01-20"]))
    seconds, bad = as_date(european[:4], MISSING, True)
    assert seconds.to_list() == [1296518400.0, None, 1296468000.0, 1296345600.0]
    assert bad.to_list() == [False, True, False, False]


@pytest.mark.parametrize(
    ("cells", "seconds"),
    [
        (pl.Series([datetime.date(2011, 1, 31), None]), [1296432000.0, None]),
        (pl.Series([datetime.datetime(1969, 12, 31, 23, 59, 59, 500_000)]), [-0.5]),
        (pl.Series([datetime.datetime(1970, 1, 2)], dtype=pl.Datetime("ms")), [86400.0]),
        (pl.Series(["1970-01-02T00:00+02:00"]).str.to_datetime(time_unit="ns", time_zone="Asia/Tokyo"), [79200.0]),
        (pl.Series([datetime.time(5)]), [18000.0]),
        (pl.Series([datetime.timedelta(days=-1)]), [-86400.0]),
        (pl.Series([20110131, 1296432000]), [1296432000.0] * 2),
        (pl.Series([1296432000.5, math.nan]), [1296432000.5, None]),
    ],
)
def test_dates_of_typed_columns(cells: pl.Series, seconds: list[float | None]) -> None:
    found, bad = as_date(cells, MISSING, False)
    assert found.to_list() == seconds
    assert not bad.any()


@given(st.lists(st.datetimes(), min_size=1), st.sampled_from(["%Y-%m-%dT%H:%M:%S.%f", "%d %B %Y %H:%M:%S.%f"]))
def test_any_datetime_written_as_text_is_read_back(moments: list[datetime.datetime], format_: str) -> None:
    cells = [moment.strftime(format_.replace("%Y", f"{moment.year:04}")) for moment in moments]
    seconds, bad = as_date(pl.Series(cells), MISSING, False)
    assert not bad.any()
    expected = [moment.replace(tzinfo=datetime.UTC).timestamp() for moment in moments]
    assert seconds.to_list() == pytest.approx(expected, rel=1e-15, abs=1e-9)


@given(st.lists(st.none() | st.floats(), max_size=20))
def test_floats_are_unchanged_and_infinities_are_missing(cells: list[float | None]) -> None:
    values, bad = as_number(pl.Series("x", cells, pl.Float64), MISSING)
    assert values.to_list() == [None if x is None or not math.isfinite(x) else x for x in cells]
    assert not bad.any()


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53), max_size=20))
def test_numbers_written_as_text_are_read_back(cells: list[float]) -> None:
    values, bad = as_number(pl.Series("x", [str(cell) for cell in cells], pl.String), MISSING)
    assert values.to_list() == [float(cell) for cell in cells]
    assert not bad.any()


def test_cells_of_every_type_as_text() -> None:
    assert as_text(pl.Series([1.0, 2.5, None])).to_list() == ["1", "2.5", None]
    assert as_text(pl.Series([True, None])).to_list() == ["true", None]
    assert as_text(pl.Series([7])).to_list() == ["7"]
    assert as_text(pl.Series([" raw "])).to_list() == [" raw "]


def test_a_value_is_one_level_in_text_files_and_typed_files() -> None:
    text = clean_text(as_text(pl.Series(["12", "12.0", " 12 ", "-3.00"])), MISSING)
    typed = clean_text(as_text(pl.Series([12.0, 12.0, 12.0, -3.0])), MISSING)
    assert text.to_list() == typed.to_list() == ["12", "12", "12", "-3"]


def test_absent_bounds_include_everything() -> None:
    values = pl.Series([1.0, None, 5.0])
    assert between(values, None, None).to_list() == [True, True, True]
    assert between(values, 2, None).to_list() == [False, True, True]
    assert between(values, None, 5).to_list() == [True, True, True]


def test_a_low_cardinality_column_is_parsed_like_its_cells() -> None:
    spellings = ["1", " 2.50 ", "1e3", "inf", "?", "", "12.0", "\u00a0x\u00a0", "0x10", "nan", "-0", None]
    short = pl.Series("column", spellings, dtype=pl.String)
    long = pl.concat([short] * (MANY // len(short) + 1))
    for column in (long, long.cast(pl.Categorical(pl.Categories.random()))):
        for read in (lambda cells: as_number(cells, MISSING), lambda cells: as_date(cells, MISSING, False)):
            for one, many in zip(read(short), read(column), strict=True):
                assert many.head(len(short)).equals(one, null_equal=True, check_names=True)
                assert many.tail(len(short)).equals(one, null_equal=True)
        assert clean_text(column, MISSING).tail(len(short)).equals(clean_text(short, MISSING), null_equal=True)


def test_all_spellings_of_a_number_can_stand_for_missing() -> None:
    cells = pl.Series(["-1", "-1.0", " -1", "-1.5", "1,000", "1000"])
    values, bad = as_number(cells, ("-1", "1000"))
    assert values.to_list() == [None, None, None, -1.5, 1000.0, None]
    assert not bad.any()
