"""The audit: its findings on real and synthetic tables, and no false findings."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from common.cells import MISSING
from datamodules.audit.audit import Finding, audit, refuse, report, to_json
from datamodules.preparation.clean import Rules, clean, clean_target
from datamodules.preparation.infer_schema import infer_columns, infer_task
from datamodules.readers.read import BAD, FILE, LINE
from datamodules.schema import COPY, DataError, Kind

INCOME: dict[str, Rules] = {"income": {"<=50K.": "<=50K", ">50K.": ">50K"}}
BUILTIN = ("breast_cancer", "diabetes", "digits", "iris", "wine")


def run_audit(
    raw: pl.DataFrame,
    target: str,
    *,
    columns: Mapping[str, Kind] | None = None,
    replace: Mapping[str, Rules] | None = None,
    by: str = "random",
    split_column: str | None = None,
    seed: int = 0,
) -> list[Finding]:
    """The findings for raw rows, cleaned and split as in a run: copies together, or by time in the order of rows."""
    raw = raw.with_columns(pl.lit("rows").alias(FILE), pl.int_range(1, pl.len() + 1).alias(LINE))
    kinds = infer_columns(raw, target=target, overrides=columns or {}, missing=MISSING)
    labels = clean_target(raw[target], MISSING, (replace or {}).get(target, {}))
    task, _ = infer_task(labels, "auto")
    frame = clean(
        raw, kinds, labels, task, bad=pl.DataFrame(schema=BAD), missing=MISSING, replace=replace or {}, ranges={}
    ).frame
    time = by == "time"
    copy_number = frame[COPY].rank("dense").to_numpy() - 1
    position = np.arange(len(frame)) if time else np.random.default_rng(seed).permutation(len(frame))[copy_number]
    split = pl.Series(np.digitize(position, [0.64 * len(frame), 0.8 * len(frame)])).cast(pl.Int8)
    column = None if split_column is None else frame[split_column]
    return audit(frame, split, kinds, target, task, split_by=by, split_column=column)


def summary(findings: Sequence[Finding]) -> list[tuple[str, bool, str | None]]:
    return [(finding.check, finding.grave, finding.column) for finding in findings]


def messages_of(check: str, findings: Sequence[Finding]) -> list[tuple[str, str]]:
    return [(finding.message, finding.advice) for finding in findings if finding.check == check]


def table(data_dir: Path, path: str, **settings: Any) -> pl.DataFrame:
    return pl.read_csv(data_dir / path, infer_schema=False, **settings)


def builtin(name: str) -> pl.DataFrame:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    target = bunch.target.astype(str) if "target_names" in bunch else bunch.target
    return pl.DataFrame(bunch.data, schema=list(bunch.feature_names)).with_columns(pl.Series("target", target))


def synthetic(rows: int = 2000, seed: int = 0) -> dict[str, np.ndarray]:
    """Legitimate columns, and a target "y" that depends on them."""
    generator = np.random.default_rng(seed)
    size, weight = generator.normal(size=(2, rows))
    color = generator.choice(["red", "green", "blue"], rows)
    y = size + (color == "red") + generator.normal(size=rows) > 0.3
    return {"size": size, "weight": weight, "color": color, "y": np.where(y, "yes", "no")}


@pytest.mark.parametrize("seed", range(3))
def test_legitimate_rows_give_no_finding(seed: int) -> None:
    findings = run_audit(pl.DataFrame(synthetic(seed=seed)), "y", seed=seed)
    assert findings == []
    assert report(findings) == "audit: no findings"


@pytest.mark.parametrize("name", BUILTIN)
def test_strong_but_legitimate_columns_are_not_leaks(name: str) -> None:
    for seed in range(4):
        assert {finding.check for finding in run_audit(builtin(name), "target", seed=seed)} <= {"constant"}


def test_two_columns_that_add_up_to_the_target(data_dir: Path) -> None:
    hours = table(data_dir, "bike_sharing/hour.csv")
    findings = run_audit(hours, "cnt", by="time", split_column="instant")
    assert summary(findings) == [("leak", True, None), ("drift", False, None), ("identifier", False, "instant")]
    assert report(findings) == (
        "audit: GRAVE leak: cnt is casual + registered; unless they are known at prediction time,"
        " data.columns='{casual: drop, registered: drop}'\n"
        "audit: drift: training rows differ from the other splits, as expected over time; distances, 0 to 1:"
        " cnt 0.28 (validation), yr 0.78 (test), mnth 0.67 (test), season 0.53 (test), temp 0.47 (validation) and 3"
        " more; metrics will be lower than with a random split, but closer to those on future rows\n"
        "audit: identifier: left out as identifiers: instant; data.columns='{NAME: category}' or text uses one"
    )
    with pytest.raises(DataError) as error:
        refuse(findings)
    assert str(error.value) == (
        "data.audit=strict: the audit found problems that invalidate the metrics (data.audit=on only warns):\n"
        "cnt is casual + registered; unless they are known at prediction time,"
        " data.columns='{casual: drop, registered: drop}'"
    )


def test_without_the_leak_only_the_random_split_of_dates_is_reported(data_dir: Path) -> None:
    hours = table(data_dir, "bike_sharing/hour.csv")
    findings = run_audit(hours, "cnt", columns={"casual": "drop", "registered": "drop"})
    assert summary(findings) == [("time", False, "dteday"), ("identifier", False, "instant")]
    assert messages_of("time", findings) == [
        (
            "dteday gives the time, but the split is random: rows older than training rows evaluate the model",
            "data.split.by=time data.split.column=dteday evaluates it on the latest rows",
        )
    ]
    refuse(findings)


def test_adult_has_copies_and_conflicting_rows(data_dir: Path) -> None:
    findings = run_audit(
        table(data_dir, "adult/adult.csv.gz"), "income", columns={"fnlwgt": "drop"}, replace=INCOME, by="stratified"
    )
    assert report(findings) == (
        "audit: duplicates: 52 of 48,842 rows are exact copies of earlier rows in the same split;"
        " data.duplicates=drop leaves them out\n"
        "audit: conflicts: 3,873 of 48,842 rows have the inputs of another row but a different income: no model can"
        " predict more than 97.2% of all rows correctly; only another column that distinguishes them helps"
    )


def test_levels_in_two_spellings(data_dir: Path) -> None:
    findings = run_audit(table(data_dir, "adult/adult.csv.gz"), "sex", columns={"fnlwgt": "drop"})
    assert messages_of("spelling", findings) == [
        (
            "income has levels that differ only by blanks, case or punctuation: '<=50K' (24,720 rows) and '<=50K.'"
            " (12,435), '>50K' (7,841 rows) and '>50K.' (3,846)",
            'if they are the same, data.replace=\'{income: [["<=50K.", "<=50K"], [">50K.", ">50K"]]}\'',
        )
    ]


def test_numbers_are_not_spellings_of_each_other() -> None:
    rows = synthetic()
    rows["size"] = np.tile(["1.5 ", "15", "-15", "1-5"], 500)
    assert run_audit(pl.DataFrame(rows), "y", columns={"size": "category"}) == []


def test_adjacent_rows_are_similar_and_the_split_is_random(data_dir: Path) -> None:
    half_hours = table(data_dir, "electricity/elec.csv.gz")
    findings = run_audit(half_hours, "class", by="stratified")
    assert messages_of("time", findings) == [
        (
            "adjacent rows of the file are similar in class (agreement 0.70; 0 by chance, 1 always), and the random"
            " split separates them",
            "if the file is in order of time or place, data.split.by=time or group evaluates the model on new ones",
        )
    ]
    assert summary(run_audit(half_hours, "class", by="time")) == [("drift", False, None)]


def test_a_file_sorted_by_the_target_is_not_in_order_of_time(data_dir: Path) -> None:
    diamonds = table(data_dir, "diamonds/diamonds.csv")
    assert summary(run_audit(diamonds, "price")) == [("duplicates", False, None)]
    ordered = pl.DataFrame(synthetic()).sort("y")
    assert run_audit(ordered, "y") == []
    grave = [finding for finding in run_audit(ordered, "y", by="time") if finding.grave]
    assert [(finding.message, finding.advice) for finding in grave] == [
        (
            "the file is sorted by y, and the split by time uses the order of the file",
            "use data.split.column=NAME to order rows by a column, or data.split.by=stratified for a random split",
        )
    ]


def test_families_with_one_ticket_are_in_several_splits(data_dir: Path) -> None:
    passengers = table(data_dir, "titanic/titanic_train.csv")
    findings = run_audit(passengers, "Survived", columns={"Name": "identifier"})
    (group,) = [finding for finding in findings if finding.check == "group"]
    assert (group.grave, group.column) == (False, "Ticket")
    assert group.advice == "data.split.by=group data.split.column=Ticket evaluates the model on new ones"
    assert messages_of("identifier", findings) == [
        (
            "left out as identifiers: PassengerId, Ticket, Cabin",
            "data.columns='{NAME: category}' or text uses one",
        )
    ]
    assert "group" not in {finding.check for finding in run_audit(passengers, "Survived", by="group")}


def test_copies_across_splits(data_dir: Path) -> None:
    messages = table(
        data_dir,
        "sms_spam/sms.tsv",
        separator="\t",
        quote_char=None,
        has_header=False,
        new_columns=["label", "message"],
    )
    assert report(run_audit(messages, "label", columns={"message": "text"})) == (
        "audit: duplicates: 414 of 5,574 rows are exact copies of earlier rows in the same split;"
        " data.duplicates=drop leaves them out"
    )
    assert report(run_audit(messages, "label", columns={"message": "text"}, by="time")) == (
        "audit: GRAVE duplicates: 177 of 2,006 validation and test rows are exact copies of training rows;"
        " data.duplicates=drop keeps the first copy of each"
    )


@pytest.mark.parametrize("rows", [200, 5000])
def test_a_column_that_alone_reveals_the_class(rows: int) -> None:
    legitimate = synthetic(rows)
    yes = legitimate["y"] == "yes"
    present = pl.Series("code", np.where(yes, 1.0, np.nan)).fill_nan(None)
    for code in (pl.Series("code", np.where(yes, "A", "B")), pl.Series("code", np.where(yes, 7.5, 2.5)), present):
        findings = run_audit(pl.DataFrame(legitimate).with_columns(code), "y")
        assert report(findings) == (
            "audit: GRAVE leak: code alone reveals y (AUROC 1.000); unless it is known at prediction time,"
            " data.columns='{code: drop}'"
        )


def test_a_column_of_which_the_target_is_a_function() -> None:
    rows: dict[str, Any] = synthetic(5000)
    amount = np.random.default_rng(1).lognormal(size=5000)
    numbers = pl.DataFrame({**rows, "y": amount})
    linear = run_audit(numbers.with_columns(pl.Series("price (net)", amount / 1.19 - 3)), "y")
    assert report(linear) == (
        "audit: GRAVE leak: y is a linear function of price (net); unless it is known at prediction time,"
        r" data.columns='{price \(net\): drop}'"
    )
    curved = run_audit(pl.DataFrame({**rows, "y": np.log(amount)}).with_columns(pl.Series("exp", amount)), "y")
    assert summary(curved) == [("leak", True, "exp")]
    noisy = run_audit(numbers.with_columns(pl.Series("near", np.log(amount) + 0.3 * rows["size"])), "y")
    assert noisy == []


def test_persons_in_several_splits_of_a_random_split() -> None:
    rows: dict[str, Any] = synthetic()
    generator = np.random.default_rng(2)
    person = generator.integers(0, 200, 2000)
    rows["y"] = np.where(generator.random(200)[person] > 0.5, "ill", "well")
    findings = run_audit(pl.DataFrame({**rows, "patient_id": person}), "y", columns={"patient_id": "drop"})
    assert report(findings) == (
        "audit: GRAVE group: 720 of 720 validation and test rows share their patient_id with training rows, and rows"
        " with the same patient_id are similar in y (agreement 1.00; 0 by chance, 1 always); data.split.by=group"
        " data.split.column=patient_id evaluates the model on new ones"
    )
    few_rows_each = pl.Series("address", generator.integers(0, 600, 2000)).cast(pl.String) + " Main Street"
    rows["y"] = np.where(few_rows_each.str.contains("[02468] "), "ill", "well")
    assert ("group", False, "address") in summary(run_audit(pl.DataFrame(rows).with_columns(few_rows_each), "y"))
    rows["y"] = synthetic()["y"]
    assert run_audit(pl.DataFrame({**rows, "patient_id": person}), "y", columns={"patient_id": "drop"}) == []


def test_conflicts_bound_the_rmse() -> None:
    generator = np.random.default_rng(3)
    rows = pl.DataFrame({"dose": np.arange(2000) // 2 % 50 * 1.0, "y": generator.normal(size=2000)})
    spread = float(rows.select(pl.col("y").var(ddof=0).over("dose").mean()).item() ** 0.5)
    share = spread / float(rows["y"].std(ddof=0))
    assert messages_of("conflicts", run_audit(rows, "y")) == [
        (
            f"2,000 of 2,000 rows have the inputs of another row but a different y: no model can reach an RMSE below"
            f" {spread:.3g}, {share:.1%} of the standard deviation",
            "only another column that distinguishes them helps",
        )
    ]


def test_a_rare_class() -> None:
    rows = synthetic()
    rows["y"] = np.where(rows["size"] > 2, "fraud", "fine")
    rare = int((rows["y"][:1280] == "fraud").sum())
    assert messages_of("imbalance", run_audit(pl.DataFrame(rows), "y", by="time")) == [
        (
            f"'fraud' is {rare / 1280:.2%} of the training rows ({rare} of 1,280)",
            "loss.class_weights=balanced or data.sampling=balanced, and monitor=val/average_precision, not accuracy",
        )
    ]


def test_levels_and_drift_of_rows_that_come_later() -> None:
    rows = synthetic()
    late = np.arange(2000) >= 1280
    rows["color"] = np.where(late & (rows["color"] == "red"), "pink", rows["color"])
    rows["weight"] = rows["weight"] + 2 * late
    rows["when"] = np.arange(2000) / 2
    findings = run_audit(pl.DataFrame(rows), "y", by="time", split_column="when")
    pink = int((rows["color"] == "pink").sum())
    assert messages_of("unseen", findings) == [
        (
            f"levels that do not occur in training, in 720 validation and test rows: color in {pink} (such as 'pink')",
            "they count as unknown; data.columns='{NAME: drop}' leaves out columns that only identify rows",
        )
    ]
    (drift,) = messages_of("drift", findings)
    assert drift[0].startswith(
        "training rows differ from the other splits, as expected over time; distances, 0 to 1: weight 0."
    )
    assert "when" not in drift[0]
    assert messages_of("drift", run_audit(pl.DataFrame(rows), "y")) == []


@pytest.mark.parametrize("target", ["count", "class", "level", ""])
def test_column_names_that_the_audit_uses_internally(target: str) -> None:
    rows = synthetic()
    names = [name for name in ("count", "class", "level", "") if name != target]
    columns = dict(zip([*names, target], rows.values(), strict=True))
    assert run_audit(pl.DataFrame(columns), target) == []
    numbers: dict[str, Any] = {**columns, target: columns[names[0]] + columns[names[1]]}
    assert [one.grave for one in run_audit(pl.DataFrame(numbers), target)] == [True]


def test_columns_that_are_always_missing() -> None:
    nothing = pl.Series([None] * 2000, dtype=pl.String)
    frame = pl.DataFrame(synthetic()).with_columns(nothing.alias("a"), nothing.alias("b"), nothing.alias("c"))
    findings = run_audit(frame, "y", columns={"a": "number", "b": "category", "c": "date"})
    assert messages_of("constant", findings) == [
        ("one value or missing in at least 99.9% of rows: a, b", "data.columns='{a: drop, b: drop}'")
    ]


def test_uninformative_columns() -> None:
    rows: dict[str, Any] = synthetic()
    rows["number"] = np.random.default_rng(4).permutation(10**6)[:2000]
    rows["source"] = np.repeat("survey", 2000)
    rows["flag"] = (np.arange(2000) == 7) * 1
    assert report(run_audit(pl.DataFrame(rows), "y")) == (
        "audit: identifier: whole numbers that are unique in each row, such as identifiers and times: number;"
        " data.columns='{number: drop}', or date if it is a time\n"
        "audit: constant: left out, with a single value: source; nothing can be learned from them\n"
        "audit: constant: one value or missing in at least 99.9% of rows: flag; data.columns='{flag: drop}'"
    )


def test_rows_that_are_left_out_do_not_count() -> None:
    kinds = infer_columns(
        pl.DataFrame({"x": ["1", "2"], "y": ["a", "b"], FILE: "f", LINE: 1}), target="y", overrides={}, missing=MISSING
    )
    legitimate = np.random.default_rng(5).normal(size=400)
    frame = pl.DataFrame(
        {
            "x": np.concatenate([legitimate, legitimate]),
            "y": np.random.default_rng(6).choice(["a", "b"], 800),
            COPY: np.tile(np.arange(400, dtype=np.uint64), 2),
        }
    )
    split = pl.Series([0] * 200 + [1] * 100 + [2] * 100 + [-1] * 400, dtype=pl.Int8)
    assert audit(frame, split, kinds, "y", "binary", split_by="time") == []


def test_the_report_is_short_and_the_json_complete() -> None:
    findings = [Finding("leak", False, f"x{index}", f"message {index}", "advice") for index in range(13)]
    lines = report(findings).split("\n")
    assert lines[0] == "audit: leak: message 0; advice"
    assert lines[10:] == ["audit: ... and 3 more in audit.json"]
    assert json.loads(to_json(findings))[12] == {
        "check": "leak",
        "grave": False,
        "column": "x12",
        "message": "message 12",
        "advice": "advice",
    }
