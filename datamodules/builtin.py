"""The small tables that come inside scikit-learn, through the same way as any other table."""

import polars as pl

from datamodules.read import BAD, FILE, LINE, Raw
from datamodules.schema import DataError
from datamodules.table import TableDataModule

NAMES = ("breast_cancer", "diabetes", "iris", "wine")


class BuiltinDataModule(TableDataModule):
    """A table of scikit-learn: `path` is its name, the target is the column "target"; nothing is fetched."""

    def read(self) -> Raw:
        if self.path not in NAMES:
            raise DataError(f"data.path={self.path}: scikit-learn's tables here are {', '.join(NAMES)}")
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{self.path}")()
        frame = pl.DataFrame(bunch.data, schema=list(bunch.feature_names))
        target = bunch.target_names[bunch.target].astype(str) if "target_names" in bunch else bunch.target
        return Raw(
            frame.with_columns(
                pl.Series("target", target),
                pl.lit(f"scikit-learn:{self.path}").alias(FILE),
                pl.Series(LINE, range(1, len(frame) + 1), dtype=pl.Int64),
            ),
            pl.DataFrame(schema=BAD),
        )
