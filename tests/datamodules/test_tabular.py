"""From files to batches: inferred kinds of columns, rejected rows, splits and batches."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.cells import MISSING
from datamodules.preparation.infer_schema import infer_columns
from datamodules.readers.read import LINE
from datamodules.schema import DataError
from datamodules.split import SPLITS, Split
from datamodules.tabular import TableDataModule
from tests.datamodules.tables import plain, refused, set_up


def kinds(table: pl.DataFrame, target: str = "y", **overrides: Any) -> dict[str, tuple[str, str]]:
    columns = infer_columns(table, target=target, overrides=overrides, missing=MISSING)
    return {column.name: (column.kind, column.reason) for column in columns}


def test_kinds_of_columns_are_inferred_with_a_reason() -> None:
    table = pl.DataFrame(
        {
            "id": [f"k{row}" for row in range(100)],
            "row": range(1, 101),
            "amount": [f" {row * 37 % 50},{row:03d}.5" if row % 9 else "?" for row in range(100)],
            "mostly": [str(row * 7 % 10) if row % 25 else "lots" for row in range(100)],
            "level": ["low", " high", "NA", "low "] * 25,
            "flag": [True, False] * 50,
            "day": [f"2024-01-{row % 28 + 1:02d}" for row in range(100)],
            "words": [f"a line of words number {row}" for row in range(100)],
            "same": ["v"] * 100,
            "empty": ["", " ", "?", None] * 25,
            "y": [0, 1] * 50,
        }
    )
    assert kinds(table) == {
        "id": ("identifier", "100 different values in 100 rows"),
        "row": ("identifier", "counts the rows from 1 to 100"),
        "amount": ("number", "numbers from 50.5 to 49077.5"),
        "mostly": ("number", "numbers from 0 to 9, but 4 cells are not"),
        "level": ("category", "2 levels in 100 rows"),
        "flag": ("category", "2 levels in 100 rows"),
        "day": ("date", "dates such as 2024-01-01"),
        "words": ("text", "6 words a cell, 100 different texts"),
        "same": ("constant", "one value: v"),
        "empty": ("constant", "no value in 100 rows"),
        "y": ("number", "numbers from 0 to 1"),
    }
    assert kinds(table, row="number", id="category")["row"] == ("number", "given")


REAL = {
    "titanic/titanic_train.csv": (
        "Survived",
        {"PassengerId": "identifier", "Name": "text", "Ticket": "identifier", "Pclass": "number", "Sex": "category"},
    ),
    "telco_churn/Telco-Customer-Churn.csv": (
        "Churn",
        {"customerID": "identifier", "TotalCharges": "number", "SeniorCitizen": "number", "Contract": "category"},
    ),
    "bike_sharing/hour.csv": ("cnt", {"instant": "identifier", "dteday": "date", "hr": "number"}),
}


@pytest.mark.parametrize("name", REAL)
def test_kinds_of_real_columns(data_dir: Path, name: str) -> None:
    target, expected = REAL[name]
    datamodule = TableDataModule(str(data_dir / name), target)
    datamodule.setup()
    found = {column.name: column.kind for column in datamodule.columns}
    assert {column: found[column] for column in expected} == expected


def test_adult_with_the_settings_of_its_config(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    spellings = {"income": [["<=50K.", "<=50K"], [">50K.", ">50K"]]}
    path = str(data_dir / "adult" / "adult.csv.gz")
    datamodule = TableDataModule(path, "income", columns={"fnlwgt": "drop"}, replace=spellings)
    datamodule.setup()
    assert datamodule.target.classes == ("<=50K", ">50K")
    assert sum(facts["rows"] for facts in datamodule.splits.values()) == 48_842
    assert datamodule.quarantine is not None
    assert len(datamodule.quarantine) == 0
    assert "52 rows with an earlier exact copy: kept, in the same split as the first copy" in caplog.text
    train = datamodule.frame("train")
    assert train["workclass"].str.strip_chars().eq("?").sum() > 100  # raw text: the features clean it
    levels = {column["name"]: column for column in datamodule.describe()["columns"]}
    assert levels["workclass"]["missing"]
    assert "?" not in levels["workclass"]["levels"]

    with pytest.raises(DataError) as error:
        TableDataModule(path, "income").setup()
    assert str(error.value) == (
        "data.target=income: classes that differ only by blanks, case or punctuation: '<=50K' (24,720 rows) and"
        " '<=50K.' (12,435 rows); '>50K' (7,841 rows) and '>50K.' (3,846 rows). If they are the same, use"
        """ data.replace='{income: [["<=50K.", "<=50K"], [">50K.", ">50K"]]}'; if they are not, use"""
        """ data.replace='{income: [["<=50K.", "<=50K."], [">50K.", ">50K."]]}'"""
    )


def test_numbers_replaced_in_a_real_table_are_missing(data_dir: Path) -> None:
    zeros = {name: [[0, None]] for name in ("x", "y", "z")}
    datamodule = TableDataModule(str(data_dir / "diamonds" / "diamonds.csv"), "price", replace=zeros)
    datamodule.setup()
    described = {column["name"]: column for column in datamodule.describe()["columns"]}
    assert all(described[name]["min"] > 0 and described[name]["missing"] for name in "xyz")
    assert datamodule.inputs.indicators == ("x", "y", "z")
    assert datamodule.target.task == "regression"


def test_rejected_rows_go_to_quarantine_with_their_lines(tmp_path: Path) -> None:
    table = plain(amount=[str(row * 1.5) for row in range(100)]).with_row_index()
    table = table.with_columns(
        amount=pl.when(pl.col("index") == 3).then(pl.lit("lots")).otherwise("amount"),
        y=pl.when(pl.col("index") == 5).then(pl.lit(" ")).otherwise("y"),
    ).drop("index")
    datamodule = set_up(tmp_path, table, ranges={"amount": [0, 140]}, max_bad_fraction=0.1)
    path = f"{tmp_path}/rows.csv"
    assert datamodule.quarantine is not None
    assert datamodule.quarantine.rows() == [
        (path, 5, "amount", "not a number", "lots"),
        *((path, line, "amount", "outside range", str((line - 2) * 1.5)) for line in range(96, 102)),
        (path, 7, "y", "no target", " "),
    ]
    kept = pl.concat(datamodule.frame(split) for split in SPLITS)
    assert len(kept) == 92
    assert not set(kept[LINE]) & {5, 7, *range(96, 102)}


def test_too_many_rejected_rows_stop_the_run_and_keep_the_quarantine(tmp_path: Path) -> None:
    table = plain(amount=["5"] * 97 + ["a", "b", "c"])
    (tmp_path / "rows.csv").write_text(table.write_csv())
    datamodule = TableDataModule(f"{tmp_path}/rows.csv", "y", columns={"amount": "number"}, max_bad_fraction=0.02)
    with pytest.raises(DataError) as error:
        datamodule.setup()
    assert str(error.value) == (
        "3 of 100 rows would be rejected, more than data.max_bad_fraction=0.02: amount: not a number in 3 rows, as in"
        f" {tmp_path}/rows.csv, line 99: 'a'. All are in quarantine.parquet; fix the rows, or change data.columns,"
        " data.missing, data.ranges or data.max_bad_fraction."
    )
    assert datamodule.quarantine is not None
    assert datamodule.quarantine["value"].to_list() == ["a", "b", "c"]


def test_rejected_rows_are_reported_before_problems_of_the_others(tmp_path: Path) -> None:
    table = plain().with_columns(y=pl.when(pl.int_range(100) < 98).then(pl.lit("?")).otherwise("y"))
    rest = (
        f": y: no target in {{}} rows, as in {tmp_path}/rows.csv, line 2: '?'. All are in quarantine.parquet; fix the"
        " rows, or change data.columns, data.missing, data.ranges or data.max_bad_fraction."
    )
    limit = "98 of 100 rows would be rejected, more than data.max_bad_fraction=0.05"
    assert refused(tmp_path, table) == limit + rest.format(98)
    words = plain().rename({"x": "y", "y": "x"}).with_columns(y=pl.lit("?") + pl.col("x"))
    assert refused(tmp_path, words, task="regression", max_bad_fraction=1) == (
        "100 of 100 rows would be rejected, and none is left"
        + rest.format(100).replace("no target", "not a number").replace("'?'", "'?a'")
    )


def test_a_column_of_mostly_numbers_reports_other_cells(tmp_path: Path) -> None:
    table = plain(300, amount=[str(row % 50) if row % 10 else " unknown" for row in range(300)])
    assert kinds(table)["amount"] == (
        "category",
        "46 levels in 300 rows; 30 cells such as unknown are no numbers, the others are",
    )


def test_values_are_replaced_after_cleaning(tmp_path: Path) -> None:
    table = plain(90, c=[" 1", "1.0", "two"] * 30).with_columns(y=pl.Series(["1", "1.00", "zero"] * 30))
    rules = {"y": [[1.0, "one"]], "c": [["1.0", " two "]]}
    datamodule = set_up(tmp_path, table, columns={"c": "category"}, replace=rules)
    assert datamodule.target.classes == ("one", "zero")
    assert datamodule.inputs.categories == (("c", 2),)
    codes = datamodule.features({}, {"c": ["1", " 1.0", "two", "three"]}, {})["codes"]
    assert codes.flatten().tolist() == [1, 1, 1, 0]


def test_spellings_with_a_rule_are_classes_and_numbers_are_not_spellings(tmp_path: Path) -> None:
    table = plain().with_columns(y=pl.Series(["c", "C"] * 50))
    assert refused(tmp_path, table) == (
        "data.target=y: classes that differ only by blanks, case or punctuation: 'C' (50 rows) and 'c' (50 rows). If"
        """ they are the same, use data.replace='{y: [["c", "C"]]}'; if they are not, use"""
        """ data.replace='{y: [["c", "c"]]}'"""
    )
    assert set_up(tmp_path, table, replace={"y": [["c", "c"]]}).target.classes == ("C", "c")
    amounts = plain().with_columns(y=pl.Series(["1000", "1,000", *(str(row) for row in range(18))] * 5))
    assert set_up(tmp_path, amounts).target.task == "regression"


def test_copies_with_other_spellings_are_dropped_on_request(tmp_path: Path) -> None:
    table = plain(40, id=[f"k{row}" for row in range(40)], z=[str(row) for row in range(40)])
    copies = table.head(3).with_columns(x=" " + pl.col("x") + ".0", id=pl.Series(["c1", "c2", "c3"]))
    datamodule = set_up(tmp_path, pl.concat([table, copies]), duplicates="drop")
    assert sum(facts["rows"] for facts in datamodule.splits.values()) == 40


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (["1", "0"], "binary", ("0", "1")),
        (["1.0", " 0"], "binary", ("0", "1")),
        (["a", "b", "c"], "multiclass", ("a", "b", "c")),
        (["10", "9", "2"], "multiclass", ("2", "9", "10")),
        ([str(index) for index in range(50)], "regression", ()),
        (["1,000.5", "2", "3.25"], "regression", ()),
    ],
)
def test_the_task_is_inferred_from_the_target(
    tmp_path: Path, values: list[str], task: str, classes: tuple[str, ...]
) -> None:
    target = (values * 150)[:150]
    datamodule = set_up(tmp_path, pl.DataFrame({"x": [str(row % 7) for row in range(150)], "y": target}))
    assert (datamodule.target.task, datamodule.target.classes) == (task, classes)


def test_a_few_rows_are_one_batch(tmp_path: Path) -> None:
    datamodule = set_up(tmp_path, plain(10), batch_size=256)
    batches = list(datamodule.train_dataloader())
    assert [len(batch["target"]) for batch in batches] == [datamodule.splits["train"]["rows"]]


def test_a_wide_table_has_smaller_evaluation_batches(tmp_path: Path) -> None:
    wide = {f"x{column}": [f"{row * column % 257}.5" for row in range(100)] for column in range(1, 257)}
    datamodule = set_up(tmp_path, plain(**wide))
    assert len(datamodule.inputs.numbers) + len(datamodule.inputs.categories) == 257
    assert (datamodule.eval_batch_size, set_up(tmp_path, plain()).eval_batch_size) == (2**20 // 257, 8192)
    assert set_up(tmp_path, plain(), eval_batch_size=10).val_dataloader().batch_size == 10


def test_splits_by_time_and_by_column_use_the_column(tmp_path: Path) -> None:
    dates = [f"2024-{month:02d}-{day:02d}" for month in range(12, 0, -1) for day in range(10, 0, -1)][:100]
    datamodule = set_up(tmp_path, plain(when=dates), split=Split("time", "when"))
    last_lines = {split: sorted(datamodule.row_locations(split)[LINE]) for split in SPLITS}
    assert last_lines["test"] == list(range(2, 22))  # the first lines are the latest days
    assert last_lines["train"] == list(range(38, 102))

    parts = ["train", "train", "val", "test"] * 25
    datamodule = set_up(tmp_path, plain(part=parts), split=Split("column", "part"))
    assert [datamodule.splits[split]["rows"] for split in SPLITS] == [50, 25, 25]
    assert datamodule.describe()["unused"] == ["part"]
    assert datamodule.columns[-1].reason == "says which rows train"


def test_features_are_fitted_on_training_rows_only(tmp_path: Path) -> None:
    table = plain(part=["train"] * 60 + ["val", "test"] * 20, z=[str(row * 7 % 30) for row in range(100)])
    settings: dict[str, Any] = {"split": Split("column", "part")}
    before = set_up(tmp_path, table, **settings)
    late = pl.int_range(100) >= 60
    changed = table.with_columns(
        z=pl.when(late).then(pl.lit("1e6")).otherwise("z"), x=pl.when(late).then(pl.lit("")).otherwise("x")
    )
    after = set_up(tmp_path, changed, **settings)
    assert before.inputs == after.inputs
    fitted = after.features.state_dict()
    for name, value in before.features.state_dict().items():
        assert torch.equal(value, fitted[name]), name


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10), rows=st.integers(20, 200))
def test_batches_contain_each_training_row_once(tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int) -> None:
    table = pl.DataFrame({"x": range(rows), "y": ["a", "b"] * (rows // 2) + ["a"] * (rows % 2)})
    datamodule = set_up(tmp_path_factory.getbasetemp(), table, columns={"x": "number"}, seed=seed, batch_size=16)
    loader = datamodule.train_dataloader()
    loader.set_epoch(seed)
    seen = torch.cat([batch["numbers"][:, 0] for batch in loader]).sort().values
    assert torch.equal(seen, datamodule.head("train", rows)["numbers"][:, 0].sort().values)
