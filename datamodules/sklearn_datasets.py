"""The small data sets of scikit-learn, prepared like any other table."""

from collections.abc import Iterator, Sequence

import polars as pl
import torch

from datamodules.readers.read import BAD, FILE, LINE, Raw
from datamodules.schema import DataError
from datamodules.tabular import TableDataModule

NAMES = ("breast_cancer", "diabetes", "digits", "iris", "wine")
SHADES = 16
"""Maximum pixel value of the images of digits."""


class BuiltinDataModule(TableDataModule):
    """A data set of scikit-learn: `path` is its name, and the target is the column "target". Nothing is downloaded."""

    def files(self) -> list[str]:
        return []

    def read(self, path: str | Sequence[str], rank: int, world: int) -> Iterator[tuple[int, Raw]]:
        if path not in NAMES:
            raise DataError(f"data.path={path}: the available data sets of scikit-learn are {', '.join(NAMES)}")
        from sklearn import datasets  # here, because it is slow to import

        bunch = getattr(datasets, f"load_{path}")()
        rows = len(bunch.target)
        named = "target_names" in bunch and path != "digits"
        images = {}
        if path == "digits":
            shades = torch.from_numpy(bunch.images).unsqueeze(1) * 255 / SHADES
            images["image"] = shades.round().to(torch.uint8)
            frame = pl.DataFrame({"image": [f"digit {row}" for row in range(rows)]})
        else:
            frame = pl.DataFrame(bunch.data, schema=list(bunch.feature_names))
        frame = frame.with_columns(
            pl.Series("target", bunch.target_names[bunch.target].astype(str) if named else bunch.target),
            pl.lit(f"scikit-learn:{path}").alias(FILE),
            pl.Series(LINE, range(1, rows + 1), dtype=pl.Int64),
        )
        if rank == 0:
            yield 0, Raw(frame, pl.DataFrame(schema=BAD), images)
