"""What is kept in memory for every row during preparation: its target, its hash, and its cell of the split column."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from datamodules.readers.read import concat


@dataclass(frozen=True)
class Keys:
    """What the split needs to know of the rows of one chunk, or of several chunks in order."""

    numbers: list[int]
    """Numbers of the chunks."""
    lengths: list[int]
    """Number of cleaned rows in each chunk."""
    target: pl.Series
    copy: pl.Series
    column: pl.Series | None
    file: np.ndarray
    """int8 (rows,): 0 for rows of data.path, 1 of data.val_path, 2 of data.test_path."""

    def by_chunk(self, values: np.ndarray) -> dict[int, np.ndarray]:
        """Splits values of all rows into the values of each chunk, by chunk number."""
        return dict(zip(self.numbers, np.split(values, np.cumsum(self.lengths)[:-1]), strict=True))

    @classmethod
    def join(cls, keys: Sequence["Keys"]) -> "Keys":
        """Concatenates the keys of several chunks."""
        columns = [key.column for key in keys if key.column is not None]
        return cls(
            [number for key in keys for number in key.numbers],
            [length for key in keys for length in key.lengths],
            pl.concat([key.target for key in keys]),
            pl.concat([key.copy for key in keys]),
            concat([column.to_frame() for column in columns]).to_series() if columns else None,
            np.concatenate([key.file for key in keys]),
        )


def first_copies(copy: np.ndarray) -> np.ndarray | None:
    """The position of the first row with the same hash, for each row, int64 (rows,); None if all hashes differ.

    Only rows that have a copy are grouped, which saves memory for tens of millions of rows.
    """
    ordered = np.sort(copy)
    if not (ordered[1:] == ordered[:-1]).any():
        return None
    copies = pl.Series("copy", copy)
    rows = copies.is_duplicated().arg_true()
    found = pl.DataFrame([copies.gather(rows), rows.alias("row")]).select(pl.first("row").over("copy"))
    firsts = np.arange(len(copy))
    firsts[rows.to_numpy()] = found.to_series().to_numpy()
    return firsts
