"""Splits: sizes, classes, time, copies, and what is refused."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.schema import DataError
from datamodules.split import split_rows

FRACTIONS = (0.64, 0.16, 0.20)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(30, 400), st.floats(0.1, 0.9))
def test_stratified_keeps_each_class_within_a_row_of_its_share(seed: int, rows: int, share: float) -> None:
    positive = max(int(rows * share), 10)
    target = pl.Series(["yes"] * positive + ["no"] * max(rows - positive, 10))
    split = split_rows(target, by="stratified", fractions=FRACTIONS, seed=seed)
    for name in ("yes", "no"):
        members = split[(target == name).to_numpy()]
        for code, fraction in enumerate(FRACTIONS):
            assert abs((members == code).sum() - fraction * len(members)) < 1 + 1e-9


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    target = pl.Series(range(1000))
    first, again, other = (split_rows(target, by="random", fractions=FRACTIONS, seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert np.bincount(first).tolist() == [640, 160, 200]


def test_time_puts_the_latest_rows_in_test_and_reads_numbers_as_numbers() -> None:
    column = pl.Series("when", ["10", "9", "1", "2", "3", "4", "5", "6", "7", "8"])
    split = split_rows(pl.Series(range(10)), by="time", fractions=(0.6, 0.2, 0.2), seed=0, column=column)
    assert split.tolist() == [2, 2, 0, 0, 0, 0, 0, 0, 1, 1]


def test_rows_of_one_time_keep_their_order() -> None:
    column = pl.Series("when", [1] * 600 + [0] * 400)
    split = split_rows(pl.Series(range(1000)), by="time", fractions=FRACTIONS, seed=0, column=column)
    assert np.flatnonzero(split == 2).tolist() == list(range(400, 600))


def test_time_without_a_column_is_the_order_of_the_file() -> None:
    split = split_rows(pl.Series(range(5)), by="time", fractions=(0.6, 0.2, 0.2), seed=0)
    assert split.tolist() == [0, 0, 0, 1, 2]


def test_copies_stay_with_the_first() -> None:
    first_copy = pl.Series([0, 1, 0, 1, *range(4, 100)])
    for seed in range(5):
        target = pl.Series(range(100))
        split = split_rows(target, by="random", fractions=FRACTIONS, seed=seed, first_copy=first_copy)
        assert split[2] == split[0]
        assert split[3] == split[1]


def test_a_column_can_give_the_split() -> None:
    column = pl.Series("part", ["train", " Test", "validation", "VAL"])
    split = split_rows(pl.Series(range(4)), by="column", fractions=FRACTIONS, seed=0, column=column)
    assert split.tolist() == [0, 2, 1, 1]


@pytest.mark.parametrize(
    ("by", "column", "message"),
    [
        (
            "column",
            ["train", "val", "holdout", "holdout"],
            "column 'part' splits the rows, but holds 'holdout' in 2 rows: it may only hold train, val and test",
        ),
        ("column", ["train", "val", "val", "val"], "column 'part' splits the rows, but no row says test"),
        (
            "time",
            ["soon", "late", "never", "now"],
            "column 'part' cannot order the rows by time: it is neither numbers nor dates such as 2024-01-31 "
            "(its first value is 'soon'); choose another data.split_column",
        ),
        (
            "time",
            ["1", " ", "3", "4"],
            "column 'part' orders the rows by time, but is missing in 1 of 4; leave those out of the file, or choose"
            " another data.split_column",
        ),
    ],
)
def test_a_column_that_cannot_split_is_refused(by: str, column: list[str], message: str) -> None:
    with pytest.raises(DataError) as error:
        split_rows(pl.Series(range(4)), by=by, fractions=FRACTIONS, seed=0, column=pl.Series("part", column))  # type: ignore[arg-type]
    assert str(error.value) == message


def test_too_few_rows_for_the_fractions_are_refused() -> None:
    with pytest.raises(DataError) as error:
        split_rows(pl.Series(["a", "b"]), by="random", fractions=FRACTIONS, seed=0)
    assert str(error.value) == (
        "2 different rows leave the val split empty with data.split_fractions=[0.64, 0.16, 0.2]: give more rows or"
        " other fractions"
    )
