"""Which rows train, which choose (validation), which judge (test)."""

import contextlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl

from datamodules.schema import DataError

SplitBy = Literal["stratified", "random", "time", "column"]
SPLITS = ("train", "val", "test")


def split_rows(
    target: pl.Series,
    *,
    by: SplitBy,
    fractions: Sequence[float],
    seed: int,
    column: pl.Series | None = None,
    first_copy: pl.Series | None = None,
) -> np.ndarray:
    """The split of each row, int8 (rows,): 0 train, 1 validation, 2 test.

    - `stratified`: each class in the wanted fractions. `random`: the whole at once.
    - `time`: the earliest rows train, the latest test, by `column`, or in the order of the file without one.
    - `column`: the column says "train", "val" or "test".

    `first_copy` gives for each row the position of its first exact copy: the first are split and copies follow them,
    or a row learnt by heart would be counted as a success. Raises DataError where a split would be empty.
    """
    if by == "column":
        assert column is not None
        return _given(column)
    if first_copy is not None and by != "time":
        first = first_copy.unique(maintain_order=True)
        drawn = split_rows(target.gather(first), by=by, fractions=fractions, seed=seed)
        return drawn[np.searchsorted(first.to_numpy(), first_copy.to_numpy())]
    rows = len(target)
    generator = np.random.default_rng(seed)
    split = np.empty(rows, dtype=np.int8)
    if by == "stratified":
        for members in (
            target.to_frame("target").with_row_index().group_by("target", maintain_order=True).agg("index")["index"]
        ):
            _assign(split, generator.permutation(members.to_numpy()), fractions, generator)
    elif by == "random":
        _assign(split, generator.permutation(rows), fractions)
    else:
        order = np.arange(rows) if column is None else np.argsort(_sortable(column).to_numpy(), kind="stable")
        _assign(split, order, fractions)
    for code, name in enumerate(SPLITS):
        if not (split == code).any():
            raise DataError(
                f"{rows} different rows leave the {name} split empty with data.split_fractions={list(fractions)}: give"
                " more rows or other fractions"
            )
    return split


def _assign(
    split: np.ndarray,
    order: np.ndarray,
    fractions: Sequence[float],
    generator: np.random.Generator | None = None,
) -> None:
    """Cuts `order` at the fractions; with a generator, parts of a row are rounded at random, so that rare classes are
    not always rounded the same way."""
    cuts = np.cumsum(np.asarray(fractions) / sum(fractions))[:2] * len(order)
    shift = generator.random() if generator is not None else 0.0
    train_end, val_end = np.floor(cuts + shift + 1e-9).astype(int)  # 0.8 * 10 is 7.999... in floating point
    split[order[:train_end]] = 0
    split[order[train_end:val_end]] = 1
    split[order[val_end:]] = 2


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


def _sortable(column: pl.Series) -> pl.Series:
    """The column as numbers or times, so that "10" comes after "9" and dates in their order."""
    text = column.cast(pl.String).str.strip_chars()
    missing = int((text.is_null() | (text == "")).sum())
    if missing:
        raise DataError(
            f"column '{column.name}' orders the rows by time, but is missing in {missing:,} of {len(column):,}; leave"
            " those out of the file, or choose another data.split_column"
        )
    if column.dtype != pl.String:
        return column
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() == text.null_count():
        return numbers
    with contextlib.suppress(pl.exceptions.ComputeError):  # no format fits
        return text.str.to_datetime()
    raise DataError(
        f"column '{column.name}' cannot order the rows by time: it is neither numbers nor dates such as 2024-01-31 "
        f"(its first value is {text[0]!r}); choose another data.split_column"
    )
