"""The small tables that come inside scikit-learn, through the same way as any other table."""

from typing import Any, Literal

import polars as pl

from datamodules.read import FILE, LINE
from datamodules.table import TableDataModule


class BuiltinDataModule(TableDataModule):
    """A table of scikit-learn; nothing is read from disk or fetched. Other settings are those of TableDataModule."""

    def __init__(self, dataset: Literal["breast_cancer", "wine", "iris", "diabetes"], **settings: Any) -> None:
        super().__init__(path=f"scikit-learn:{dataset}", target="target", **settings)
        self.dataset = dataset

    def read(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{self.dataset}")()
        frame = pl.DataFrame(bunch.data, schema=list(bunch.feature_names))
        if "target_names" in bunch:
            target = pl.Series("target", [str(bunch.target_names[code]) for code in bunch.target])
        else:
            target = pl.Series("target", bunch.target)
        lines = pl.Series(LINE, range(1, len(frame) + 1), dtype=pl.Int64)
        frame = frame.with_columns(target, pl.lit(f"scikit-learn:{self.dataset}").alias(FILE), lines)
        return frame, pl.DataFrame()
