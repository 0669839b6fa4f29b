"""What each column is and what the target asks for, concluded from the rows, each with its reason."""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Literal, get_args

import polars as pl

from common.cells import as_date, as_number, clean_text, day_first
from datamodules.readers.read import FILE, LINE
from datamodules.schema import Column, DataError, Kind, Task

MAX_BAD_NUMBERS = 0.05
"""Share of cells that may be no numbers in a column of numbers; such rows are set aside."""
MAX_DIFFERENT = 0.5
"""Share of different values above which a column of single words has nothing to learn from."""
TEXT_WORDS = 3.0
"""Mean words a cell from which on a column of many values is text."""
MAX_NUMBER_CLASSES = 10
"""A target of whole numbers with at most so many values is taken for classes."""
LOOKED_AT = 10_000
"""Cells of a column that dates and paths are told by."""
_IMAGE = r"(?i)\.(jpe?g|png|gif|bmp|webp|tiff?|ppm)$"


def infer_columns(
    frame: pl.DataFrame, *, target: str, overrides: Mapping[str, Kind], missing: Sequence[str]
) -> list[Column]:
    """The kind of each column, in order; `overrides` win. Raises DataError for names the table does not have."""
    names = [name for name in frame.columns if name not in (FILE, LINE)]
    check_names("data.target", [target], names)
    check_names("data.columns", overrides, names)
    for name, kind in overrides.items():
        if kind not in get_args(Kind):
            raise DataError(f"data.columns: {name} is to be {kind!r}; a column is one of {', '.join(get_args(Kind))}")
    columns = []
    for name in names:
        kind, reason = (overrides[name], "given") if name in overrides else _infer(frame[name], missing)
        columns.append(Column(name, kind, reason, day_first=kind == "date" and day_first(frame[name])))
    return columns


def infer_task(target: pl.Series, wanted: Literal["auto", "binary", "multiclass", "regression"]) -> tuple[Task, str]:
    """What is to be predicted, from the cleaned text of the target, and why."""
    if wanted != "auto":
        return wanted, "given"
    values = target.drop_nulls()
    different = values.n_unique()
    if different == 2:
        return "binary", f"two values: {' and '.join(sorted(values.unique()))}"
    numbers, bad = as_number(values, ())
    if bad.any() or different == 1:
        return "multiclass", f"{different:,} values that are no numbers"
    if different <= MAX_NUMBER_CLASSES and (numbers == numbers.round()).all():
        return "multiclass", f"{different} whole numbers; data.task=regression takes them as amounts"
    return "regression", f"{different:,} different numbers"


def check_names(setting: str, wanted: Collection[str], names: Sequence[str]) -> None:
    """Raises DataError for the first wanted column that the table does not have."""
    for name in wanted:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"its columns are {', '.join(names)}"
            raise DataError(f"{setting}: the table has no column {name!r}; {hint}")


def _infer(series: pl.Series, missing: Sequence[str]) -> tuple[Kind, str]:
    rows = len(series)
    if series.dtype.is_temporal():
        return "date", f"{series.dtype} values"
    numbers, bad = as_number(series, missing)
    text = clean_text(series, missing)
    present = rows - text.null_count()
    if present == 0:
        return "constant", f"no value in {rows:,} rows"
    different = text.n_unique() - (text.null_count() > 0)
    example = text.drop_nulls()[0]
    if different == 1 and present == rows:
        return "constant", f"one value: {example}"
    if bad.sum() <= MAX_BAD_NUMBERS * present and series.dtype != pl.Boolean:
        return _number(numbers, int(bad.sum()), rows)
    first = text.drop_nulls().head(LOOKED_AT)
    if as_date(first, missing, day_first(first))[1].sum() <= MAX_BAD_NUMBERS * len(first):
        return "date", f"dates such as {example}"
    if first.str.contains(_IMAGE).sum() >= (1 - MAX_BAD_NUMBERS) * len(first):
        return "image", f"paths of images such as {example}"
    hint = ""
    if 0 < bad.sum() < present / 2:
        hint = f"; {bad.sum():,} cells such as {text.filter(bad)[0]} are no numbers, the others are"
    many = different > MAX_DIFFERENT * present and present > 20
    words = text.str.count_matches(r"\S+").mean()
    if many and isinstance(words, float) and words >= TEXT_WORDS:
        return "text", f"{words:.0f} words a cell, {different:,} different texts"
    if many:
        return "identifier", f"{different:,} different values in {present:,} rows{hint}"
    return "category", f"{different:,} level{'s' if different > 1 else ''} in {rows:,} rows{hint}"


def _number(numbers: pl.Series, bad: int, rows: int) -> tuple[Kind, str]:
    low, high = numbers.min(), numbers.max()
    if not isinstance(low, float) or not isinstance(high, float):  # nothing but infinities
        return "constant", f"no finite number in {rows:,} rows"
    if rows > 20 and high - low == rows - 1 and numbers.n_unique() == rows and (numbers == numbers.round()).all():
        return "identifier", f"counts the rows from {low:.0f} to {high:.0f}"
    reason = f"numbers from {low:g} to {high:g}"
    return "number", reason + (f", but {bad:,} cells are not" if bad else "")
