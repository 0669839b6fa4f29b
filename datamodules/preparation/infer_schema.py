"""The kind of each column and the task, inferred from the first rows, each with its reason."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal, get_args

import polars as pl

from common.cells import as_date, as_number, clean_text, day_first, is_low_cardinality
from datamodules.preparation.clean import clean_target
from datamodules.preparation.settings import Settings
from datamodules.readers.read import FILE, LINE
from datamodules.schema import Column, DataError, Kind, Task, feature_columns

MAX_BAD_CELLS = 0.05
"""Maximum share of cells of a column that may not be of its kind; rows with such cells are rejected."""
MAX_DISTINCT = 0.5
"""Share of distinct values above which a column of single words is an identifier."""
TEXT_WORDS = 3.0
"""Mean number of words per cell from which a column with many distinct values is text."""
MAX_NUMBER_CLASSES = 10
"""Maximum number of distinct values for which a target of whole numbers is taken as classes."""
CHECKED_CELLS = 10_000
"""Number of cells that are checked for dates and paths."""
_IMAGE = r"(?i)\.(jpe?g|png|gif|bmp|webp|tiff?|ppm)$"


@dataclass(frozen=True)
class Schema:
    """The columns, the task with its reason, and the names of the text columns with few distinct values."""

    columns: list[Column]
    task: Task
    reason: str
    low_cardinality: list[str]


def infer_schema(frame: pl.DataFrame, settings: Settings, image_columns: Collection[str]) -> Schema:
    """Infers the schema from raw rows; `image_columns` come as pixels.

    Raises DataError if the settings do not fit the columns, or if nothing can be learned.
    """
    overrides: dict[str, Kind] = {**dict.fromkeys(image_columns, "image"), **settings.columns}
    columns = infer_columns(frame, target=settings.target, overrides=overrides, missing=settings.missing)
    by, column_of_split = settings.split.by, settings.split.column
    if column_of_split is not None:
        check_names("data.split.column", [column_of_split], [column.name for column in columns])
    labels = clean_target(frame[settings.target], settings.missing, settings.target_rules)
    if labels.null_count() == len(labels):
        raise DataError(
            f"data.target={settings.target}: no row has a value. Cells that count as missing are"
            f" {', '.join(map(repr, settings.missing))} (data.missing)."
        )
    task, reason = infer_task(labels, settings.task)
    if by in ("group", "column"):
        why = "names the group of a row" if by == "group" else "says which rows train"
        columns = [
            replace(column, kind="drop", reason=why) if column.name == column_of_split else column for column in columns
        ]
    _check_settings(settings, columns)
    names = [name for name in frame.columns if name not in (FILE, LINE) and is_low_cardinality(frame[name])]
    return Schema(columns, task, reason, names)


def _check_settings(settings: Settings, columns: Sequence[Column]) -> None:
    if not feature_columns(columns, settings.target):
        kinds = ", ".join(f"{column.name} ({column.kind})" for column in columns)
        raise DataError(f"no column is left to learn from: {kinds}. Set one with data.columns='{{NAME: category}}'")
    if settings.columns.get(settings.target) == "drop":
        raise DataError(f"data.columns: {settings.target} is data.target, and cannot be dropped")
    check_names("data.ranges", settings.ranges, [column.name for column in columns])
    check_names("data.replace", settings.rules, [column.name for column in columns])
    for column in columns:
        is_target = column.name == settings.target
        what = f"{column.name} is of kind {column.kind} ({column.reason})"
        if column.name in settings.ranges and (column.kind != "number" or is_target):
            raise DataError(f"data.ranges: {what}; ranges are for number columns other than the target")
        if column.name in settings.rules and column.kind not in ("number", "category") and not is_target:
            raise DataError(f"data.replace: {what}; values are replaced in numbers, categories and the target")


def infer_columns(
    frame: pl.DataFrame, *, target: str, overrides: Mapping[str, Kind], missing: Sequence[str]
) -> list[Column]:
    """The kind of each column, in order; `overrides` take precedence. Raises DataError for unknown column names."""
    names = [name for name in frame.columns if name not in (FILE, LINE)]
    check_names("data.target", [target], names)
    check_names("data.columns", overrides, names)
    for name, kind in overrides.items():
        if kind not in get_args(Kind):
            raise DataError(f"data.columns: {name} is {kind!r}; it must be one of {', '.join(get_args(Kind))}")
    columns = []
    for name in names:
        kind, reason = (overrides[name], "given") if name in overrides else _infer_kind(frame[name], missing)
        columns.append(Column(name, kind, reason, day_first=kind == "date" and day_first(frame[name])))
    return columns


def infer_task(target: pl.Series, wanted: Literal["auto", "binary", "multiclass", "regression"]) -> tuple[Task, str]:
    """The task and its reason, inferred from the cleaned text of the target."""
    if wanted != "auto":
        return wanted, "given"
    values = target.drop_nulls()
    distinct = values.n_unique()
    if distinct == 2:
        return "binary", f"two values: {' and '.join(sorted(values.unique()))}"
    numbers, bad = as_number(values, ())
    if bad.any() or distinct == 1:
        return "multiclass", f"{distinct:,} values that are not numbers"
    if distinct <= MAX_NUMBER_CLASSES and (numbers == numbers.round()).all():
        return "multiclass", f"{distinct} whole numbers; data.task=regression takes them as amounts"
    return "regression", f"{distinct:,} distinct numbers"


def check_names(setting: str, wanted: Collection[str], names: Sequence[str]) -> None:
    """Raises DataError for the first wanted column that the table does not have."""
    for name in wanted:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"its columns are {', '.join(names)}"
            raise DataError(f"{setting}: the table has no column {name!r}; {hint}")


def _infer_kind(series: pl.Series, missing: Sequence[str]) -> tuple[Kind, str]:
    # Reasons are part of the fingerprint of the data: with other words, earlier runs cannot be resumed.
    rows = len(series)
    if series.dtype.is_temporal():
        return "date", f"{series.dtype} values"
    numbers, bad = as_number(series, missing)
    text = clean_text(series, missing)
    present = rows - text.null_count()
    if present == 0:
        return "constant", f"no value in {rows:,} rows"
    distinct = text.n_unique() - (text.null_count() > 0)
    example = text.drop_nulls()[0]
    if distinct == 1 and present == rows:
        return "constant", f"one value: {example}"
    if bad.sum() <= MAX_BAD_CELLS * present and series.dtype != pl.Boolean:
        return _number_or_identifier(numbers, int(bad.sum()), rows)
    first = text.drop_nulls().head(CHECKED_CELLS)
    if as_date(first, missing, day_first(first))[1].sum() <= MAX_BAD_CELLS * len(first):
        return "date", f"dates such as {example}"
    if first.str.contains(_IMAGE).sum() >= (1 - MAX_BAD_CELLS) * len(first):
        return "image", f"paths of images such as {example}"
    # A reason is part of the fingerprint of a checkpoint: with other words, earlier runs cannot be resumed.
    hint = ""
    if 0 < bad.sum() < present / 2:
        hint = f"; {bad.sum():,} cells such as {text.filter(bad)[0]} are no numbers, the others are"
    many = distinct > MAX_DISTINCT * present and present > 20
    words = text.str.count_matches(r"\S+").mean()
    if many and isinstance(words, float) and words >= TEXT_WORDS:
        return "text", f"{words:.0f} words a cell, {distinct:,} different texts"
    if many:
        return "identifier", f"{distinct:,} different values in {present:,} rows{hint}"
    return "category", f"{distinct:,} level{'s' if distinct > 1 else ''} in {rows:,} rows{hint}"


def _number_or_identifier(numbers: pl.Series, bad: int, rows: int) -> tuple[Kind, str]:
    low, high = numbers.min(), numbers.max()
    if not isinstance(low, float) or not isinstance(high, float):  # only infinities
        return "constant", f"no finite number in {rows:,} rows"
    if rows > 20 and high - low == rows - 1 and numbers.n_unique() == rows and (numbers == numbers.round()).all():
        return "identifier", f"counts the rows from {low:.0f} to {high:.0f}"
    reason = f"numbers from {low:g} to {high:g}"
    return "number", reason + (f", but {bad:,} cells are not" if bad else "")
