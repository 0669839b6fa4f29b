"""Splits that are refused: contradictory settings, and rows that cannot be split."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from datamodules.schema import DataError
from datamodules.split import Split
from tests.datamodules.test_split import classes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"fractions": (0.8, 0.2)},
            "data.split.fractions=[0.8, 0.2]: must be three shares above 0: train, val, test",
        ),
        (
            {"fractions": (0.8, 0.2, 0)},
            "data.split.fractions=[0.8, 0.2, 0]: must be three shares above 0: train, val, test",
        ),
        (
            {"fractions": (0.8, float("nan"), 0.2)},
            "data.split.fractions=[0.8, nan, 0.2]: must be three shares above 0: train, val, test",
        ),
        (
            {"by": "random", "column": "id"},
            "data.split.by=random with data.split.column=id: only group, time and column take a column",
        ),
        (
            {"by": "group"},
            "data.split.by=group with data.split.column=None: name the column that holds the group of each row",
        ),
        (
            {"by": "column"},
            "data.split.by=column with data.split.column=None: name the column that holds train, val or test for each"
            " row",
        ),
        ({"by": "time", "gap": -1}, "data.split.gap=-1: must be 0 or more"),
        ({"by": "time", "gap": float("inf")}, "data.split.gap=inf: must be 0 or more"),
        ({"gap": 2.5}, "data.split.gap=2.5 with data.split.by=stratified: a gap needs data.split.by=time"),
        ({"seed": -1}, "data.split.seed=-1: must be 0 or more"),
        ({"folds": 1}, "data.split.folds=1: must be 2 or more"),
        ({"fold": 5}, "data.split.fold=5 with data.split.folds=5: must be from 0 to 4"),
        ({"fold": -1, "folds": 10}, "data.split.fold=-1 with data.split.folds=10: must be from 0 to 9"),
        (
            {"by": "column", "column": "part", "fold": 0},
            "data.split.fold=0 with data.split.by=column: the column gives the test rows, so there are no folds",
        ),
    ],
)
def test_invalid_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        Split(**given)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("split", "column", "files", "message"),
    [
        (
            Split("column", column="part"),
            ["train", "val", "holdout", "holdout"],
            None,
            "column 'part' gives the splits, but holds 'holdout' in 2 rows: it may only hold train, val and test",
        ),
        (
            Split("column", column="part"),
            ["train", "val", "val", "val"],
            None,
            "column 'part' gives the splits, but no row has test",
        ),
        (
            Split("column", column="part"),
            ["train", "val", "test", "test"],
            [0, 0, 0, 2],
            "data.split.by=column with data.val_path or data.test_path: use one of them",
        ),
        (
            Split("time", column="part"),
            ["2024-01-01", "2024-01-02", "never", "2024-01-03"],
            None,
            "column 'part' cannot order the rows by time: 'never' is neither a number nor a date such as"
            " 2024-01-31; choose another data.split.column",
        ),
        (
            Split("time", column="part"),
            ["1", "2", "3", "4 days"],
            None,
            "column 'part' cannot order the rows by time: '4 days' is neither a number nor a date such as"
            " 2024-01-31; choose another data.split.column",
        ),
        (
            Split("time", column="part"),
            ["1", " ", "3", "NA"],
            None,
            "column 'part' orders the rows by time, but is missing in 2 of 4 rows; remove these rows from the file, or"
            " choose another data.split.column",
        ),
        (
            Split("group", column="part"),
            ["a", "a", " a", "a"],
            None,
            "data.split.column=part: all 4 rows are in one group, but 3 are needed; choose another column, or"
            " data.split.by=stratified",
        ),
        (
            Split("group", column="part", fold=1),
            ["a", "a", "b", "c"],
            None,
            "data.split.column=part: there are 3 groups, but 5 are needed; choose another column, or"
            " data.split.by=stratified",
        ),
        (
            Split(fold=0),
            None,
            [0, 0, 0, 2],
            "data.split.fold=0 with data.test_path: the file gives the test rows, so there are no folds",
        ),
        (
            Split("random"),
            None,
            [0, 2, 2, 2],
            "the train split is empty: 1 row with data.split.by=random, data.split.fractions=[0.64, 0.16, 0.2]; give"
            " more rows, or change these settings",
        ),
        (
            Split("time", fractions=(2, 1, 1), gap=2),
            None,
            None,
            "the train split is empty: 4 rows with data.split.by=time, data.split.fractions=[2, 1, 1],"
            " data.split.gap=2; give more rows, or change these settings",
        ),
        (
            Split("time", folds=3, fold=0),
            None,
            None,
            "the train split is empty: 4 rows with data.split.by=time, data.split.fractions=[0.64, 0.16, 0.2],"
            " data.split.folds=3; give more rows, or change these settings",
        ),
    ],
)
def test_rows_that_cannot_be_split_are_refused(
    split: Split, column: list[str] | None, files: list[int] | None, message: str
) -> None:
    with pytest.raises(DataError) as error:
        split.assign(
            classes(4),
            "multiclass",
            column=None if column is None else pl.Series("part", column),
            files=None if files is None else np.array(files, dtype=np.int8),
        )
    assert str(error.value) == message
