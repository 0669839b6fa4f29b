"""Helpers for tests: synthetic tables, read at once, set up as data modules, or refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from datamodules.readers.read import BAD, FILE, LINE, Raw, concat, read_chunks
from datamodules.schema import DataError
from datamodules.tabular import TableDataModule


def read(path: str | Path | Sequence[str], **settings: Any) -> Raw:
    """Reads all chunks and concatenates them."""
    chunks = list(read_chunks(path, **settings))
    frame = concat([chunk.frame for chunk in chunks]).select(pl.exclude(FILE, LINE), FILE, LINE)
    return Raw(frame, pl.concat([pl.DataFrame(schema=BAD), *(chunk.bad for chunk in chunks)]))


def set_up(folder: Path, table: pl.DataFrame | str, **settings: Any) -> TableDataModule:
    path = folder / "rows.csv"
    path.write_text(table if isinstance(table, str) else table.write_csv())
    datamodule = TableDataModule(str(path), "y", **settings)
    datamodule.setup()
    return datamodule


def refused(folder: Path, table: pl.DataFrame | str, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        set_up(folder, table, **settings)
    return str(error.value)


def plain(rows: int = 100, **columns: Any) -> pl.DataFrame:
    table = {"x": [str(index * 7 % 13) for index in range(rows)], "y": ["a", "b"] * (rows // 2)}
    return pl.DataFrame(table | columns)
