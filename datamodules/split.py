"""Assigns the rows to the training, validation and test splits."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from common.cells import MISSING, as_date, as_number, as_text, clean_text, day_first
from datamodules.schema import DataError, Task, count

log = logging.getLogger(__name__)

SplitBy = Literal["stratified", "random", "group", "time", "column"]
SplitName = Literal["train", "val", "test"]
SPLITS = ("train", "val", "test")
TARGET_BINS, BIN_ROWS = 10, 20
"""Maximum number of bins of a regression target, which are split like classes, and minimum number of rows per bin."""
LARGEST = 10_000
"""Number of groups that are assigned one by one, the largest first. The others, possibly millions, are drawn like rows,
within the stratum of most of their rows."""
DAY = 86_400.0


@dataclass(frozen=True)
class Split:
    """How rows are split. Raises DataError for invalid settings.

    - `stratified`: each class, or each tenth of a regression target, is split in these fractions.
    - `random`: all rows together are split in these fractions.
    - `group`: rows with the same value of `column` stay in one split; a row without a value is a group of its own.
    - `time`: the earliest rows are for training and the latest for the test, by `column`, or by the order of the rows
      if there is no column. Rows less than `gap` before validation and test are left out. The unit is days if the
      column holds dates, the unit of the column if it holds numbers, and rows if there is no column.
    - `column`: `column` holds "train", "val" or "test".

    With `fold`, one of `folds` parts is the test split, and the rest is for training and validation; each row is in
    one part. By time there are `folds` + 1 parts, part `fold` + 1 is the test split, and later rows are left out.
    """

    by: SplitBy = "stratified"
    column: str | None = None
    fractions: Sequence[float] = (0.64, 0.16, 0.20)
    gap: float = 0
    seed: int = 0
    folds: int = 5
    fold: int | None = None

    def __post_init__(self) -> None:
        given = f"data.split.by={self.by} with data.split.column={self.column}"
        if self.column is None and self.by in ("group", "column"):
            holds = "the group of each row" if self.by == "group" else "train, val or test for each row"
            raise DataError(f"{given}: name the column that holds {holds}")
        if self.column is not None and self.by in ("stratified", "random"):
            raise DataError(f"{given}: only group, time and column take a column")
        if len(self.fractions) != 3 or not all(0 < share < math.inf for share in self.fractions):
            raise DataError(
                f"data.split.fractions={list(self.fractions)}: must be three shares above 0: train, val, test"
            )
        if not 0 <= self.gap < math.inf:
            raise DataError(f"data.split.gap={self.gap:g}: must be 0 or more")
        if self.gap > 0 and self.by != "time":
            raise DataError(f"data.split.gap={self.gap:g} with data.split.by={self.by}: a gap needs data.split.by=time")
        if self.seed < 0:
            raise DataError(f"data.split.seed={self.seed}: must be 0 or more")
        if self.folds < 2:
            raise DataError(f"data.split.folds={self.folds}: must be 2 or more")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise DataError(
                f"data.split.fold={self.fold} with data.split.folds={self.folds}: must be from 0 to {self.folds - 1}"
            )
        if self.fold is not None and self.by == "column":
            raise DataError(
                f"data.split.fold={self.fold} with data.split.by=column: the column gives the test rows, so"
                " there are no folds"
            )

    def assign(
        self,
        target: pl.Series,
        task: Task,
        *,
        column: pl.Series | None = None,
        first_copy: np.ndarray | None = None,
        files: np.ndarray | None = None,
        missing: Sequence[str] = MISSING,
    ) -> np.ndarray:
        """The split of each row, int8 (rows,): 0 train, 1 validation, 2 test, -1 left out.

        Args:
            target: Values of the target, (rows,).
            task: The task, which decides how `target` is stratified.
            column: Raw cells of `self.column`, where `missing` are the spellings of a missing value.
            first_copy: int64 (rows,), the position of the first exact copy of each row. Only first copies are split,
                and the others follow them, so that memorized rows do not count as correct. By group, copies stay in
                their groups; by time, in their order.
            files: int8 (rows,), 1 for rows given as validation, 2 for rows given as test; these stay there. The
                others, 0, are divided among the splits that are not given.

        Raises:
            DataError: The column cannot split the rows, or a split would be empty.
        """
        split = np.zeros(len(target), dtype=np.int8) if files is None else files.copy()
        sides = [side for side in range(len(SPLITS)) if side == 0 or not (split == side).any()]
        if len(sides) < len(SPLITS) and self.by == "column":
            raise DataError("data.split.by=column with data.val_path or data.test_path: use one of them")
        if self.fold is not None and 2 not in sides:
            raise DataError(
                f"data.split.fold={self.fold} with data.test_path: the file gives the test rows, so there are no folds"
            )
        free = split == 0
        if not free.all():
            target = target.filter(pl.Series(free))
            column = None if column is None else column.filter(pl.Series(free))
            # The audit reports copies of a row in another file.
            first_copy = None if first_copy is None else first_equal(first_copy[free])
        split[free] = self._divide(target, task, sides, column, first_copy, missing)
        for code, name in enumerate(SPLITS):
            if not (split == code).any():
                raise DataError(
                    f"the {name} split is empty: {count(len(target), 'row')} with {self._described()}; give more rows,"
                    " or change these settings"
                )
        return split

    def _divide(
        self,
        target: pl.Series,
        task: Task,
        sides: Sequence[int],
        column: pl.Series | None,
        first_copy: np.ndarray | None,
        missing: Sequence[str],
    ) -> np.ndarray:
        """The split of the rows of data.path."""
        if self.by == "time":
            return self._by_time(np.arange(len(target)) if column is None else _times(column, missing), sides)
        if self.by == "column":
            assert column is not None
            return _given(column)
        if self.by == "group":
            assert column is not None
            strata = target if task != "regression" else _bins(target)
            return self._by_group(strata, column.name, _groups(column, first_copy, missing), sides)
        if first_copy is None:
            return self._drawn(target, task, sides)
        place, first = _numbered(first_copy)
        split: np.ndarray = self._drawn(target.filter(pl.Series(first)), task, sides)[place]
        return split

    def _drawn(self, target: pl.Series, task: Task, sides: Sequence[int]) -> np.ndarray:
        generator = np.random.default_rng(self.seed)
        split = np.empty(len(target), dtype=np.int8)
        if self.by == "random":
            strata: Iterator[np.ndarray] = iter([np.arange(len(target))])
        else:
            strata = _strata(_bins(target) if task == "regression" else target)
        for members in strata:
            order = generator.permutation(members)
            # Fractions of a row are rounded at random, so that rare classes are not always rounded the same way.
            shifts = (generator.random(), generator.random() if self.fold is not None else 0.0)
            pieces = self._pieces(order, sides, shifts if self.by == "stratified" else (0.0, 0.0))
            for side, piece in zip(sides, pieces, strict=True):
                split[piece] = side
        return split

    def _pieces(self, order: np.ndarray, sides: Sequence[int], shifts: tuple[float, float]) -> list[np.ndarray]:
        """Cuts rows in this order into a piece for each side."""
        if self.fold is None:
            return _cut(order, self._shares(sides), shifts[0])
        blocks = _cut(order, [1] * self.folds, shifts[0])
        rest = np.concatenate([*blocks[self.fold + 1 :], *blocks[: self.fold]])
        return [*_cut(rest, self._shares(sides[:-1]), shifts[1]), blocks[self.fold]]

    def _by_time(self, times: np.ndarray, sides: Sequence[int]) -> np.ndarray:
        order = np.argsort(times, kind="stable")
        if self.fold is None:
            pieces = _cut(order, self._shares(sides))
        else:
            blocks = _cut(order, [1] * (self.folds + 1))
            before = np.concatenate(blocks[: self.fold + 1])
            pieces = [*_cut(before, self._shares(sides[:-1])), blocks[self.fold + 1]]
        ordered = np.concatenate(pieces)
        split = np.full(len(times), -1, dtype=np.int8)
        for side, piece, end in zip(sides, pieces, np.cumsum([len(piece) for piece in pieces]), strict=True):
            if self.gap and end < len(ordered):
                piece = piece[times[piece] < times[ordered[end]] - self.gap]
            split[piece] = side
        return split

    def _by_group(self, strata: pl.Series, name: str, group: np.ndarray, sides: Sequence[int]) -> np.ndarray:
        generator = np.random.default_rng(self.seed)
        stratum = strata.rank("dense").to_numpy() - 1
        groups, width = int(group.max()) + 1, int(stratum.max()) + 1
        keys, rows = np.unique(group * width + stratum, return_counts=True)
        cells = pl.DataFrame({"group": keys // width, "stratum": keys % width, "rows": rows})
        parts = len(sides) if self.fold is None else max(self.folds, len(sides))
        if groups < parts:
            held = f"all {len(group):,} rows are in one group" if groups == 1 else f"there are {groups} groups"
            raise DataError(
                f"data.split.column={name}: {held}, but {parts} are needed; choose another column, or"
                " data.split.by=stratified"
            )
        side: np.ndarray = np.full(groups, 2, dtype=np.int8)
        rest = np.full(groups, True)
        if self.fold is not None:
            rest = _deal(cells, [1] * self.folds, generator) != self.fold
            cells = cells.filter(pl.Series(rest[cells["group"]])).with_columns(pl.col("group").rank("dense") - 1)
            sides = sides[:-1]
        side[rest] = np.asarray(sides)[_deal(cells, self._shares(sides), generator)]
        split: np.ndarray = side[group]
        return split

    def _shares(self, sides: Sequence[int]) -> list[float]:
        return [self.fractions[side] for side in sides]

    def _described(self) -> str:
        settings = f"data.split.by={self.by}, data.split.fractions={list(self.fractions)}"
        gap = f", data.split.gap={self.gap:g}" if self.gap else ""
        return settings + gap + (f", data.split.folds={self.folds}" if self.fold is not None else "")


def _cut(order: np.ndarray, shares: Sequence[float] | np.ndarray, shift: float = 0.0) -> list[np.ndarray]:
    """Cuts `order` into a piece for each share; 0 <= `shift` < 1 is added to the cuts before they are rounded down."""
    cuts = np.cumsum(np.asarray(shares) / sum(shares))[:-1] * len(order)
    return np.split(order, np.floor(cuts + shift + 1e-9).astype(int))  # 0.8 * 10 is 7.999... in floating point


def _strata(labels: pl.Series) -> Iterator[np.ndarray]:
    """Yields the rows of each label, in order of their first rows."""
    rows = labels.to_frame("label").with_row_index().group_by("label", maintain_order=True).agg("index")
    return (members.to_numpy() for members in rows["index"])


def _bins(target: pl.Series) -> pl.Series:
    """Bins of a regression target with equal numbers of rows; equal values are in the same bin."""
    values = target.to_numpy()
    bins = min(max(len(values) // BIN_ROWS, 1), TARGET_BINS)
    edges = np.quantile(values, np.arange(1, bins) / bins)
    return pl.Series(np.searchsorted(edges, values, side="right").astype(np.int8))


def _groups(column: pl.Series, first_copy: np.ndarray | None, missing: Sequence[str]) -> np.ndarray:
    """The group of each row, numbered from 0; a row without a value forms a group with its copies."""
    names = clean_text(column, missing)
    alone = names.is_null().to_numpy()
    keys = names.hash().to_numpy().view(np.int64)
    if alone.any():
        log.info("%s is missing in %s rows: each is a separate group", column.name, f"{alone.sum():,}")
        keys = np.where(alone, np.arange(len(names)) if first_copy is None else first_copy, keys)
    return _numbered(first_equal(keys))[0]


def first_equal(keys: np.ndarray) -> np.ndarray:
    """The position of the first row with the same key, for each row, int64."""
    _, first, place = np.unique(keys, return_index=True, return_inverse=True)
    return first[place]


def _numbered(first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the first rows from 0; returns the number for each row, int64 (rows,), and which rows are first."""
    is_first = first == np.arange(len(first))
    return (np.cumsum(is_first) - 1)[first], is_first


def _deal(cells: pl.DataFrame, shares: Sequence[float], generator: np.random.Generator) -> np.ndarray:
    """Assigns groups to parts with these shares of the rows of each stratum; returns the parts, int64 (groups,).

    `cells` holds the "rows" of each "group" in each "stratum", both numbered from 0. In order of the magnitude of
    their size, the largest first, each group is assigned to the part where it adds least to the sum of
    (have - want)^2 / want. This is the Webster/Sainte-Lague method of apportionment, with which small parts get large
    groups too.
    """
    cells = cells.sort("group", "rows", "stratum")
    group, stratum, rows = (cells[name].to_numpy().astype(np.int64) for name in ("group", "stratum", "rows"))
    sizes = np.bincount(group, rows)
    starts = np.searchsorted(group, np.arange(len(sizes) + 1))
    want = np.outer(np.asarray(shares) / sum(shares), np.bincount(stratum, rows))
    deficit = want.copy()
    part = np.full(len(sizes), -1)
    empty = np.full(len(shares), True)
    order = generator.permutation(len(sizes))
    # With one group per part, a random order could assign a small group to the largest part.
    magnitude = sizes if len(sizes) == len(shares) else np.frexp(sizes)[1]
    order = order[np.argsort(-magnitude[order], kind="stable")]
    for place, each in enumerate(order[:LARGEST].tolist()):
        cell = slice(starts[each], starts[each + 1])
        strata, counts = stratum[cell], rows[cell]
        cost = (counts * (counts - 2 * deficit[:, strata]) / want[:, strata]).sum(1)
        if len(order) - place <= empty.sum():
            cost[~empty] = np.inf
        part[each] = to = cost.argmin()
        deficit[to, strata] -= counts
        empty[to] = False
    small = generator.permutation(order[LARGEST:])
    main_stratum = stratum[starts[small + 1] - 1]
    for members in _strata(pl.Series(main_stratum)):
        drawn = small[members]
        ends = np.cumsum(sizes[drawn])
        missing = deficit[:, main_stratum[members[0]]].clip(1e-9)
        cuts = np.cumsum(missing) / missing.sum() * ends[-1]
        part[drawn] = np.searchsorted(cuts[:-1], ends - generator.random() * sizes[drawn])
    return part


def _given(column: pl.Series) -> np.ndarray:
    names = as_text(column).str.strip_chars().str.to_lowercase().replace({"validation": "val", "valid": "val"})
    wrong = names.filter(~names.is_in(SPLITS) | names.is_null())
    if len(wrong):
        raise DataError(
            f"column '{column.name}' gives the splits, but holds {wrong[0]!r} in {len(wrong):,} rows: it may only hold"
            " train, val and test"
        )
    absent = [name for name in SPLITS if not (names == name).any()]
    if absent:
        raise DataError(f"column '{column.name}' gives the splits, but no row has {absent[0]}")
    return names.replace_strict(list(SPLITS), [0, 1, 2], return_dtype=pl.Int8).to_numpy()


def _times(column: pl.Series, missing: Sequence[str]) -> np.ndarray:
    """float64 (rows,): numbers as they are and dates in days, so that "10" comes after "9"."""
    times, bad = as_number(column, missing)
    if bad.any() or column.dtype.is_temporal():
        seconds, undated = as_date(column, missing, day_first(column))
        if undated.sum() <= bad.sum():
            times, bad = seconds / DAY, undated
    if bad.any():
        raise DataError(
            f"column '{column.name}' cannot order the rows by time: {as_text(column.filter(bad))[0]!r} is neither a"
            f" number nor a date such as 2024-01-31; choose another data.split.column"
        )
    if times.null_count():
        raise DataError(
            f"column '{column.name}' orders the rows by time, but is missing in {times.null_count():,} of"
            f" {len(column):,} rows; remove these rows from the file, or choose another data.split.column"
        )
    return times.to_numpy()
