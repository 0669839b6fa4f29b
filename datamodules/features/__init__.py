"""The features: one module a kind of column, fitted on training rows, the same in training and in the artefact."""

from torch import Tensor, nn

from datamodules.features.categories import Categories
from datamodules.features.numbers import Numbers

__all__ = ["Categories", "Features", "Numbers"]


class Features(nn.Module):
    """Raw columns -> the tensors of a batch. Scripted into the artefact; run as it is to encode the training data."""

    def __init__(self, numbers: Numbers, categories: Categories) -> None:
        super().__init__()
        self.numbers = numbers
        self.categories = categories

    def forward(self, numbers: dict[str, Tensor], strings: dict[str, list[str]]) -> dict[str, Tensor]:
        """`numbers`: float64 or int64 (rows,), NaN for missing; `strings`: a cell a row, "" for missing.

        Returns `numbers`, float32 (rows, columns + indicators), and `codes`, int32 (rows, columns).
        """
        rows = 0
        for values in numbers.values():
            rows = values.size(0)
        for cells in strings.values():
            rows = len(cells)
        return {"numbers": self.numbers(numbers, rows), "codes": self.categories(strings, rows)}
