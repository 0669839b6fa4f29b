"""What a raw cell means."""

import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cells import MISSING, as_number, as_text, between, clean_text


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
def test_text_that_is_a_number_or_missing(cell: str | None, number: float | None) -> None:
    values, bad = as_number(pl.Series("x", [cell], pl.String), MISSING)
    assert values.to_list() == [number]
    assert bad.to_list() == [False]


@pytest.mark.parametrize("cell", ["thirty", "1_000", "0x10", "12 km", "1,2", "1,2345", "--1", "٣", "1.2.3", "$5"])
def test_text_that_is_no_number_is_bad_and_null(cell: str) -> None:
    values, bad = as_number(pl.Series("x", ["1", cell]), MISSING)
    assert values.to_list() == [1.0, None]
    assert bad.to_list() == [False, True]


@given(st.lists(st.none() | st.floats(), max_size=20))
def test_floats_are_themselves_and_infinities_missing(cells: list[float | None]) -> None:
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


def test_the_same_value_from_a_text_file_and_from_a_typed_one_is_one_level() -> None:
    text = clean_text(as_text(pl.Series(["12", "12.0", " 12 ", "-3.00"])), MISSING)
    typed = clean_text(as_text(pl.Series([12.0, 12.0, 12.0, -3.0])), MISSING)
    assert text.to_list() == typed.to_list() == ["12", "12", "12", "-3"]


def test_bounds_that_are_absent_hold_everything() -> None:
    values = pl.Series([1.0, None, 5.0])
    assert between(values, None, None).to_list() == [True, True, True]
    assert between(values, 2, None).to_list() == [False, True, True]
    assert between(values, None, 5).to_list() == [True, True, True]
