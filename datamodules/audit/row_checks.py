"""The audit's checks of rows: copies, conflicts, times, groups and rare classes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from datamodules.audit.contingency import Outcome, Table, level_codes, number_codes
from datamodules.schema import COPY, FEATURE_KINDS, Column, Kind, Task

MIN_REPORTED, MIN_SHARE = 10, 0.001
"""Minimum reported number of copies or conflicting rows, and minimum share of copies among the rows."""
FLOOR = 0.005
"""Minimum reported error caused by conflicts: share of wrong predictions, or RMSE in standard deviations."""
RARE = 0.2
"""A class is rare if it has less than this share of rows / classes."""
ALIKE, VERY_ALIKE = 0.2, 0.5
"""Agreement of rows of one group from which they are reported, and from which they are grave if most rows share
groups across splits."""
NEIGHBORS_ALIKE = 0.3
"""The same for adjacent rows of the file; a file with two or three sorted parts is below."""
MIN_ENTITIES, MAX_ROWS_OF_ENTITY = 50, 5
"""Minimum number of values of a column that identifies who or what a row is about, and maximum rows per value if the
name of the column does not match ENTITY."""
ENTITY = (
    r"(?i:(^|[ _-])(id|uuid|user|customer|client|patient|subject|person|household|family|session|account|device)$"
    r"|^id[ _-])|[a-z]I[dD]$"
)
"""Names of columns that identify persons, customers and the like."""
SCALE = "0 by chance, 1 always"


@dataclass(frozen=True)
class Finding:
    """A finding: the message and the advice are one line each. `grave` findings invalidate the metrics of a run."""

    check: str
    """One of duplicates, conflicts, leak, identifier, constant, group, time, imbalance, unseen, drift and spelling."""
    grave: bool
    column: str | None
    message: str
    advice: str


@dataclass(frozen=True)
class Rows:
    """The input of the checks, without rows that are left out; categories, identifiers and dropped text are clean."""

    frame: pl.DataFrame
    split: np.ndarray
    """int64 (rows,): 0 train, 1 validation, 2 test."""
    columns: Sequence[Column]
    target: str
    task: Task
    split_by: str
    split_column: str | None

    def of_kind(self, *kinds: Kind) -> list[str]:
        """The names of the columns of these kinds, without the target."""
        return [column.name for column in self.columns if column.kind in kinds and column.name != self.target]

    @property
    def at_random(self) -> bool:
        """Whether rows are assigned to splits at random."""
        return self.split_by in ("random", "stratified")

    @cached_property
    def train(self) -> np.ndarray:
        """bool (rows,): the training rows."""
        return np.asarray(self.split == 0)

    @property
    def evaluated(self) -> int:
        """Number of validation and test rows."""
        return len(self.split) - int(self.train.sum())

    @cached_property
    def outcome(self) -> Outcome:
        return Outcome.of(self.frame[self.target], self.task, self.split)

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Contingency tables of the number, date and category columns."""
        return {
            name: self.table(name, name not in self.of_kind("category"))
            for name in self.of_kind("number", "date", "category")
        }

    def table(self, name: str, number: bool) -> Table:
        """The contingency table of a column of numbers or levels."""
        cells = self.frame[name]
        return self.outcome.table(number_codes(cells, self.train) if number else level_codes(cells), ordered=number)


def duplicates(rows: Rows) -> Iterator[Finding]:
    """Exact copies of rows, within a split or across splits."""
    copies, train = rows.frame[COPY], pl.Series(rows.train)
    across = int(copies.filter(~train).is_in(copies.filter(train).unique().implode()).sum())
    if across:
        yield Finding(
            "duplicates",
            across > MIN_SHARE * rows.evaluated,
            None,
            f"{across:,} of {rows.evaluated:,} validation and test rows are exact copies of training rows",
            "data.duplicates=drop keeps the first copy of each",
        )
    within = len(copies) - copies.n_unique()
    if not across and within >= max(MIN_REPORTED, MIN_SHARE * len(copies)):
        yield Finding(
            "duplicates",
            False,
            None,
            f"{within:,} of {len(copies):,} rows are exact copies of earlier rows in the same split",
            "data.duplicates=drop leaves them out",
        )


def conflicts(rows: Rows) -> Iterator[Finding]:
    """Rows with equal inputs and different targets."""
    inputs = rows.of_kind(*FEATURE_KINDS)
    if not inputs:
        return
    target = pl.Series(rows.outcome.values) if rows.task == "regression" else rows.frame[rows.target]
    cells = pl.DataFrame([rows.frame.select(inputs).hash_rows().alias("inputs"), target.alias("target")])
    same = cells.filter((pl.col("target").n_unique() > 1).over("inputs"))
    if len(same) < MIN_REPORTED:
        return
    groups = same.group_by("inputs")
    if rows.task == "regression":
        squares = groups.agg(pl.col("target").var(ddof=0) * pl.len())["target"].to_numpy().sum()
        floor = float(np.sqrt(squares / len(cells)))
        amount = floor * np.std(rows.frame[rows.target].to_numpy())
        best = f"no model can reach an RMSE below {amount:.3g}, {floor:.1%} of the standard deviation"
    else:
        wrong = groups.agg(pl.len() - pl.col("target").unique_counts().max())["len"].to_numpy().sum()
        floor = float(wrong / len(cells))
        best = f"no model can predict more than {1 - floor:.1%} of all rows correctly"
    if floor < FLOOR:
        return
    yield Finding(
        "conflicts",
        False,
        None,
        f"{len(same):,} of {len(cells):,} rows have the inputs of another row but a different {rows.target}: {best}",
        "only another column that distinguishes them helps",
    )


def times(rows: Rows) -> Iterator[Finding]:
    """Rows in order of time that are split at random, or a file sorted by the target that is split by time."""
    if rows.outcome.is_sorted():
        if rows.split_by == "time" and rows.split_column is None:
            yield Finding(
                "time",
                True,
                rows.target,
                f"the file is sorted by {rows.target}, and the split by time uses the order of the file",
                "use data.split.column=NAME to order rows by a column, or data.split.by=stratified for a random split",
            )
        return
    if not rows.at_random:
        return
    for name in rows.of_kind("date"):
        dates = rows.frame[name]
        if dates.is_sorted() or rows.outcome.neighbor_agreement(dates.arg_sort().to_numpy()) >= ALIKE:
            yield Finding(
                "time",
                False,
                name,
                f"{name} gives the time, but the split is random: rows older than training rows evaluate the model",
                f"data.split.by=time data.split.column={name} evaluates it on the latest rows",
            )
            return
    alike = rows.outcome.neighbor_agreement(np.arange(len(rows.split)))
    if alike >= NEIGHBORS_ALIKE:
        yield Finding(
            "time",
            False,
            None,
            f"adjacent rows of the file are similar in {rows.target} (agreement {alike:.2f}; {SCALE}), and the random"
            " split separates them",
            "if the file is in order of time or place, data.split.by=time or group evaluates the model on new ones",
        )


def groups(rows: Rows) -> Iterator[Finding]:
    """The most informative column that identifies who or what a row is about, if its values are in several splits."""
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
        if values < MIN_ENTITIES or values == present or (not named and present > MAX_ROWS_OF_ENTITY * values):
            continue
        codes = cells.filter(known).rank("dense").cast(pl.Int64).to_numpy()
        outcome = Outcome.of(rows.frame[rows.target].filter(known), rows.task, rows.split[known.to_numpy()])
        alike = outcome.agreement(codes)
        train = outcome.split == 0
        common = int(np.isin(codes[~train], codes[train]).sum())
        share = common / rows.evaluated
        if alike < ALIKE or share < ALIKE:
            continue
        finding = Finding(
            "group",
            named and alike >= VERY_ALIKE and share >= 0.5,
            name,
            f"{common:,} of {rows.evaluated:,} validation and test rows share their {name} with training rows, and rows"
            f" with the same {name} are similar in {rows.target} (agreement {alike:.2f}; {SCALE})",
            f"data.split.by=group data.split.column={name} evaluates the model on new ones",
        )
        found.append((alike * share, finding))
    if found:
        yield max(found, key=lambda pair: pair[0])[1]


def imbalance(rows: Rows) -> Iterator[Finding]:
    """A class that is rare in the training rows."""
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
