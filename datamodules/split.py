"""Which rows train, which choose (validation), which judge (test)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from datamodules.schema import DataError, Task
from serving.cells import MISSING, as_date, as_number, as_text, clean_text, day_first

SplitBy = Literal["stratified", "random", "group", "time", "column"]
SPLITS = ("train", "val", "test")
TARGET_BINS = 10
"""Bins of a target of amounts that are split like classes."""
DAY = 86_400.0


@dataclass(frozen=True)
class Split:
    """How rows are split, conf/data/table.yaml says what each setting does. Raises DataError for such as cannot be.

    - `stratified`: each class, or each tenth of a regression target, in the wanted fractions. `random`: all at once.
    - `group`: rows with the same value of `column` stay on one side; a missing value is a group of its own.
    - `time`: the earliest rows train, the latest test, by `column`, or in the order of the file without one; `gap` (in
      the unit of the column, in days for dates, in rows without a column) is left out before validation and test.
    - `column`: it says "train", "val" or "test".

    With `fold`, one of `folds` parts is the test, and every row is in one of these parts. By time part k + 1 of
    `folds` + 1 is the test, and only rows before it are used.
    """

    by: SplitBy = "stratified"
    column: str | None = None
    fractions: Sequence[float] = (0.64, 0.16, 0.20)
    gap: float = 0.0
    seed: int = 0
    folds: int = 5
    fold: int | None = None

    def __post_init__(self) -> None:
        if len(self.fractions) != 3 or min(self.fractions) <= 0:
            raise DataError(
                f"data.split.fractions={list(self.fractions)}: must be three shares above 0: train, val, test"
            )
        needs, may = self.by in ("group", "column"), self.by in ("group", "time", "column")
        if (self.column is None and needs) or (self.column is not None and not may):
            raise DataError(
                f"data.split.by={self.by} with data.split.column={self.column}: the column names the group of a row"
                " with data.split.by=group, orders the rows with data.split.by=time, or says train, val or test with"
                " data.split.by=column"
            )
        if self.gap < 0 or (self.gap > 0 and self.by != "time"):
            raise DataError(
                f"data.split.gap={self.gap:g}: a gap is 0 or more, and above 0 only with data.split.by=time"
            )
        if self.folds < 2:
            raise DataError(f"data.split.folds={self.folds}: must be 2 or more")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise DataError(
                f"data.split.fold={self.fold}: with data.split.folds={self.folds} it is from 0 to {self.folds - 1}"
            )
        if self.fold is not None and self.by == "column":
            raise DataError("data.split.fold: the column of data.split.by=column has settled which rows are the test")

    def assign(
        self,
        target: pl.Series,
        task: Task,
        *,
        column: pl.Series | None = None,
        first_copy: np.ndarray | None = None,
        files: np.ndarray | None = None,
    ) -> np.ndarray:
        """The split of each row, int8 (rows,): 0 train, 1 validation, 2 test, -1 left out.

        `first_copy` gives for each row the position of its first exact copy: the first are split and copies follow
        them, or a row learnt by heart would be counted as a success; of copies in two groups each stays with its own.
        `files`: int8 (rows,), 1 and 2 for rows that are given as validation and test; the others are divided among the
        splits that are not given. Raises DataError where a split would be empty.
        """
        split = np.zeros(len(target), dtype=np.int8) if files is None else files.copy()
        given = {1, 2} & set(np.unique(split).tolist())
        if self.fold is not None and 2 in given:
            raise DataError(
                "data.split.fold: data.test_path has settled which rows are the test; leave out one of them"
            )
        fractions = [0.0 if side in given else share for side, share in enumerate(self.fractions)]
        free = np.flatnonzero(split == 0)
        if len(given) < 2:
            labels, by = target, self.by
            if by == "stratified" and task == "regression":
                labels = _bins(target)
            if by in ("stratified", "random") and first_copy is not None:
                # A copy of a row in another file follows none: that file's side is given.
                _, first, place = np.unique(first_copy[free], return_index=True, return_inverse=True)
                split[free] = self._draw(labels.gather(free[first]), fractions, None)[place]
            else:
                split[free] = self._draw(
                    labels.gather(free), fractions, None if column is None else column.gather(free)
                )
        for code, name in enumerate(SPLITS):
            if not (split == code).any():
                rows = len(target) if first_copy is None else len(np.unique(first_copy))
                raise DataError(
                    f"{rows:,} different rows leave the {name} split empty with {self._told()}: give more rows, or"
                    " change it"
                )
        return split

    def _draw(self, labels: pl.Series, fractions: Sequence[float], column: pl.Series | None) -> np.ndarray:
        """int8 (rows,) for rows of these labels, in these fractions of train, validation and test."""
        rows = len(labels)
        generator = np.random.default_rng(self.seed)
        split = np.empty(rows, dtype=np.int8)
        if self.by == "column":
            assert column is not None
            return _given(column)
        if self.by == "stratified":
            classes = labels.to_frame("label").with_row_index().group_by("label", maintain_order=True).agg("index")
            for members in classes["index"]:
                order = generator.permutation(members.to_numpy())
                # Parts of a row are rounded at random, so that rare classes are not always rounded the same way.
                self._cut(split, order, fractions, generator.random())
        elif self.by == "random":
            self._cut(split, generator.permutation(rows), fractions)
        elif self.by == "group":
            assert column is not None
            self._cut_groups(split, column, fractions, generator)
        else:
            self._cut_times(split, column, fractions)
        return split

    def _cut(self, split: np.ndarray, order: np.ndarray, fractions: Sequence[float], shift: float = 0.0) -> None:
        """Cuts rows in this order at the fractions."""
        if self.fold is not None:
            ends = np.floor(np.arange(self.folds + 1) * len(order) / self.folds + shift + 1e-9).astype(int)
            test = np.arange(ends[self.fold], ends[self.fold + 1])
            split[order[test]] = 2
            order, fractions = np.delete(order, test), (*fractions[:2], 0.0)
        cuts = np.cumsum(np.asarray(fractions) / sum(fractions))[:2] * len(order)
        train_end, val_end = np.floor(cuts + shift + 1e-9).astype(int)  # 0.8 * 10 is 7.999... in floating point
        split[order[:train_end]] = 0
        split[order[train_end:val_end]] = 1
        split[order[val_end:]] = 2

    def _cut_groups(
        self, split: np.ndarray, column: pl.Series, fractions: Sequence[float], generator: np.random.Generator
    ) -> None:
        """Each group goes where most is lacking, the largest groups first, those of one size in random order."""
        names = clean_text(as_text(column), MISSING)
        alone = pl.Series([f"row {row}" for row in np.flatnonzero(names.is_null().to_numpy())], dtype=pl.String)
        names = names.scatter(names.is_null().arg_true(), alone)
        groups, sizes = np.unique(names.rank("dense").to_numpy(), return_inverse=False, return_counts=True)
        if len(groups) < sum(share > 0 for share in fractions):
            raise DataError(
                f"data.split.column={column.name}: {len(groups)} group{'s' if len(groups) > 1 else ''}, of"
                f" {sizes.max():,} rows at most, cannot fill all splits of {len(split):,} rows; choose another column,"
                " or data.split.by=stratified"
            )
        order = generator.permutation(len(groups))
        order = order[np.argsort(-sizes[order], kind="stable")]
        side = np.zeros(len(groups), dtype=np.int8)
        if self.fold is not None:
            part = _fill(order, sizes, [1 / self.folds] * self.folds)
            side[part == self.fold] = 2
            order, fractions = order[part[order] != self.fold], (*fractions[:2], 0.0)
        side[order] = _fill(order, sizes, fractions)[order]
        split[:] = side[names.rank("dense").to_numpy() - 1]

    def _cut_times(self, split: np.ndarray, column: pl.Series | None, fractions: Sequence[float]) -> None:
        times = np.arange(len(split), dtype=np.float64) if column is None else _times(column)
        order = np.argsort(times, kind="stable")
        if self.fold is None:
            cuts = np.cumsum(np.asarray(fractions) / sum(fractions))[:2] * len(order)
            val_start, test_start = np.floor(cuts + 1e-9).astype(int)
            end = len(order)
        else:
            test_start, end = (np.array([1, 2]) + self.fold) * len(order) // (self.folds + 1)
            val_start = int(test_start * fractions[0] / (fractions[0] + fractions[1]) + 1e-9)
        split[order] = np.repeat([0, 1, 2, -1], [val_start, test_start - val_start, end - test_start, len(order) - end])
        if self.gap > 0:
            for side, start in ((0, val_start), (1, test_start)):
                if start < len(order):
                    split[(split == side) & (times >= times[order[start]] - self.gap)] = -1

    def _told(self) -> str:
        fold = "" if self.fold is None else f" and data.split.fold={self.fold}"
        gap = f" and data.split.gap={self.gap:g}" if self.gap else ""
        return f"data.split.by={self.by}, data.split.fractions={list(self.fractions)}{gap}{fold}"


def _bins(target: pl.Series) -> pl.Series:
    """Tenths of a target of amounts, by rank; equal values are in one."""
    return (target.rank("min") * TARGET_BINS / (len(target) + 1)).floor().cast(pl.Int8)


def _fill(order: np.ndarray, sizes: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """For each group the part it goes to, (groups,); parts get about these shares of the rows."""
    part = np.zeros(len(sizes), dtype=np.int64)
    lacking = np.asarray(shares) / sum(shares) * sizes[order].sum()
    for group in order.tolist():
        part[group] = emptiest = int(lacking.argmax())
        lacking[emptiest] -= sizes[group]
    return part


def _given(column: pl.Series) -> np.ndarray:
    names = column.cast(pl.String).str.strip_chars().str.to_lowercase().replace({"validation": "val", "valid": "val"})
    wrong = names.filter(~names.is_in(SPLITS) | names.is_null())
    if len(wrong):
        raise DataError(
            f"column '{column.name}' splits the rows, but holds {wrong[0]!r} in {len(wrong)} rows: "
            "it may only hold train, val and test"
        )
    missing = [name for name in SPLITS if not (names == name).any()]
    if missing:
        raise DataError(f"column '{column.name}' splits the rows, but no row says {missing[0]}")
    return names.replace_strict(list(SPLITS), [0, 1, 2], return_dtype=pl.Int8).to_numpy()


def _times(column: pl.Series) -> np.ndarray:
    """float64 (rows,): numbers as they are, dates in days, so that "10" comes after "9" and dates in their order."""
    numbers, bad = as_number(column, MISSING)
    if bad.any() or column.dtype.is_temporal():
        seconds, bad = as_date(column, MISSING, day_first(column))
        numbers = seconds / DAY
    if bad.any():
        raise DataError(
            f"column '{column.name}' cannot order the rows by time: it is neither numbers nor dates such as 2024-01-31 "
            f"({as_text(column.filter(bad))[0]!r} is none); choose another data.split.column"
        )
    if numbers.null_count():
        raise DataError(
            f"column '{column.name}' orders the rows by time, but is missing in {numbers.null_count():,} of"
            f" {len(column):,}; leave those out of the file, or choose another data.split.column"
        )
    return numbers.to_numpy()
