"""What a raw cell means: blanks, spellings of missing, numbers as text. The same for training and for serving."""

import math
from collections.abc import Sequence

import polars as pl

MISSING = ("", "?", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL")
"""Cells that stand for a missing value, once blanks are stripped."""
BLANKS = " \t\n\r\f\v"

_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_THOUSANDS = r"^[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?$"
_INFINITY = r"^[+-]?(?i:inf|infinity)$"
_WHOLE = r"^([+-]?[0-9]+)\.0+$"


def as_text(series: pl.Series) -> pl.Series:
    """Cells of any type as String, not cleaned; a whole float is written without its ".0", null stays null."""
    if series.dtype == pl.String:
        return series
    text = series.cast(pl.String)
    return text.str.replace(_WHOLE, "${1}") if series.dtype.is_float() else text


def clean_text(series: pl.Series, missing: Sequence[str]) -> pl.Series:
    """String cells without outer blanks (a no-break space is one), spellings of missing as null, "12.0" as "12".

    The rules of `datamodules.features.categories.clean`, which the artefact carries.
    """
    text = series.str.replace_all("\u00a0", " ", literal=True).str.strip_chars(BLANKS)
    if text.str.contains(_WHOLE).any():  # few columns have such cells, and to look is four times as fast
        text = text.str.replace(_WHOLE, "${1}")
    return text.set(text.is_in(list(missing)).fill_null(False), None)


def as_number(series: pl.Series, missing: Sequence[str]) -> tuple[pl.Series, pl.Series]:
    """Cells as Float64, and for each whether it is text that is no number.

    Null where missing, infinite or no number. "1,234.5" is a number; "1,2", "1_000", "0x10" and "12 km" are not.
    """
    if series.dtype.is_numeric() or series.dtype in (pl.Boolean, pl.Null):
        values = series.cast(pl.Float64)
        return _finite(values), pl.repeat(False, len(series), eager=True).alias(series.name)
    text = clean_text(as_text(series), missing)
    values = text.cast(pl.Float64, strict=False).alias(series.name)
    # What Rust reads as a number is a little more and a little less than what is one here. Most columns have neither.
    doubtful = text.is_not_null() & (values.is_null() | ~text.str.contains(_NUMBER))
    if not doubtful.any():
        return _finite(values), doubtful.alias(series.name)
    grouped = text.str.contains(_THOUSANDS).fill_null(False)
    values = values.zip_with(~grouped, text.str.replace_all(",", "", literal=True).cast(pl.Float64, strict=False))
    bad = (doubtful & ~grouped & ~text.str.contains(_INFINITY)).fill_null(False)
    return _finite(values.set(bad, None)), bad.alias(series.name)


def between(values: pl.Series, low: float | None, high: float | None) -> pl.Series:
    """Whether each value is within the bounds, where there are any; a missing value is."""
    inside = values.is_between(-math.inf if low is None else low, math.inf if high is None else high)
    return inside.fill_null(True)


def _finite(values: pl.Series) -> pl.Series:
    return values.set(~values.is_finite().fill_null(True), None)
