"""Features: one module per kind of column, fitted on training rows, the same in training and in the artifact."""

from collections.abc import Mapping

import polars as pl
import torch
from torch import Tensor, nn

from datamodules.features.categories import Categories
from datamodules.features.dates import Dates
from datamodules.features.images import Images
from datamodules.features.numbers import Numbers
from datamodules.features.texts import Texts
from datamodules.features.wordpiece import WordPiece

__all__ = ["Categories", "Dates", "Features", "Images", "Numbers", "Texts", "WordPiece", "as_tensor"]


class Features(nn.Module):
    """Raw columns -> the tensors of a batch (`datamodules.schema.InputSpec`); part of the artifact as TorchScript."""

    def __init__(self, dates: Dates, numbers: Numbers, categories: Categories, texts: Texts, images: Images) -> None:
        super().__init__()
        self.dates = dates
        self.numbers = numbers
        self.categories = categories
        self.texts = texts
        self.images = images

    def forward(
        self, numbers: dict[str, Tensor], strings: dict[str, list[str]], images: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Encodes columns by name; absent columns are missing.

        Args:
            numbers: float64 or int64 (rows,), NaN for missing, dates in seconds since 1970.
            strings: One cell per row, "" for missing.
            images: uint8 (rows, 1 or 3, height, width) of any size.
        """
        rows = 0
        for values in numbers.values():
            rows = values.size(0)
        for cells in strings.values():
            rows = len(cells)
        for pixels in images.values():
            rows = pixels.size(0)
        known = numbers.copy()
        known.update(self.dates(numbers))
        batch: dict[str, Tensor] = {"numbers": self.numbers(known, rows), "codes": self.categories(strings, rows)}
        batch.update(self.texts(strings, rows))
        batch.update(self.images(images, rows))
        return batch

    def encode(self, frame: pl.DataFrame, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The output of `forward` for a cleaned frame, faster, since whole columns are encoded at once."""
        numbers = {name: as_tensor(frame[name]) for name in (*self.numbers.names, *self.dates.names) if name in frame}
        batch: dict[str, Tensor] = {
            "numbers": self.numbers(numbers | self.dates(numbers), len(frame)),
            "codes": torch.stack([self.categories.encode(name, frame[name]) for name in self.categories.names], 1)
            if self.categories.names
            else torch.zeros((len(frame), 0), dtype=torch.int32),
        }
        for name in self.texts.names:
            batch[f"tokens.{name}"], batch[f"offsets.{name}"] = self.texts.encode(name, frame[name])
        batch.update(self.images(dict(images), len(frame)))
        return batch


def as_tensor(cells: pl.Series) -> Tensor:
    """Float64 cells as input of the features, with NaN for missing."""
    return torch.from_numpy(cells.fill_null(float("nan")).to_numpy(writable=True))
