"""The settings that say what becomes of raw rows: all that the encoded rows depend on, beside the files."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from datamodules.features.numbers import Scaling
from datamodules.features.texts import split
from datamodules.features.wordpiece import Vocabulary, WordPiece
from datamodules.preparation.clean import Rules, number_rules, text_rules
from datamodules.schema import Column, DataError, Kind
from datamodules.split import Split


@dataclass(frozen=True)
class Settings:
    """See conf/data/table.yaml. Raises DataError for settings that no table could be read with."""

    path: str | Sequence[str]
    target: str
    val_path: str | Sequence[str] | None
    test_path: str | Sequence[str] | None
    task: Literal["auto", "binary", "multiclass", "regression"]
    columns: Mapping[str, Kind]
    names: Sequence[str] | None
    separator: str | None
    invalid_utf8: Literal["refuse", "replace"]
    missing: tuple[str, ...]
    replace: Mapping[str, Rules]
    ranges: Mapping[str, tuple[float | None, float | None]]
    duplicates: Literal["keep", "drop"]
    max_bad_fraction: float
    split: Split
    numbers: Scaling
    max_levels: int
    hash_buckets: int
    max_tokens: int
    char_ngrams: tuple[int, int] | None
    wordpiece: Vocabulary | None
    image_size: Literal["auto"] | int | tuple[int, int]

    def __post_init__(self) -> None:
        if self.separator is not None and len(self.separator.encode()) != 1:
            raise DataError(f"data.separator={self.separator!r}: must be one character; a tab is found without it")
        if not 0 <= self.max_bad_fraction <= 1:
            raise DataError(f"data.max_bad_fraction={self.max_bad_fraction}: must be from 0 to 1")
        for setting, least in {"max_levels": 1, "max_tokens": 1, "hash_buckets": 0}.items():
            if getattr(self, setting) < least:
                raise DataError(f"data.{setting}={getattr(self, setting)}: must be {least} or more")
        if self.char_ngrams is not None and not 1 <= self.char_ngrams[0] <= self.char_ngrams[1]:
            raise DataError(f"data.char_ngrams={list(self.char_ngrams)}: give the shortest and the longest, as [3, 5]")
        if self.char_ngrams is not None and self.wordpiece is not None:
            raise DataError("data.char_ngrams: data.wordpiece parts words in its own way: leave one of them out")

    def split_texts(self) -> Callable[[pl.Series], pl.DataFrame]:
        """What finds the tokens of texts."""
        if self.wordpiece is None:
            return functools.partial(split, ngrams=self.char_ngrams)
        return WordPiece([""], self.wordpiece).split

    def number_rules(self, columns: Sequence[Column]) -> dict[str, dict[float, float | None]]:
        """What is replaced in each column of numbers."""
        return {
            column.name: number_rules(column.name, self.replace[column.name])
            for column in columns
            if column.kind == "number" and column.name in self.replace
        }

    def text_rules(self, columns: Sequence[Column]) -> dict[str, dict[str, str | None]]:
        """What is replaced in each category column."""
        return {
            column.name: text_rules(self.replace[column.name])
            for column in columns
            if column.kind == "category" and column.name in self.replace
        }
