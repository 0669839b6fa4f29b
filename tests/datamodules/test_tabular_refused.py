"""Tables that are refused before training: invalid settings, and rows that nothing can be learned from."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from datamodules.readers.read import FILE
from datamodules.schema import DataError
from datamodules.split import Split
from datamodules.tabular import TableDataModule
from tests.datamodules.tables import plain, refused


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (plain(), {"columns": {"z": "drop"}}, "data.columns: the table has no column 'z'; its columns are x, y"),
        (
            plain(xylophone=["1", "2"] * 50),
            {"replace": {"xylofone": [["1", None]]}},
            "data.replace: the table has no column 'xylofone'; did you mean 'xylophone'?",
        ),
        (
            plain(),
            {"replace": {"x": [["unknown", None]]}},
            "data.replace: x holds numbers, but its rules [('unknown', None)] contain text; list text that stands for"
            " missing in data.missing",
        ),
        (
            plain(),
            {"replace": {"x": [["1", "2", "3"]]}},
            'data.replace: x has ["1", "2", "3"]; each rule is a pair [value, replacement]; null as the'
            " replacement means missing",
        ),
        (
            plain(),
            {"columns": {"x": "numeric"}},
            "data.columns: x is 'numeric'; it must be one of number, category, text, date, identifier, constant,"
            " image, drop",
        ),
        (
            plain().with_columns(y=pl.lit("?")),
            {},
            "data.target=y: no row has a value. Cells that count as missing are '', '?', 'NA', 'N/A', 'n/a', 'NaN',"
            " 'nan', 'null', 'NULL' (data.missing).",
        ),
        (
            plain().with_columns(y=pl.lit("a")),
            {},
            "data.target=y: every row has 'a'; there is nothing to learn.",
        ),
        (
            plain().with_columns(y=pl.lit("5.5")),
            {"task": "regression"},
            "data.target=y: every row has 5.5; there is nothing to learn.",
        ),
        (
            plain(y=["a", "b", "c", "a"] * 25),
            {"task": "binary"},
            "data.task=binary, but data.target=y has 3 classes, such as 'a', 'b', 'c': set data.task=multiclass, or"
            " merge some with data.replace",
        ),
        (
            plain().with_columns(y=pl.when(pl.int_range(100) == 7).then(pl.lit("odd")).otherwise("y")),
            {},
            "data.target=y: 1 of 3 classes have a single row, such as 'odd'; it cannot be in both training and test."
            " Give more rows, merge it with another class, or leave it out: data.replace='{y: [[\"odd\", null]]}'",
        ),
        (
            plain().select("y", x=pl.lit("v")),
            {},
            "no column is left to learn from: y (category), x (constant). Set one with data.columns='{NAME: category}'",
        ),
        (
            plain(4),
            {"split": Split(fractions=(0.9, 0.05, 0.05))},
            "the val split is empty: 4 rows with data.split.by=stratified, data.split.fractions=[0.9, 0.05, 0.05]; give"
            " more rows, or change these settings",
        ),
    ],
)
def test_unusable_tables_are_refused(
    tmp_path: Path, table: pl.DataFrame, settings: dict[str, Any], message: str
) -> None:
    assert refused(tmp_path, table, **settings) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranges": {"x": [0]}}, "data.ranges: x has [0]; give [lowest, highest], null for no bound"),
        ({"ranges": {"x": [5, 1]}}, "data.ranges: x has [5, 1]; give [lowest, highest], null for no bound"),
        (
            {"replace": {"x": [[" ?", "none"]]}},
            'data.replace: x has [" ?", "none"], but " ?" counts as missing; remove it from data.missing to replace it',
        ),
        ({"separator": "||"}, "data.separator='||': must be one character; a tab is found without it"),
        ({"max_bad_fraction": 5}, "data.max_bad_fraction=5: must be from 0 to 1"),
        ({"batch_size": 0}, "data.batch_size=0: must be 1 or more"),
    ],
)
def test_invalid_settings_are_refused_before_the_table_is_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        TableDataModule("no such file", "y", **settings)
    assert str(error.value) == message


def test_an_unknown_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(plain().write_csv())
    with pytest.raises(DataError) as error:
        TableDataModule(f"{tmp_path}/rows.csv", "yy").setup()
    assert str(error.value) == "data.target: the table has no column 'yy'; did you mean 'y'?"
    assert FILE not in str(error.value)


def test_rules_for_columns_of_other_kinds_are_refused(tmp_path: Path) -> None:
    table = plain(note=[f"a note of {row} words" for row in range(100)])
    kind = "note is of kind text (5 words a cell, 100 different texts)"
    assert refused(tmp_path, table, replace={"note": [["a", "b"]]}) == (
        f"data.replace: {kind}; values are replaced in numbers, categories and the target"
    )
    assert refused(tmp_path, table, ranges={"note": [0, 1]}) == (
        f"data.ranges: {kind}; ranges are for number columns other than the target"
    )


def test_settings_that_do_not_fit_the_target_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, plain(), columns={"y": "drop"}) == "data.columns: y is data.target, and cannot be dropped"
    amounts = plain().with_columns(y=pl.Series([str(row) for row in range(100)]))
    assert refused(tmp_path, amounts, sampling="balanced") == (
        "data.sampling=balanced: 'y' is a regression target, without classes"
    )
