"""The audit's checks of the rows: copies, contradictions, times, groups and rare classes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from datamodules.audit.contingency import Outcome, Table, level_codes, number_codes
from datamodules.schema import COPY, FEATURE_KINDS, Column, Kind, Task

FEW, FEW_SHARE = 10, 0.001
"""Copies, or rows that contradict others, that are worth a line; and the share of the rows that copies must be."""
FLOOR = 0.005
"""Share of wrong answers, or of the deviation, that contradictions must force on any model to be worth a line."""
RARE = 0.2
"""Share of an even share of the rows below which a class is rare."""
ALIKE, VERY_ALIKE = 0.2, 0.5
"""Agreement of rows of one group from which on they are worth a line, and grave where most of the rows have a group in
common."""
NEIGHBOURS_ALIKE = 0.3
"""The same of rows that follow each other in the file; a file in two or three parts stays below."""
MANY, ROWS_OF_ENTITY = 50, 5
"""Values at least of a column that says who or what a row is about; and rows a value at most, where its name does not
tell."""
ENTITY = (
    r"(?i:(^|[ _-])(id|uuid|user|customer|client|patient|subject|person|household|family|session|account|device)$"
    r"|^id[ _-])|[a-z]I[dD]$"
)
"""Names of such columns."""
SCALE = "0 by chance, 1 always"


@dataclass(frozen=True)
class Finding:
    """What was found, and what to do: one line each. A grave one makes the figures of a run worthless."""

    check: str
    """duplicates, conflicts, leak, identifier, constant, group, time, imbalance, unseen, drift or spelling."""
    grave: bool
    column: str | None
    message: str
    advice: str


@dataclass(frozen=True)
class Rows:
    """What the audit is given, without the rows that are left out; text that is no input of its own is clean."""

    frame: pl.DataFrame
    split: np.ndarray
    """int64 (rows,): 0 train, 1 validation, 2 test."""
    columns: Sequence[Column]
    target: str
    task: Task
    split_by: str
    split_column: str | None

    def of_kind(self, *kinds: Kind) -> list[str]:
        return [column.name for column in self.columns if column.kind in kinds and column.name != self.target]

    @property
    def at_random(self) -> bool:
        return self.split_by in ("random", "stratified")

    @cached_property
    def train(self) -> np.ndarray:
        """bool (rows,): the training rows."""
        return np.asarray(self.split == 0)

    @property
    def judged(self) -> int:
        """Validation and test rows."""
        return len(self.split) - int(self.train.sum())

    @cached_property
    def outcome(self) -> Outcome:
        return Outcome.of(self.frame[self.target], self.task, self.split)

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Of each column of numbers, dates and categories."""
        return {
            name: self.table(name, name not in self.of_kind("category"))
            for name in self.of_kind("number", "date", "category")
        }

    def table(self, name: str, number: bool) -> Table:
        cells = self.frame[name]
        return self.outcome.table(number_codes(cells, self.train) if number else level_codes(cells), ordered=number)


def duplicates(rows: Rows) -> Iterator[Finding]:
    copies, train = rows.frame[COPY], pl.Series(rows.train)
    across = int(copies.filter(~train).is_in(copies.filter(train).unique().implode()).sum())
    if across:
        yield Finding(
            "duplicates",
            across > FEW_SHARE * rows.judged,
            None,
            f"{across:,} of {rows.judged:,} validation and test rows are exact copies of training rows",
            "data.duplicates=drop keeps the first of each",
        )
    within = len(copies) - copies.n_unique()
    if not across and within >= max(FEW, FEW_SHARE * len(copies)):
        yield Finding(
            "duplicates",
            False,
            None,
            f"{within:,} of {len(copies):,} rows are exact copies of earlier ones, on the same side of the split",
            "data.duplicates=drop leaves them out",
        )


def conflicts(rows: Rows) -> Iterator[Finding]:
    inputs = rows.of_kind(*FEATURE_KINDS)
    if not inputs:
        return
    target = pl.Series(rows.outcome.values) if rows.task == "regression" else rows.frame[rows.target]
    cells = pl.DataFrame([rows.frame.select(inputs).hash_rows().alias("inputs"), target.alias("target")])
    same = cells.filter((pl.col("target").n_unique() > 1).over("inputs"))
    if len(same) < FEW:
        return
    groups = same.group_by("inputs")
    if rows.task == "regression":
        squares = groups.agg(pl.col("target").var(ddof=0) * pl.len())["target"].to_numpy().sum()
        floor = float(np.sqrt(squares / len(cells)))
        amount = floor * np.std(rows.frame[rows.target].to_numpy())
        best = f"the RMSE of no model can be below {amount:.3g}, {floor:.1%} of the standard deviation"
    else:
        wrong = groups.agg(pl.len() - pl.col("target").unique_counts().max())["len"].to_numpy().sum()
        floor = float(wrong / len(cells))
        best = f"no model can get more than {1 - floor:.1%} of all rows right"
    if floor < FLOOR:
        return
    yield Finding(
        "conflicts",
        False,
        None,
        f"{len(same):,} of {len(cells):,} rows have the inputs of another row and not its {rows.target}: {best}",
        "only a column that tells them apart helps",
    )


def times(rows: Rows) -> Iterator[Finding]:
    if rows.outcome.is_sorted():
        if rows.split_by == "time" and rows.split_column is None:
            yield Finding(
                "time",
                True,
                rows.target,
                f"the file is sorted by {rows.target}, and the split by time goes by the order of the file",
                "data.split.column=NAME orders by a column, data.split.by=stratified draws at random",
            )
        return
    if not rows.at_random:
        return
    for name in rows.of_kind("date"):
        dates = rows.frame[name]
        if dates.is_sorted() or rows.outcome.neighbour_agreement(dates.arg_sort().to_numpy()) >= ALIKE:
            yield Finding(
                "time",
                False,
                name,
                f"{name} tells the time, and the split is random: rows before those of training judge the model",
                f"data.split.by=time data.split.column={name} judges it on the latest rows",
            )
            return
    alike = rows.outcome.neighbour_agreement(np.arange(len(rows.split)))
    if alike >= NEIGHBOURS_ALIKE:
        yield Finding(
            "time",
            False,
            None,
            f"rows that follow each other in the file are alike in {rows.target} (agreement {alike:.2f}; {SCALE}), and"
            " the random split puts them on both sides",
            "where the file is in order of time or place, data.split.by=time or group judges the model on new ones",
        )


def groups(rows: Rows) -> Iterator[Finding]:
    """The column whose values say most of who or what a row is about, where they are on both sides of the split."""
    if not rows.at_random:
        return
    found: list[tuple[float, Finding]] = []
    text = rows.of_kind("category", "identifier")
    for name in [*text, *rows.of_kind("number", "drop")]:
        named = re.search(ENTITY, name) is not None
        if not named and name not in text:
            continue
        cells = rows.frame[name]
        known = cells.is_not_null()
        values, present = cells.n_unique() - int(not known.all()), int(known.sum())
        if values < MANY or values == present or (not named and present > ROWS_OF_ENTITY * values):
            continue
        codes = cells.filter(known).rank("dense").cast(pl.Int64).to_numpy()
        outcome = Outcome.of(rows.frame[rows.target].filter(known), rows.task, rows.split[known.to_numpy()])
        alike = outcome.agreement(codes)
        train = outcome.split == 0
        common = int(np.isin(codes[~train], codes[train]).sum())
        share = common / rows.judged
        if alike < ALIKE or share < ALIKE:
            continue
        finding = Finding(
            "group",
            named and alike >= VERY_ALIKE and share >= 0.5,
            name,
            f"{common:,} of {rows.judged:,} validation and test rows share their {name} with training rows, and rows"
            f" that do are alike in {rows.target} (agreement {alike:.2f}; {SCALE})",
            f"data.split.by=group data.split.column={name} judges the model on new ones",
        )
        found.append((alike * share, finding))
    if found:
        yield max(found, key=lambda pair: pair[0])[1]


def imbalance(rows: Rows) -> Iterator[Finding]:
    if rows.task == "regression":
        return
    labels = rows.frame[rows.target].alias("class").filter(pl.Series(rows.train))
    counts = labels.value_counts().sort("count", "class")
    rarest, fewest = counts.row(0)
    train = int(rows.train.sum())
    if fewest * len(counts) < RARE * train:
        yield Finding(
            "imbalance",
            False,
            rows.target,
            f"{rarest!r} is {fewest / train:.2%} of the training rows ({fewest:,} of {train:,})",
            "loss.class_weights=balanced or data.sampling=balanced, and monitor=val/average_precision, not accuracy",
        )
