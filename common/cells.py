"""Parses raw cells: blanks, spellings of missing, numbers and dates as text. Shared by training and serving."""

import math
from collections.abc import Sequence

import polars as pl

MISSING = ("", "?", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL")
"""Default spellings of a missing value, after blanks are stripped."""
BLANKS = " \t\n\r\f\v"

_THOUSANDS = r"^[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?$"
_WHOLE = r"^([+-]?[0-9]+)\.0+$"
_MOMENT = (
    r"^(?<date>.*?)(?:[T ] *(?<time>[0-9]{1,2}:[0-9:.]+(?: ?[AaPp][Mm])?)"
    r"(?: ?(?<zone>Z|UTC|GMT|[+-][0-9]{2}:?(?:[0-9]{2})?))?)?$"
)
_DATE = (
    r"^([0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}|[0-9]{1,2}[-/.][0-9]{1,2}[-/.][0-9]{4}"
    r"|[A-Za-z]+ [0-9]{1,2},? [0-9]{4}|[0-9]{1,2}[ -][A-Za-z]+[ -][0-9]{4})$"
)
_DAY_AND_MONTH = r"^\s*(?<first>[0-9]{1,2})[/-](?<second>[0-9]{1,2})[/-][0-9]{4}"
MANY = 4096
"""Minimum number of cells, and maximum number of distinct cells, of a low-cardinality column."""
_EPOCH = (1e8, 1e10)
"""Range of numbers that are seconds since 1970, from 1973 to 2286; 1,000 times this range is milliseconds."""


def as_text(series: pl.Series) -> pl.Series:
    """Casts cells of any type to String, without cleaning; whole floats lose their ".0", durations are in ISO 8601."""
    if series.dtype == pl.String:
        return series
    if series.dtype == pl.Duration:
        return series.dt.to_string("iso")
    text = series.cast(pl.String)
    return text.str.replace(_WHOLE, "${1}") if series.dtype.is_float() else text


def factorize(series: pl.Series) -> tuple[pl.Series, pl.Series]:
    """The distinct cells of a text column, and the index of each cell among them; null stays null.

    For a Categorical, the distinct cells may include some of other series with the same `pl.Categories`.
    """
    if isinstance(series.dtype, pl.Categorical):
        return series.dtype.categories.to_series(), series.to_physical()
    distinct = series.unique().drop_nulls()
    return distinct, series.cast(pl.Enum(distinct)).to_physical()


def clean_text(series: pl.Series, missing: Sequence[str]) -> pl.Series:
    """Cells as String without outer blanks and no-break spaces; spellings of missing become null, "12.0" becomes "12".

    The rules are those of `datamodules.features.categories.clean`, which is part of the artifact.
    """
    if is_low_cardinality(series):
        distinct, index = factorize(series)
        return clean_text(distinct, missing).gather(index).alias(series.name)
    text = as_text(series).str.replace_all("\u00a0", " ", literal=True).str.strip_chars(BLANKS)
    if text.str.contains(_WHOLE).any():  # rarely true, and four times as fast as replacing
        text = text.str.replace(_WHOLE, "${1}")
    return text.set(text.is_in(list(missing)).fill_null(False), None)


def as_number(series: pl.Series, missing: Sequence[str]) -> tuple[pl.Series, pl.Series]:
    """Cells as Float64, null if missing, infinite or invalid; and whether each cell is text that is not a number.

    "1,234.5" is a number; "1,2", "1_000", "0x10" and "12 km" are not.
    """
    if series.dtype.is_numeric() or series.dtype in (pl.Boolean, pl.Null):
        values = series.cast(pl.Float64)
        return _finite(values), pl.repeat(False, len(series), eager=True).alias(series.name)
    if is_low_cardinality(series):
        distinct, index = factorize(series)
        values, bad = as_number(distinct, missing)
        return values.gather(index).alias(series.name), bad.gather(index).fill_null(False).alias(series.name)
    text = as_text(series)
    values = text.cast(pl.Float64, strict=False)  # whatever Rust parses as a finite number
    marks = pl.Series(missing, dtype=pl.String).cast(pl.Float64, strict=False).drop_nulls()
    rest = (~values.is_finite().fill_null(False) | values.is_in(marks.implode())).arg_true()
    bad = pl.repeat(False, len(series), eager=True).alias(series.name)
    if len(rest):
        other, other_bad = _as_number(clean_text(text.gather(rest), missing))
        values, bad = values.scatter(rest, other), bad.scatter(rest, other_bad)
    return values, bad


def _as_number(text: pl.Series) -> tuple[pl.Series, pl.Series]:
    """`as_number` for clean cells."""
    values = text.cast(pl.Float64, strict=False)
    doubtful = text.is_not_null() & ~values.is_finite().fill_null(False)
    if not doubtful.any():
        return values, doubtful
    grouped = text.str.contains(_THOUSANDS).fill_null(False)
    values = values.zip_with(~grouped, text.str.replace_all(",", "", literal=True).cast(pl.Float64, strict=False))
    bad = doubtful & (values.is_null() | values.is_nan().fill_null(False))
    return _finite(values), bad


def as_date(series: pl.Series, missing: Sequence[str], day_first: bool) -> tuple[pl.Series, pl.Series]:
    """Cells as seconds since 1970-01-01 UTC, Float64, null if missing or invalid; and whether each cell is not a date.

    Dates are 2011-01-31, 2011/01/31, 2011.01.31, 31.01.2011, Jan 31, 2011, 31 Jan 2011, 20110131, and 31/01/2011 with
    `day_first` or 01/31/2011 without. A time may follow (14:30, 14:30:59.5 or 2:30 PM) and a time zone (Z or +02:00;
    the default is UTC). Numbers are seconds or milliseconds since 1970, from 1973 to 2286. Columns of times without a
    date and of durations become seconds.
    """
    if series.dtype.is_temporal():
        moments = series.cast(pl.Datetime("us")) if series.dtype == pl.Date else series
        unit = {"ms": 1e3, "us": 1e6, "ns": 1e9}[getattr(moments.dtype, "time_unit", "ns")]
        return moments.to_physical() / unit, pl.repeat(False, len(series), eager=True).alias(series.name)
    if is_low_cardinality(series):
        distinct, index = factorize(series)
        seconds, bad = as_date(distinct, missing, day_first)
        return seconds.gather(index).alias(series.name), bad.gather(index).fill_null(False).alias(series.name)
    text = clean_text(series, missing)
    seconds = _written_date(text, day_first)
    rest = (text.is_not_null() & seconds.is_null()).arg_true()
    if len(rest):
        seconds = seconds.scatter(rest, _date_of_number(as_number(text.gather(rest), ())[0]))
    return seconds.alias(series.name), (text.is_not_null() & seconds.is_null()).alias(series.name)


def day_first(series: pl.Series) -> bool:
    """Returns whether 31/01/2011 is more frequent than 01/31/2011; only days above 12 distinguish them."""
    numbers = as_text(series).str.extract_groups(_DAY_AND_MONTH).struct.unnest().cast(pl.Int64)
    days = numbers.select(pl.all().is_between(13, 31).sum()).row(0)
    return bool(days[0] > days[1])


def _written_date(text: pl.Series, day_first: bool) -> pl.Series:
    """Seconds of dates with separators; null for other cells."""
    slashed = ("%d/%m/%Y", "%d-%m-%Y") if day_first else ("%m/%d/%Y", "%m-%d-%Y")
    formats = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", *slashed, "%B %d %Y", "%d %B %Y", "%d-%B-%Y")
    parts = pl.DataFrame({"date": text})
    if timed := bool(text.str.contains(":", literal=True).any()):  # splitting cells takes longer than parsing dates
        parts = text.str.extract_groups(_MOMENT).struct.unnest()
    date = parts["date"].set(~parts["date"].str.contains(_DATE), None).str.replace(",", "", literal=True)
    seconds = _parse(date, formats, pl.Date).cast(pl.Int32).cast(pl.Float64) * 86_400.0
    if not timed:
        return seconds
    clock = parts["time"].str.replace(" ", "", literal=True)
    time = _parse(clock, ("%H:%M:%S%.f", "%H:%M", "%I:%M%p", "%I:%M:%S%p"), pl.Time).cast(pl.Int64) / 1e9
    zone = parts["zone"].str.replace(":", "", literal=True).str.pad_end(5, "0").cast(pl.Int32, strict=False)
    zone = zone.sign() * (zone.abs() // 100 * 60 + zone.abs() % 100) * 60
    return seconds + time.zip_with(clock.is_not_null(), pl.Series([0.0])) - zone.fill_null(0)


def _parse(text: pl.Series, formats: Sequence[str], dtype: type[pl.Date | pl.Time]) -> pl.Series:
    """Parses each cell by the first matching format; null if none matches."""
    parsed = pl.repeat(None, len(text), dtype=dtype, eager=True)
    for format_ in formats:
        rest = (text.is_not_null() & parsed.is_null()).arg_true()
        if len(rest) == 0:
            break
        parsed = parsed.scatter(rest, text.gather(rest).str.strptime(dtype, format_, strict=False))
    return parsed


def _date_of_number(values: pl.Series) -> pl.Series:
    """Seconds of numbers such as 20110131, or of seconds or milliseconds since 1970; null for other numbers."""
    low, high = _EPOCH
    days = values.cast(pl.Int64, strict=False).cast(pl.String).str.strptime(pl.Date, "%Y%m%d", strict=False)
    value = pl.lit(values)
    return pl.select(
        pl.when(value.is_between(1e7, 1e8, closed="left") & (value == value.floor()))
        .then(pl.lit(days).cast(pl.Int32).cast(pl.Float64) * 86_400.0)
        .when(value.is_between(low, high, closed="left"))
        .then(value)
        .when(value.is_between(low * 1000, high * 1000, closed="left"))
        .then(value / 1000)
    ).to_series()


def between(values: pl.Series, low: float | None, high: float | None) -> pl.Series:
    """Whether each value is within the bounds (None is no bound); missing values are."""
    inside = values.is_between(-math.inf if low is None else low, math.inf if high is None else high)
    return inside.fill_null(True)


def is_low_cardinality(series: pl.Series) -> bool:
    """Returns whether this is a text column with few distinct cells, which are looked up faster than parsed."""
    if isinstance(series.dtype, pl.Categorical):
        return True
    if series.dtype != pl.String or len(series) < MANY or series.head(MANY).n_unique() > MANY // 4:
        return False
    return series.n_unique() < MANY


def _finite(values: pl.Series) -> pl.Series:
    return values.set(~values.is_finite().fill_null(True), None)
