"""What is held of every row while the data are prepared: its target, its hash, and what splits it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from datamodules.readers.read import concat


@dataclass(frozen=True)
class Keys:
    """What the split needs of the rows that are kept: of a chunk, or of all, in their order."""

    numbers: list[int]
    """The chunks."""
    lengths: list[int]
    """Rows of each that are kept."""
    target: pl.Series
    copy: pl.Series
    column: pl.Series | None
    file: np.ndarray
    """int8: 0 for rows of data.path, 1 of data.val_path, 2 of data.test_path."""

    def pieces(self, values: np.ndarray) -> dict[int, np.ndarray]:
        """Values of all rows -> those of each chunk."""
        return dict(zip(self.numbers, np.split(values, np.cumsum(self.lengths)[:-1]), strict=True))

    @classmethod
    def join(cls, keys: Sequence["Keys"]) -> "Keys":
        """Those of several chunks, one after the other."""
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
    """For each row the position of the first row with the same number, int64 (rows,); None where all are different.

    Lean: of tens of millions of rows only those that have a copy are looked at by one.
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
