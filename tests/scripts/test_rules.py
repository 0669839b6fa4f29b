"""scripts/rules.py: what is printed and what is in rules.json is, cell for cell, what was measured."""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from common.errors import InputError
from datamodules.features.dates import calendar
from datamodules.readers.read import LINE
from scripts.rules import make_rules, open_run
from tests.conftest import run_script
from trainer.export.tree_rules import Condition, last_number, shortest

Cells = dict[str, str]
COLORS = ("red", "blue", "green", "brown")
QUICK = ("logger=none", "export=none", "baselines=false", "trainer.threads=1", "callbacks.progress=null")
RECIPE = ("experiment=tree", *QUICK)


def holds(condition: dict[str, Any], cell: str) -> bool:
    """Evaluates a condition of rules.json as docs/rules.md describes it."""
    if "is_missing" in condition:
        return cell == ""
    if "above" in condition:
        return bool(condition["missing"]) if cell == "" else float(cell) > condition["above"]
    return cell in condition["in"] if "in" in condition else cell not in condition["not_in"]


def scores(rules: dict[str, Any], row: Cells) -> list[float]:
    """Evaluates rules.json as docs/rules.md describes it."""
    sums = list(rules["base"])
    for tree in rules["trees"]:
        leaf = 0
        for condition in tree["conditions"]:
            leaf = 2 * leaf + holds(condition, row[condition["column"]])
        sums = [total + value for total, value in zip(sums, tree["values"][leaf], strict=True)]
    return sums


def printed_scores(text: str, row: Cells) -> list[float]:
    """Evaluates rules.txt as a reader would."""
    head, *trees = text.partition("\nComparison with")[0].split("\nTree ")
    numeral = r"[-+]?\d[\d.]*(?:e[-+]?\d+)?"
    base = re.search(rf" (?:is|are) ((?:[^,\n]+, )*?[^,\n]*?{numeral}) plus ", head)
    assert base is not None
    medians = dict(re.findall(rf"(\S[^,:]*) ({numeral})[,.]", head.partition("median: ")[2]))
    sums = [float(value) for value in re.findall(rf"{numeral}(?=,|$)", base[1])]
    for tree in trees:
        values = follow(
            iter(tree.splitlines()[1:]), row, {name.strip(): float(value) for name, value in medians.items()}
        )
        sums = [total + value for total, value in zip(sums, values, strict=True)]
    return sums


def follow(lines: Iterator[str], row: Cells, medians: dict[str, float]) -> list[float]:
    """Returns the values at the end of the branch of a row. Lines below an `if` that is false are skipped."""
    skipped: int | None = None
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if skipped is not None and indent > skipped:
            continue
        words = line.strip()
        if words.startswith("if "):
            skipped = None if is_true(words[3:], row, medians) else indent
        elif words == "else":
            skipped = None
        else:
            return [float(value) for value in re.findall(r"[-+]\d[\d.e]*(?:-\d+)?", words.rpartition("  (")[0])]
    raise AssertionError("a branch ends without values")


def is_true(text: str, row: Cells, medians: dict[str, float]) -> bool:
    if (found := re.fullmatch(r"(.+) > (\S+)", text)) is not None:
        cell = row[found[1]]
        return (medians[found[1]] if cell == "" else float(cell)) > float(found[2])
    if text.endswith(" is missing"):
        return row[text.removesuffix(" is missing")] == ""
    column, relation, listed = re.fullmatch(r"(\S+) (is not|is none of|is one of|is) (.+)", text).groups()
    levels = ["" if level == "(missing)" else level for level in listed.split(", ")]
    return (row[column] in levels) != (relation in ("is not", "is none of"))


def compare(folder: Path, raw: dict[str, list[Cells]], truths: dict[str, list[Any]]) -> dict[str, Any]:
    """Makes the rules of a run, applies rules.json and rules.txt to raw rows, and compares with the metrics."""
    text = make_rules(folder)
    assert (folder / "rules.txt").read_text() == text
    rules: dict[str, Any] = json.loads((folder / "rules.json").read_text())
    measured = rules["measured"]["rules"]
    for split, rows in raw.items():
        found = [scores(rules, row) for row in rows]
        for row, by_json in zip(rows[:200], found, strict=False):
            assert printed_scores(text, row) == pytest.approx(by_json, abs=1e-9)
        truth = truths[split]
        if rules["task"] == "regression":
            squares = [(values[0] - float(true)) ** 2 for values, true in zip(found, truth, strict=True)]
            assert math.sqrt(sum(squares) / len(squares)) == pytest.approx(measured[f"{split}/rmse"], rel=1e-6)
            continue
        logits = torch.tensor(found, dtype=torch.float64)
        if rules["task"] == "binary":
            logits = torch.nn.functional.pad(logits, (1, 0))
        true = torch.tensor([rules["classes"].index(each) for each in truth])
        loss = torch.nn.functional.cross_entropy(logits, true)
        assert float(loss) == pytest.approx(measured[f"{split}/log_loss"], rel=1e-6)
        assert float((logits.argmax(1) == true).double().mean()) == measured[f"{split}/accuracy"]
    return rules


def split_rows(folder: Path, table: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Raw rows of val and test. The first line of the table is its header."""
    datamodule = open_run(folder)[1]
    return {split: table[datamodule.row_locations(split)[LINE] - 2] for split in ("val", "test")}


def synthetic_table(rows: int = 600) -> pl.DataFrame:
    """A table of text cells with all kinds of columns that rules support, missing cells and a replaced value."""
    draw = torch.Generator().manual_seed(0)
    size = torch.randn(rows, generator=draw).double() * 1000
    age = torch.randint(18, 90, (rows,), generator=draw)
    day = torch.randint(0, 700, (rows,), generator=draw)
    color = torch.randint(0, 4, (rows,), generator=draw)
    yes = torch.randint(0, 2, (rows,), generator=draw)
    gap = torch.rand(rows, 3, generator=draw) < 0.15
    score = size / 1000 + (age > 50) * 2 + (color == 2) * 2 - yes + gap[:, 0] * 2 + (day > 365)
    return pl.DataFrame(
        {
            "size": ["" if g else f"{value:.3f}" for value, g in zip(size.tolist(), gap[:, 0], strict=True)],
            "age": ["-1" if g else str(value) for value, g in zip(age.tolist(), gap[:, 1], strict=True)],
            "when": [str(datetime.fromtimestamp(86_400 * value + 1.4e9, UTC).date()) for value in day.tolist()],
            "color": ["" if g else COLORS[value] for value, g in zip(color.tolist(), gap[:, 2], strict=True)],
            "sure": ["yes" if value else "no" for value in yes.tolist()],
            "price": [f"{value * 40 + 1000:.2f}" for value in score.tolist()],
            "kind": [("low", "mid", "high")[int(value > 1) + int(value > 3)] for value in score.tolist()],
            "big": ["yes" if value > 2 else "no" for value in score.tolist()],
        }
    )  # fmt: skip


def as_rules_read(row: Cells) -> Cells:
    """Replaces the value that means missing, and adds the parts of dates as columns."""
    seconds = torch.tensor([datetime.fromisoformat(row["when"]).replace(tzinfo=UTC).timestamp()], dtype=torch.float64)
    parts = calendar(seconds)
    derived = {f"when {part}": repr(float(value)) for part, value in parts.items()}
    for part, period in {"month": 12.0, "weekday": 7.0, "hour": 24.0}.items():
        angle = parts[part] * (2 * math.pi / period)
        derived[f"when {part} (sin)"], derived[f"when {part} (cos)"] = (
            repr(float(angle.sin())),
            repr(float(angle.cos())),
        )
    return row | derived | {"age": "" if row["age"] == "-1" else row["age"]}


@pytest.mark.parametrize(
    ("target", "numbers", "embedded"),
    [("big", "quantile", False), ("kind", "robust", True), ("price", "standard", False)],
)
def test_rules_on_raw_rows_give_the_measured_metrics(
    target: str, numbers: str, embedded: bool, run_here: Callable[..., Path], tmp_path: Path
) -> None:
    table = synthetic_table()
    table.write_csv(tmp_path / "rows.csv")
    others = ", ".join(f"{name}: drop" for name in ("big", "kind", "price") if name != target)
    folder = run_here(
        *RECIPE,
        "data=table",
        f"data.path={tmp_path}/rows.csv",
        f"data.target={target}",
        f"++data.columns={{{others}, when: date}}",
        "++data.replace={age: [[-1, null]]}",
        f"data.numbers={numbers}",
        "data.cache=null",
        f"model.inputs.one_hot_max={2 if embedded else 256}",
        "trainer.max_epochs=4",
    )
    parts = split_rows(folder, table)
    raw = {split: [as_rules_read(row) for row in frame.to_dicts()] for split, frame in parts.items()}
    rules = compare(folder, raw, {split: frame[target].to_list() for split, frame in parts.items()})
    kinds = {key for tree in rules["trees"] for each in tree["conditions"] for key in each}
    assert {"above", "missing", "in"} <= kinds
    train = open_run(folder)[1].splits["train"]["rows"]
    assert all(sum(tree["rows"]) == train for tree in rules["trees"])
    # The rules also cover unseen levels, and missing cells in columns without any in training.
    odd = raw["test"][0] | {"color": "mauve", "sure": "", "when days": ""}
    text = (folder / "rules.txt").read_text()
    assert printed_scores(text, odd) == pytest.approx(scores(rules, odd), abs=1e-9)


def test_a_negated_condition_is_true_for_unseen_levels() -> None:
    condition = Condition("color", levels=("red",), negated=True, codes=frozenset({0, 2}), size=3)
    assert condition.plain() == {"column": "color", "not_in": ["red"]}
    assert str(condition) == "color is not red"
    assert holds(condition.plain(), "mauve")


def test_many_levels_are_shortened_in_the_text_but_not_in_json() -> None:
    condition = Condition("zip", levels=tuple(map(str, range(20))))
    assert str(condition) == "zip is one of 0, 1, 2, 3, 4, 5, 6, 7, ... (20 in total)"
    assert len(condition.plain()["in"]) == 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "target", "extra"),
    [
        ("titanic", "Survived", ["++data.columns={Name: drop, Ticket: drop, Cabin: drop, PassengerId: drop}"]),
        ("adult", "income", ["trainer.max_epochs=4"]),
    ],
)
def test_rules_of_real_tables_lose_at_most_two_points_of_accuracy(
    data: str, target: str, extra: Sequence[str], run_here: Callable[..., Path], data_dir: Path, tmp_path: Path
) -> None:
    folder = run_here(*RECIPE, f"data={data}", f"paths.data={data_dir}", f"paths.cache={tmp_path}/cache", *extra)
    file = {"titanic": "titanic/titanic_train.csv", "adult": "adult/adult.csv.gz"}[data]
    table = pl.read_csv(data_dir / file, infer_schema=False).fill_null("")
    table = table.with_columns(
        pl.all().str.strip_chars().replace("?", "").replace({"<=50K.": "<=50K", ">50K.": ">50K"})
    )
    parts = split_rows(folder, table)
    rules = compare(
        folder,
        {split: frame.to_dicts() for split, frame in parts.items()},
        {split: frame[target].to_list() for split, frame in parts.items()},
    )
    soft, hard = rules["measured"]["soft trees"], rules["measured"]["rules"]
    assert hard["test/accuracy"] > soft["test/accuracy"] - 0.02
    assert hard["val/accuracy"] > soft["val/accuracy"] - 0.02
    assert min(rules["near"].values()) > 0.9
    metrics = json.loads((folder / "metrics.json").read_text())
    for name, value in soft.items():
        assert value == pytest.approx(metrics[name], rel=1e-5), name


@pytest.mark.parametrize(("low", "high", "number"), [(37.0, 37.9, 37.0), (0.0, 114.0, 60.0), (1.31, 1.36, 1.33),
    (-5e-9, -4e-9, -5e-9), (2.0, 2.0, 2.0), (0.1, math.nextafter(0.1, 1), 0.1)])  # fmt: skip
def test_a_threshold_has_few_digits(low: float, high: float, number: float) -> None:
    assert low <= shortest(low, high) <= high
    assert shortest(low, high) == number


@pytest.mark.parametrize("bound", [0.0, 37.5, -1e-7, 3e40, -2.5])
def test_the_last_number_that_holds(bound: float) -> None:
    assert last_number(lambda x: x <= bound) == bound
    assert last_number(lambda x: x < bound) == math.nextafter(bound, -math.inf)


def test_the_script_prints_rules_and_errors(run_here: Callable[..., Path], tmp_path: Path) -> None:
    folder = run_here(*RECIPE, "data.cache=null", "trainer.max_epochs=1")
    done = run_script("scripts/rules.py", "--run", str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (folder / "rules.txt").read_text()
    assert done.stdout.startswith(f"Rules of {folder}: 16 trees with 4 conditions each\n\nThe score of ")
    failed = run_script("scripts/rules.py", "--run", str(tmp_path))
    message = f"{tmp_path}: has no config.yaml. Give the folder of a model=tree run.\n"
    assert (failed.returncode, failed.stdout, failed.stderr) == (2, "", message)


def test_unsupported_runs_are_rejected(run_here: Callable[..., Path], tmp_path: Path) -> None:
    def error_of(*settings: str, name: str) -> tuple[str, Path]:
        folder = run_here(*QUICK, "data.cache=null", "trainer.max_epochs=1", *settings, folder=tmp_path / name)
        with pytest.raises(InputError) as error:
            make_rules(folder)
        return str(error.value), folder

    message, folder = error_of("model=mlp", "model.hidden=[4]", name="mlp")
    assert message == f"{folder}: is a run of models.architectures.mlp.MLP. Rules need a model=tree run."
    message, folder = error_of("model=tree", "model.trees=2", "model.inputs.number_size=4", name="vectors")
    assert message == (
        f"{folder}: the network embeds numbers as vectors. Rules need a run with model.inputs.number_size=0."
    )
    table = pl.DataFrame({"a": [f"l{i % 30}" for i in range(90)], "y": [f"{i % 2}" for i in range(90)]})
    table.write_csv(tmp_path / "rows.csv")
    rows = ("data=table", f"data.path={tmp_path}/rows.csv", "data.target=y")
    message, _ = error_of(
        "model=tree", "model.trees=2", *rows, "data.max_levels=10", "data.hash_buckets=4", name="buckets"
    )
    assert message == (
        "rare levels of 'a' are hashed to 4 codes, so rules cannot name them. Train with data.hash_buckets=0."
    )


def test_changed_data_are_rejected(run_here: Callable[..., Path], tmp_path: Path) -> None:
    table = synthetic_table(200)
    table.write_csv(tmp_path / "rows.csv")
    folder = run_here(
        *RECIPE, "data=table", f"data.path={tmp_path}/rows.csv", "data.target=big", "data.cache=null",
        "trainer.max_epochs=1", "model.trees=2",
    )  # fmt: skip
    table.drop("color").write_csv(tmp_path / "rows.csv")
    with pytest.raises(InputError) as error:
        make_rules(folder)
    checkpoint = folder / "checkpoints" / "best.ckpt"
    assert str(error.value) == f"{checkpoint}: does not fit the data, which have changed since the run."
