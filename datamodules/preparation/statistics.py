"""What the features are fitted on: facts of the training rows, gathered chunk by chunk and summed over processes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import polars as pl
import torch
from torch import Tensor

from common.cells import clean_text
from datamodules.features.texts import TokenCounts, count_tokens
from datamodules.preparation.chunks import Chunk, as_strings
from datamodules.schema import Column

SAMPLE = 262_144
"""Rows that quantiles are taken of; where there are no more, they are exact."""
MOST_LEVELS = 2_000_000
"""Different levels of a column that are counted at a time; of more, the rare ones are forgotten."""
LEVEL, ROWS = "level", "rows"
ROW, _RANK = "lathe.row", "lathe.rank"


class Sample:
    """A uniform sample of rows: those whose number has the smallest hash. Any order of rows, in any number of chunks
    and processes, gives the same (bottom-k sampling).
    """

    def __init__(self, most: int = SAMPLE) -> None:
        self.most = most
        self._parts: list[pl.DataFrame] = []
        self._rows = 0
        self._highest = (1 << 64) - 1  # rank that may still be among the lowest

    def add(self, frame: pl.DataFrame, first: int) -> None:
        """`first`: the number of the frame's first row among all."""
        rank = pl.int_range(first, first + len(frame), dtype=pl.UInt64).hash(seed=0)
        self.merge(frame.with_columns(rank.alias(_RANK), pl.int_range(first, first + len(frame)).alias(ROW)))

    def merge(self, ranked: pl.DataFrame) -> None:
        """Adds the `ranked` rows of another sample."""
        ranked = as_strings(ranked.filter(ranked[_RANK] <= self._highest))
        self._parts.append(ranked)
        self._rows += len(ranked)
        if self._rows > self.most * 5 // 4:
            ranks = pl.concat([part[_RANK] for part in self._parts])
            self._highest = cast(int, ranks.bottom_k(self.most).max())
            self._parts = [part.filter(part[_RANK] <= self._highest) for part in self._parts]
            self._rows = self.most

    @property
    def ranked(self) -> pl.DataFrame:
        whole = pl.concat(self._parts) if self._parts else pl.DataFrame()
        return whole if len(whole) <= self.most else whole.bottom_k(self.most, by=_RANK)

    @property
    def frame(self) -> pl.DataFrame:
        """The rows in their order, with their number as ROW."""
        return self.ranked.sort(ROW).drop(_RANK)


@dataclass
class Number:
    """Of a column of numbers how many are missing, and the range of the others; replaced values are replaced."""

    missing: int
    low: float = math.inf
    high: float = -math.inf

    def __add__(self, other: "Number") -> "Number":
        return Number(self.missing + other.missing, min(self.low, other.low), max(self.high, other.high))


@dataclass
class Statistics:
    """Exact facts of the training rows. Those of two sets of rows add up to those of both, in any order."""

    rows: int = 0
    numbers: dict[str, Number] = field(default_factory=dict)
    levels: dict[str, pl.DataFrame] = field(default_factory=dict)
    """Of a category column each cleaned level ("" is missing) and its rows."""
    tokens: dict[str, TokenCounts] = field(default_factory=dict)
    pixels: dict[str, Tensor] = field(default_factory=dict)
    """Of an image column the count, the sum and the sum of squares of each channel, int64 (3, channels)."""

    def __add__(self, other: "Statistics") -> "Statistics":
        return Statistics(
            self.rows + other.rows,
            {name: facts + other.numbers[name] for name, facts in self.numbers.items()},
            {name: _sum_levels([counts, other.levels[name]]) for name, counts in self.levels.items()},
            {name: counts + other.tokens[name] for name, counts in self.tokens.items()},
            {name: sums + other.pixels[name] for name, sums in self.pixels.items()},
        )


def gather(
    chunk: Chunk,
    columns: Sequence[Column],
    *,
    missing: Sequence[str],
    number_rules: Mapping[str, Mapping[float, float | None]],
    text_rules: Mapping[str, Mapping[str, str | None]],
    split_texts: Callable[[pl.Series], pl.DataFrame],
) -> Statistics:
    """The statistics of one chunk of training rows."""
    statistics = Statistics(rows=len(chunk.frame))
    for column in columns:
        name = column.name
        cells = chunk.frame[name]
        if column.kind in ("number", "date"):
            values = cells.replace(dict(number_rules.get(name, {})))
            low, high = cast(float | None, values.min()), cast(float | None, values.max())
            known = low is not None and high is not None
            statistics.numbers[name] = Number(values.null_count(), *((low, high) if known else ()))
        elif column.kind == "category":
            counts = cells.value_counts(name=ROWS)
            levels = clean_text(counts[name], missing).replace(dict(text_rules.get(name, {}))).fill_null("")
            statistics.levels[name] = _sum_levels([counts.select(levels.alias(LEVEL), pl.col(ROWS).cast(pl.Int64))])
        elif column.kind == "text":
            statistics.tokens[name] = count_tokens(cells, split_texts)
        elif column.kind == "image":
            statistics.pixels[name] = _sum_pixels(chunk.images[name])
    return statistics


def _sum_levels(counts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The commonest first, equals by name: so no order of sums changes it."""
    summed = pl.concat(counts).group_by(LEVEL).agg(pl.col(ROWS).sum())
    return summed.sort([ROWS, LEVEL], descending=[True, False]).head(MOST_LEVELS)


def _sum_pixels(images: Tensor) -> Tensor:
    """int64 (3, channels): the pixels of each channel, their sum, and the sum of their squares."""
    values = images.transpose(0, 1).flatten(1).long()
    count = torch.full((len(values),), values.shape[1], dtype=torch.int64)
    return torch.stack([count, values.sum(1), (values * values).sum(1)])
