"""The audit: what it finds in real tables, in made ones, and what it does not."""

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


def audited(
    raw: pl.DataFrame,
    target: str,
    *,
    columns: Mapping[str, Kind] | None = None,
    replace: Mapping[str, Rules] | None = None,
    by: str = "random",
    split_column: str | None = None,
    seed: int = 0,
) -> list[Finding]:
    """The findings of raw rows that are cleaned and split as in a run: copies together, or the latest rows last."""
    raw = raw.with_columns(pl.lit("rows").alias(FILE), pl.int_range(1, pl.len() + 1).alias(LINE))
    kinds = infer_columns(raw, target=target, overrides=columns or {}, missing=MISSING)
    labels = clean_target(raw[target], MISSING, (replace or {}).get(target, {}))
    task, _ = infer_task(labels, "auto")
    frame = clean(
        raw, kinds, labels, task, bad=pl.DataFrame(schema=BAD), missing=MISSING, replace=replace or {}, ranges={}
    ).frame
    time = by == "time"
    drawn = frame[COPY].rank("dense").to_numpy() - 1
    place = np.arange(len(frame)) if time else np.random.default_rng(seed).permutation(len(frame))[drawn]
    split = pl.Series(np.digitize(place, [0.64 * len(frame), 0.8 * len(frame)])).cast(pl.Int8)
    column = None if split_column is None else frame[split_column]
    return audit(frame, split, kinds, target, task, split_by=by, split_column=column)


def found(findings: Sequence[Finding]) -> list[tuple[str, bool, str | None]]:
    return [(finding.check, finding.grave, finding.column) for finding in findings]


def of(check: str, findings: Sequence[Finding]) -> list[tuple[str, str]]:
    return [(finding.message, finding.advice) for finding in findings if finding.check == check]


def table(data_dir: Path, path: str, **settings: Any) -> pl.DataFrame:
    return pl.read_csv(data_dir / path, infer_schema=False, **settings)


def builtin(name: str) -> pl.DataFrame:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    target = bunch.target.astype(str) if "target_names" in bunch else bunch.target
    return pl.DataFrame(bunch.data, schema=list(bunch.feature_names)).with_columns(pl.Series("target", target))


def made(rows: int = 2000, seed: int = 0) -> dict[str, np.ndarray]:
    """Honest columns, and a target "y" that they say something of."""
    generator = np.random.default_rng(seed)
    size, weight = generator.normal(size=(2, rows))
    colour = generator.choice(["red", "green", "blue"], rows)
    y = size + (colour == "red") + generator.normal(size=rows) > 0.3
    return {"size": size, "weight": weight, "colour": colour, "y": np.where(y, "yes", "no")}


@pytest.mark.parametrize("seed", range(3))
def test_honest_rows_give_no_finding(seed: int) -> None:
    findings = audited(pl.DataFrame(made(seed=seed)), "y", seed=seed)
    assert findings == []
    assert report(findings) == "audit: nothing to say"


@pytest.mark.parametrize("name", BUILTIN)
def test_strong_but_honest_columns_are_no_leak(name: str) -> None:
    for seed in range(10):
        assert {finding.check for finding in audited(builtin(name), "target", seed=seed)} <= {"constant"}


def test_two_columns_that_add_up_to_the_target(data_dir: Path) -> None:
    hours = table(data_dir, "bike_sharing/hour.csv")
    findings = audited(hours, "cnt", by="time", split_column="instant")
    assert found(findings) == [("leak", True, None), ("drift", False, None), ("identifier", False, "instant")]
    assert report(findings) == (
        "audit: GRAVE leak: cnt is casual + registered; unless they are known beforehand,"
        " data.columns='{casual: drop, registered: drop}'\n"
        "audit: drift: training is unlike the other splits, as is to be expected over time, by a distance from 0 to 1:"
        " cnt 0.28 (validation), yr 0.78 (test), mnth 0.67 (test), season 0.53 (test), temp 0.47 (validation) and 3"
        " more; figures will be below those of a random split, and nearer to those of later rows\n"
        "audit: identifier: left out as identifiers: instant; data.columns='{NAME: category}' or text takes one in"
    )
    with pytest.raises(DataError) as error:
        refuse(findings)
    assert str(error.value) == (
        "data.audit=strict, and the audit found what makes figures worthless (data.audit=on trains all the same):\n"
        "cnt is casual + registered; unless they are known beforehand, data.columns='{casual: drop, registered: drop}'"
    )


def test_without_the_leak_nothing_is_grave_and_a_random_split_of_dates_is_said(data_dir: Path) -> None:
    hours = table(data_dir, "bike_sharing/hour.csv")
    findings = audited(hours, "cnt", columns={"casual": "drop", "registered": "drop"})
    assert found(findings) == [("time", False, "dteday"), ("identifier", False, "instant")]
    assert of("time", findings) == [
        (
            "dteday tells the time, and the split is random: rows before those of training judge the model",
            "data.split.by=time data.split.column=dteday judges it on the latest rows",
        )
    ]
    refuse(findings)


def test_adult_has_copies_and_rows_that_contradict_each_other(data_dir: Path) -> None:
    findings = audited(
        table(data_dir, "adult/adult.csv.gz"), "income", columns={"fnlwgt": "drop"}, replace=INCOME, by="stratified"
    )
    assert report(findings) == (
        "audit: duplicates: 52 of 48,842 rows are exact copies of earlier ones, on the same side of the split;"
        " data.duplicates=drop leaves them out\n"
        "audit: conflicts: 3,873 of 48,842 rows have the inputs of another row and not its income: no model can get"
        " more than 97.2% of all rows right; only a column that tells them apart helps"
    )


def test_levels_in_two_spellings(data_dir: Path) -> None:
    findings = audited(table(data_dir, "adult/adult.csv.gz"), "sex", columns={"fnlwgt": "drop"})
    assert of("spelling", findings) == [
        (
            "income has levels that differ only by blanks, case or punctuation: '<=50K' (24,720 rows) and '<=50K.'"
            " (12,435), '>50K' (7,841 rows) and '>50K.' (3,846)",
            'where they are the same, data.replace=\'{income: [["<=50K.", "<=50K"], [">50K.", ">50K"]]}\'',
        )
    ]


def test_numbers_are_no_spellings_of_each_other() -> None:
    rows = made()
    rows["size"] = np.tile(["1.5 ", "15", "-15", "1-5"], 500)
    assert audited(pl.DataFrame(rows), "y", columns={"size": "category"}) == []


def test_neighbours_in_the_file_are_alike_and_the_split_is_random(data_dir: Path) -> None:
    half_hours = table(data_dir, "electricity/elec.csv.gz")
    findings = audited(half_hours, "class", by="stratified")
    assert of("time", findings) == [
        (
            "rows that follow each other in the file are alike in class (agreement 0.70; 0 by chance, 1 always), and"
            " the random split puts them on both sides",
            "where the file is in order of time or place, data.split.by=time or group judges the model on new ones",
        )
    ]
    assert found(audited(half_hours, "class", by="time")) == [("drift", False, None)]


def test_a_file_in_order_of_the_target_is_no_time(data_dir: Path) -> None:
    diamonds = table(data_dir, "diamonds/diamonds.csv")
    assert found(audited(diamonds, "price")) == [("duplicates", False, None)]
    ordered = pl.DataFrame(made()).sort("y")
    assert audited(ordered, "y") == []
    grave = [finding for finding in audited(ordered, "y", by="time") if finding.grave]
    assert [(finding.message, finding.advice) for finding in grave] == [
        (
            "the file is sorted by y, and the split by time goes by the order of the file",
            "data.split.column=NAME orders by a column, data.split.by=stratified draws at random",
        )
    ]


def test_families_with_one_ticket_are_on_both_sides(data_dir: Path) -> None:
    passengers = table(data_dir, "titanic/titanic_train.csv")
    findings = audited(passengers, "Survived", columns={"Name": "identifier"})
    (group,) = [finding for finding in findings if finding.check == "group"]
    assert (group.grave, group.column) == (False, "Ticket")
    assert group.advice == "data.split.by=group data.split.column=Ticket judges the model on new ones"
    assert of("identifier", findings) == [
        (
            "left out as identifiers: PassengerId, Ticket, Cabin",
            "data.columns='{NAME: category}' or text takes one in",
        )
    ]
    assert "group" not in {finding.check for finding in audited(passengers, "Survived", by="group")}


def test_copies_on_both_sides(data_dir: Path) -> None:
    messages = table(
        data_dir,
        "sms_spam/sms.tsv",
        separator="\t",
        quote_char=None,
        has_header=False,
        new_columns=["label", "message"],
    )
    assert report(audited(messages, "label", columns={"message": "text"})) == (
        "audit: duplicates: 414 of 5,574 rows are exact copies of earlier ones, on the same side of the split;"
        " data.duplicates=drop leaves them out"
    )
    assert report(audited(messages, "label", columns={"message": "text"}, by="time")) == (
        "audit: GRAVE duplicates: 177 of 2,006 validation and test rows are exact copies of training rows;"
        " data.duplicates=drop keeps the first of each"
    )


@pytest.mark.parametrize("rows", [200, 5000])
def test_a_column_that_alone_gives_a_class_away(rows: int) -> None:
    honest = made(rows)
    yes = honest["y"] == "yes"
    present = pl.Series("code", np.where(yes, 1.0, np.nan)).fill_nan(None)
    for code in (pl.Series("code", np.where(yes, "A", "B")), pl.Series("code", np.where(yes, 7.5, 2.5)), present):
        findings = audited(pl.DataFrame(honest).with_columns(code), "y")
        assert report(findings) == (
            "audit: GRAVE leak: code alone gives y away (AUROC 1.000); unless it is known beforehand,"
            " data.columns='{code: drop}'"
        )


def test_a_column_of_which_the_target_is_a_function() -> None:
    rows: dict[str, Any] = made(5000)
    amount = np.random.default_rng(1).lognormal(size=5000)
    numbers = pl.DataFrame({**rows, "y": amount})
    linear = audited(numbers.with_columns(pl.Series("price (net)", amount / 1.19 - 3)), "y")
    assert report(linear) == (
        "audit: GRAVE leak: y is a linear function of price (net); unless it is known beforehand,"
        r" data.columns='{price \(net\): drop}'"
    )
    curved = audited(pl.DataFrame({**rows, "y": np.log(amount)}).with_columns(pl.Series("exp", amount)), "y")
    assert found(curved) == [("leak", True, "exp")]
    noisy = audited(numbers.with_columns(pl.Series("near", np.log(amount) + 0.3 * rows["size"])), "y")
    assert noisy == []


def test_persons_on_both_sides_of_a_random_split() -> None:
    rows: dict[str, Any] = made()
    generator = np.random.default_rng(2)
    person = generator.integers(0, 200, 2000)
    rows["y"] = np.where(generator.random(200)[person] > 0.5, "ill", "well")
    findings = audited(pl.DataFrame({**rows, "patient_id": person}), "y", columns={"patient_id": "drop"})
    assert report(findings) == (
        "audit: GRAVE group: 720 of 720 validation and test rows share their patient_id with training rows, and rows"
        " that do are alike in y (agreement 1.00; 0 by chance, 1 always); data.split.by=group"
        " data.split.column=patient_id judges the model on new ones"
    )
    few_rows_each = pl.Series("address", generator.integers(0, 600, 2000)).cast(pl.String) + " Main Street"
    rows["y"] = np.where(few_rows_each.str.contains("[02468] "), "ill", "well")
    assert ("group", False, "address") in found(audited(pl.DataFrame(rows).with_columns(few_rows_each), "y"))
    rows["y"] = made()["y"]
    assert audited(pl.DataFrame({**rows, "patient_id": person}), "y", columns={"patient_id": "drop"}) == []


def test_contradictions_bound_the_rmse() -> None:
    generator = np.random.default_rng(3)
    rows = pl.DataFrame({"dose": np.arange(2000) // 2 % 50 * 1.0, "y": generator.normal(size=2000)})
    spread = float(rows.select(pl.col("y").var(ddof=0).over("dose").mean()).item() ** 0.5)
    share = spread / float(rows["y"].std(ddof=0))
    assert of("conflicts", audited(rows, "y")) == [
        (
            f"2,000 of 2,000 rows have the inputs of another row and not its y: the RMSE of no model can be below"
            f" {spread:.3g}, {share:.1%} of the standard deviation",
            "only a column that tells them apart helps",
        )
    ]


def test_a_rare_class() -> None:
    rows = made()
    rows["y"] = np.where(rows["size"] > 2, "fraud", "fine")
    rare = int((rows["y"][:1280] == "fraud").sum())
    assert of("imbalance", audited(pl.DataFrame(rows), "y", by="time")) == [
        (
            f"'fraud' is {rare / 1280:.2%} of the training rows ({rare} of 1,280)",
            "loss.class_weights=balanced or data.sampling=balanced, and monitor=val/average_precision, not accuracy",
        )
    ]


def test_levels_and_drift_of_rows_that_come_later() -> None:
    rows = made()
    late = np.arange(2000) >= 1280
    rows["colour"] = np.where(late & (rows["colour"] == "red"), "pink", rows["colour"])
    rows["weight"] = rows["weight"] + 2 * late
    rows["when"] = np.arange(2000) / 2
    findings = audited(pl.DataFrame(rows), "y", by="time", split_column="when")
    pink = int((rows["colour"] == "pink").sum())
    assert of("unseen", findings) == [
        (
            f"levels that training lacks, in 720 validation and test rows: colour in {pink} (such as 'pink')",
            "they count as unknown; data.columns='{NAME: drop}' leaves out a column that only names rows",
        )
    ]
    (drift,) = of("drift", findings)
    assert drift[0].startswith(
        "training is unlike the other splits, as is to be expected over time, by a distance from 0 to 1: weight 0."
    )
    assert "when" not in drift[0]
    assert of("drift", audited(pl.DataFrame(rows), "y")) == []


@pytest.mark.parametrize("target", ["count", "class", "level", ""])
def test_names_that_the_audit_uses_itself(target: str) -> None:
    rows = made()
    names = [name for name in ("count", "class", "level", "") if name != target]
    columns = dict(zip([*names, target], rows.values(), strict=True))
    assert audited(pl.DataFrame(columns), target) == []
    numbers: dict[str, Any] = {**columns, target: columns[names[0]] + columns[names[1]]}
    assert [one.grave for one in audited(pl.DataFrame(numbers), target)] == [True]


def test_columns_that_are_never_there() -> None:
    nothing = pl.Series([None] * 2000, dtype=pl.String)
    frame = pl.DataFrame(made()).with_columns(nothing.alias("a"), nothing.alias("b"), nothing.alias("c"))
    findings = audited(frame, "y", columns={"a": "number", "b": "category", "c": "date"})
    assert of("constant", findings) == [
        ("one value, or none, in 99.9% of the rows or more: a, b", "data.columns='{a: drop, b: drop}'")
    ]


def test_columns_that_say_nothing() -> None:
    rows: dict[str, Any] = made()
    rows["number"] = np.random.default_rng(4).permutation(10**6)[:2000]
    rows["source"] = np.repeat("survey", 2000)
    rows["flag"] = (np.arange(2000) == 7) * 1
    assert report(audited(pl.DataFrame(rows), "y")) == (
        "audit: identifier: a whole number that no other row has, as identifiers and times are: number;"
        " data.columns='{number: drop}', or date where it tells the time\n"
        "audit: constant: left out, as they have one value: source; nothing can be learnt from them\n"
        "audit: constant: one value, or none, in 99.9% of the rows or more: flag; data.columns='{flag: drop}'"
    )


def test_rows_that_are_left_out_do_not_count() -> None:
    kinds = infer_columns(
        pl.DataFrame({"x": ["1", "2"], "y": ["a", "b"], FILE: "f", LINE: 1}), target="y", overrides={}, missing=MISSING
    )
    honest = np.random.default_rng(5).normal(size=400)
    frame = pl.DataFrame(
        {
            "x": np.concatenate([honest, honest]),
            "y": np.random.default_rng(6).choice(["a", "b"], 800),
            COPY: np.tile(np.arange(400, dtype=np.uint64), 2),
        }
    )
    split = pl.Series([0] * 200 + [1] * 100 + [2] * 100 + [-1] * 400, dtype=pl.Int8)
    assert audit(frame, split, kinds, "y", "binary", split_by="time") == []


def test_the_report_is_short_and_the_json_whole() -> None:
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
