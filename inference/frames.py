"""Conversion between pandas and Polars, without a dependency on pandas or PyArrow."""

import sys
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from common.errors import InputError

SCALARS = (bool, int, float, str, Decimal, date, datetime, time, timedelta)
"""Types of cells that Polars can store as they are; others are converted to text."""


def is_pandas(frame: object) -> bool:
    """Returns whether `frame` is a pandas DataFrame. Does not import pandas: a caller with such a frame has done so."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(frame, pandas.DataFrame)


def from_pandas(frame: Any, columns: Sequence[str]) -> pl.DataFrame:
    """Converts those of `columns` that a pandas DataFrame has. Raises InputError if one of them occurs twice."""
    names = [str(name) for name in frame.columns]
    series = []
    for name in columns:
        if names.count(name) > 1:
            raise InputError(f"frame: has {names.count(name)} columns named '{name}'. Rename or drop all but one.")
        if name in names:
            series.append(_series(name, frame.iloc[:, names.index(name)]))
    return pl.DataFrame(series)


def to_pandas(frame: pl.DataFrame) -> Any:
    """Converts numbers and text, with the default index."""
    return sys.modules["pandas"].DataFrame({column.name: column.to_numpy() for column in frame})


def _series(name: str, column: Any) -> pl.Series:
    """Converts a pandas Series: missing cells become null, times with a time zone become UTC."""
    if getattr(column.dtype, "tz", None) is not None:
        column = column.dt.tz_convert(None)
    if column.dtype.kind in "mM" and isinstance(column.dtype, np.dtype):
        return pl.Series(name, column.to_numpy().astype(f"{column.dtype.kind}8[us]"))
    if column.dtype.kind in "biuf" and isinstance(column.dtype, np.dtype):
        return pl.Series(name, column.to_numpy(), nan_to_null=True)
    cells = [cell.item() if isinstance(cell, np.generic) else cell for cell in column.tolist()]
    cells = [None if missing else cell for cell, missing in zip(cells, column.isna(), strict=True)]
    kinds = {type(cell) for cell in cells if cell is not None}
    if kinds == {int, float}:
        return pl.Series(name, cells, pl.Float64)
    if len(kinds) > 1 or not all(issubclass(kind, SCALARS) for kind in kinds):
        cells = [None if cell is None else str(cell) for cell in cells]
    return pl.Series(name, cells, pl.String if not kinds else None)
