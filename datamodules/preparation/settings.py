"""The settings of a table: all that the encoded rows depend on besides the files. Each is declared here only."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import InitVar, dataclass, field, fields
from typing import Any, Literal, TypeVar

import polars as pl

from common.cells import MISSING
from datamodules.features.numbers import Scaling
from datamodules.features.texts import split
from datamodules.features.wordpiece import Vocabulary, WordPiece, read_vocabulary
from datamodules.preparation.clean import Rules, as_range, as_rules, number_rules, text_rules
from datamodules.schema import Column, DataError, Kind
from datamodules.split import Split

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """See conf/data/table.yaml. Raises DataError for values that are invalid for every table."""

    path: str | Sequence[str]
    target: str
    val_path: str | Sequence[str] | None = None
    test_path: str | Sequence[str] | None = None
    task: Literal["auto", "binary", "multiclass", "regression"] = "auto"
    columns: Mapping[str, Kind] = field(default_factory=dict)
    names: Sequence[str] | None = None
    separator: str | None = None
    invalid_utf8: Literal["refuse", "replace"] = "refuse"
    missing: Sequence[str] = MISSING
    replace: InitVar[Mapping[str, Sequence[tuple[str | float | None, str | float | None]]] | None] = None
    rules: Mapping[str, Rules] = field(init=False)
    """`replace`, by column."""
    ranges: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    duplicates: Literal["keep", "drop"] = "keep"
    max_bad_fraction: float = 0.05
    split: Split = field(default_factory=Split)
    numbers: Scaling = "quantile"
    max_levels: int = 1000
    hash_buckets: int = 0
    max_tokens: int = 20_000
    char_ngrams: tuple[int, int] | None = None
    wordpiece: InitVar[str | None] = None
    vocabulary: Vocabulary | None = field(init=False)
    """Content of the folder `wordpiece`."""
    image_size: Literal["auto"] | int | tuple[int, int] = "auto"

    def __post_init__(
        self,
        replace: Mapping[str, Sequence[tuple[str | float | None, str | float | None]]] | None,
        wordpiece: str | None,
    ) -> None:
        self.rules = {name: as_rules(name, pairs, self.missing) for name, pairs in (replace or {}).items()}
        self.ranges = {name: as_range(name, bounds) for name, bounds in self.ranges.items()}
        self.vocabulary = None if wordpiece is None else read_vocabulary(wordpiece)
        if self.separator is not None and len(self.separator.encode()) != 1:
            raise DataError(f"data.separator={self.separator!r}: must be one character; a tab is found without it")
        if not 0 <= self.max_bad_fraction <= 1:
            raise DataError(f"data.max_bad_fraction={self.max_bad_fraction}: must be from 0 to 1")
        for setting, least in {"max_levels": 1, "max_tokens": 1, "hash_buckets": 0}.items():
            if getattr(self, setting) < least:
                raise DataError(f"data.{setting}={getattr(self, setting)}: must be {least} or more")
        if self.char_ngrams is not None and not 1 <= self.char_ngrams[0] <= self.char_ngrams[1]:
            raise DataError(
                f"data.char_ngrams={list(self.char_ngrams)}: give the shortest and the longest length, as [3, 5]"
            )
        if self.char_ngrams is not None and self.vocabulary is not None:
            raise DataError("data.char_ngrams: data.wordpiece has its own way to split words; remove one of the two")

    def split_texts(self) -> Callable[[pl.Series], pl.DataFrame]:
        """Returns the function that splits texts into tokens."""
        if self.vocabulary is None:
            return functools.partial(split, ngrams=self.char_ngrams)
        return WordPiece([""], self.vocabulary).split

    def number_rules(self, columns: Sequence[Column]) -> dict[str, dict[float, float | None]]:
        """Replaced values of each number column that has any."""
        return {
            column.name: number_rules(column.name, self.rules[column.name])
            for column in columns
            if column.kind == "number" and column.name in self.rules
        }

    def text_rules(self, columns: Sequence[Column]) -> dict[str, dict[str, str | None]]:
        """Replaced values of each category column that has any."""
        return {
            column.name: text_rules(self.rules[column.name])
            for column in columns
            if column.kind == "category" and column.name in self.rules
        }

    @property
    def target_rules(self) -> Rules:
        """Replaced values of the target."""
        return self.rules.get(self.target, {})


def accepts_settings(function: F) -> F:
    """Decorator: lists the fields of Settings in the signature of a function in place of its `**settings`.

    The check of a config reads this signature. Settings that default to an empty mapping or to Split() may be None.
    """
    may_be_none = {each.name for each in fields(Settings) if each.default_factory is not NO_DEFAULT}
    own = inspect.signature(function)
    parameters = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
    for name, each in inspect.signature(Settings).parameters.items():
        if name not in own.parameters:
            hint = each.annotation.type if isinstance(each.annotation, InitVar) else each.annotation
            default = None if name in may_be_none else each.default
            parameters.append(each.replace(kind=each.KEYWORD_ONLY, annotation=hint, default=default))
            function.__annotations__[name] = hint
    function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function
