"""The second pass: statistics of the training rows, which features are fitted on, summed over chunks and processes."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from operator import add
from typing import cast

import numpy as np
import polars as pl
import torch
from torch import Tensor

from common.cells import clean_text
from common.distributed import ProcessGroup
from datamodules.features.texts import TokenCounts, count_tokens
from datamodules.preparation.chunks import Chunk, Chunks, as_strings, in_parallel
from datamodules.preparation.settings import Settings
from datamodules.schema import Column

SAMPLE = 262_144
"""Maximum number of sampled rows; quantiles are exact up to this number of training rows."""
MAX_LEVELS = 2_000_000
"""Maximum number of distinct levels counted per column; the rarest beyond it are dropped."""
LEVEL, ROWS = "level", "rows"
ROW, _RANK = "lathe.row", "lathe.rank"


class Sample:
    """A uniform sample of rows: those whose row number has the smallest hash (bottom-k sampling).

    It does not depend on the order of the rows, nor on the number of chunks and processes.
    """

    def __init__(self, size: int = SAMPLE) -> None:
        self.size = size
        self._parts: list[pl.DataFrame] = []
        self._rows = 0
        self._highest = (1 << 64) - 1  # highest rank that may still be in the sample

    @classmethod
    def merged(cls, samples: Iterable[pl.DataFrame]) -> "Sample":
        """The sample of all rows, from the `ranked` rows of samples of some of them."""
        whole = cls()
        for ranked in samples:
            if len(ranked):  # a process may have had no chunk
                whole.merge(ranked)
        return whole

    def add(self, frame: pl.DataFrame, first: int) -> None:
        """Adds rows; `first` is the number of the first one among all rows."""
        rank = pl.int_range(first, first + len(frame), dtype=pl.UInt64).hash(seed=0)
        self.merge(frame.with_columns(rank.alias(_RANK), pl.int_range(first, first + len(frame)).alias(ROW)))

    def merge(self, ranked: pl.DataFrame) -> None:
        """Adds the `ranked` rows of another sample."""
        ranked = as_strings(ranked.filter(ranked[_RANK] <= self._highest))
        self._parts.append(ranked)
        self._rows += len(ranked)
        if self._rows > self.size * 5 // 4:
            ranks = pl.concat([part[_RANK] for part in self._parts])
            self._highest = cast(int, ranks.bottom_k(self.size).max())
            self._parts = [part.filter(part[_RANK] <= self._highest) for part in self._parts]
            self._rows = self.size

    @property
    def ranked(self) -> pl.DataFrame:
        """The sampled rows with their rank and number, in no particular order."""
        whole = pl.concat(self._parts) if self._parts else pl.DataFrame()
        return whole if len(whole) <= self.size else whole.bottom_k(self.size, by=_RANK)

    @property
    def frame(self) -> pl.DataFrame:
        """The sampled rows in their original order, with their number as ROW."""
        return self.ranked.sort(ROW).drop(_RANK)


@dataclass
class Number:
    """Number of missing values of a number column and the range of the others, after replacement of values."""

    missing: int
    low: float = math.inf
    high: float = -math.inf

    def __add__(self, other: "Number") -> "Number":
        return Number(self.missing + other.missing, min(self.low, other.low), max(self.high, other.high))


@dataclass
class Statistics:
    """Exact statistics of training rows; the sum of those of two sets of rows are those of both, in any order."""

    rows: int = 0
    numbers: dict[str, Number] = field(default_factory=dict)
    levels: dict[str, pl.DataFrame] = field(default_factory=dict)
    """Each cleaned level of a category column ("" is missing) and its number of rows."""
    tokens: dict[str, TokenCounts] = field(default_factory=dict)
    pixels: dict[str, Tensor] = field(default_factory=dict)
    """Count, sum and sum of squares of the pixels of each channel of an image column, int64 (3, channels)."""

    def __add__(self, other: "Statistics") -> "Statistics":
        return Statistics(
            self.rows + other.rows,
            {name: number + other.numbers[name] for name, number in self.numbers.items()},
            {name: _sum_levels([counts, other.levels[name]]) for name, counts in self.levels.items()},
            {name: counts + other.tokens[name] for name, counts in self.tokens.items()},
            {name: sums + other.pixels[name] for name, sums in self.pixels.items()},
        )


def gather_statistics(
    chunks: Chunks, columns: Sequence[Column], settings: Settings, split_codes: Mapping[int, np.ndarray]
) -> Statistics:
    """The statistics of the training rows of all processes; `split_codes` holds the split of each row, by chunk."""
    number_rules, text_rules = settings.number_rules(columns), settings.text_rules(columns)
    split_texts = settings.split_texts()

    def gather(chunk: Chunk) -> Statistics:
        chunk = chunk.filter(split_codes[chunk.number] == 0)
        return _gather_chunk(chunk, columns, settings.missing, number_rules, text_rules, split_texts)

    own = in_parallel(gather, chunks)
    found = [reduce(add, own)] if len(chunks) else []  # a process may have had no chunk
    return reduce(add, chain(*ProcessGroup().gather(found)))


def _gather_chunk(
    chunk: Chunk,
    columns: Sequence[Column],
    missing: Sequence[str],
    number_rules: Mapping[str, Mapping[float, float | None]],
    text_rules: Mapping[str, Mapping[str, str | None]],
    split_texts: Callable[[pl.Series], pl.DataFrame],
) -> Statistics:
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
    """The sum of counts, most frequent levels first and ties by name, so that it does not depend on the order."""
    summed = pl.concat(counts).group_by(LEVEL).agg(pl.col(ROWS).sum())
    return summed.sort([ROWS, LEVEL], descending=[True, False]).head(MAX_LEVELS)


def _sum_pixels(images: Tensor) -> Tensor:
    """int64 (3, channels): the number of pixels of each channel, their sum, and the sum of their squares."""
    values = images.transpose(0, 1).flatten(1).long()
    count = torch.full((len(values),), values.shape[1], dtype=torch.int64)
    return torch.stack([count, values.sum(1), (values * values).sum(1)])
