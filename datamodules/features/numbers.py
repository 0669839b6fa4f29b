"""Encodes numbers: replaces values, fills missing ones, and scales by statistics of the training rows."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from common.torchscript import is_scripting

Scaling = Literal["standard", "robust", "quantile"]


class Numbers(nn.Module):
    """Encodes number columns; those with missing values in training get a 0/1 indicator column at the end.

    - `standard`: (x - mean) / standard deviation.
    - `robust`: (x - median) / (q75 - q25), then x / sqrt(1 + (x/3)^2), which bounds outliers (arXiv 2407.04491).
    - `quantile`: the normal quantile of the rank among the training values (arXiv 2203.05556).

    Missing values and infinities are replaced by the training median.
    """

    # TorchScript cannot infer the type of an empty list.
    names: list[str]
    replaced: list[int]

    def __init__(
        self,
        names: Sequence[str],
        values: Tensor,
        scaling: Scaling = "quantile",
        replace: Mapping[str, Mapping[float, float | None]] | None = None,
        indicated: Collection[str] = (),
    ) -> None:
        """Fits the scaling.

        Args:
            names: Names of the columns.
            values: Training rows or a sample of them, float64 (rows, columns), NaN for missing, before `replace`.
            scaling: See above.
            replace: Replaced values of each column; None means missing.
            indicated: The columns that get an indicator.
        """
        super().__init__()
        self.names = list(names)
        self.scaling: str = scaling
        pairs = [
            (self.names.index(name), float(old), float("nan") if new is None else float(new))
            for name, rules in (replace or {}).items()
            if name in self.names
            for old, new in rules.items()
        ]
        self.replaced = [column for column, _, _ in pairs]
        self.register_buffer("old", torch.tensor([old for _, old, _ in pairs], dtype=torch.float64))
        self.register_buffer("new", torch.tensor([new for _, _, new in pairs], dtype=torch.float64))

        values = self.clean(values)
        missing = values.isnan()
        median = values.nanmedian(0).values.nan_to_num(0.0) if len(self.names) else values.new_zeros(0)
        filled = torch.where(missing, median, values)
        center, scale, knots = _fit(filled, median, scaling)
        knots, ranks, slopes = _rank(knots)
        self.register_buffer("fill", median)
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)
        self.register_buffer("knots", knots)
        self.register_buffer("ranks", ranks)
        self.register_buffer("slopes", slopes)
        positions = [index for index, name in enumerate(self.names) if name in indicated]
        self.register_buffer("indicated", torch.tensor(positions, dtype=torch.int64))

    old: Tensor
    new: Tensor
    fill: Tensor
    center: Tensor
    scale: Tensor
    knots: Tensor
    ranks: Tensor
    slopes: Tensor
    indicated: Tensor

    def clean(self, values: Tensor) -> Tensor:
        """Replaces values and sets infinities to missing; float64 (rows, columns) -> same shape."""
        values = torch.where(values.isinf(), float("nan"), values)
        given = values.clone()
        for i, column in enumerate(self.replaced):
            values[:, column] = torch.where(given[:, column] == self.old[i], self.new[i], values[:, column])
        return values

    def forward(self, numbers: dict[str, Tensor], rows: int) -> Tensor:
        """float32 (rows, columns + indicators); an absent column is missing in every row."""
        columns: list[Tensor] = []
        for name in self.names:
            if name in numbers:
                columns.append(numbers[name].to(torch.float64))
            else:
                columns.append(torch.full((rows,), float("nan"), dtype=torch.float64))
        if len(columns) == 0:
            return torch.zeros((rows, 0), dtype=torch.float32)
        values = self.clean(torch.stack(columns, 1))
        missing = values.isnan()
        values = torch.where(missing, self.fill, values)
        if self.scaling == "quantile":
            encoded = self.to_normal(values)
        else:
            encoded = (values - self.center) * self.scale
            if self.scaling == "robust":
                encoded = encoded / torch.sqrt(1 + (encoded / 3) ** 2)
        indicators = missing[:, self.indicated]
        return torch.cat([encoded.to(torch.float32), indicators.to(torch.float32)], 1)

    def to_normal(self, values: Tensor) -> Tensor:
        """Normal quantiles, within +-5.2, of the ranks among the knots; ranks are linear between knots."""
        cells = values.t().contiguous()
        if is_scripting():
            knot = torch.searchsorted(self.knots, cells, right=True)
        else:
            knot = torch.stack([_search(column, each) for column, each in zip(self.knots, cells, strict=True)])
        knot = (knot - 1).clamp_min(0)
        rank = self.ranks.gather(1, knot) + (cells - self.knots.gather(1, knot)) * self.slopes.gather(1, knot)
        rank = torch.clamp(rank, self.ranks[:, :1], self.ranks[:, -1:]).clamp(1e-7, 1 - 1e-7)
        normal: Tensor = torch.special.ndtri(rank)
        return normal.t()


def _fit(filled: Tensor, median: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor, Tensor]:
    """Center and scale of each column, and the knots of the ranks: (columns,), (columns,), (columns, knots)."""
    rows, columns = filled.shape
    if columns == 0:
        return median, median, filled.new_zeros(0, 2)
    count = min(max(rows // 30, 10), 1000)
    probabilities = torch.linspace(0, 1, count, dtype=torch.float64)
    knots = quantiles(filled, probabilities)
    if scaling == "standard":
        scale = filled.std(0, correction=0)
        return filled.mean(0), torch.where(scale > 0, 1 / scale, 0.0), knots[:, :2].clone()
    if scaling == "robust":
        q25, q75 = quantiles(filled, torch.tensor([0.25, 0.75], dtype=torch.float64)).unbind(1)
        low, high = filled.min(0).values, filled.max(0).values
        spread = torch.where(q75 > q25, q75 - q25, (high - low) / 2)
        return median, torch.where(spread > 0, 1 / spread, 0.0), knots[:, :2].clone()
    return torch.zeros_like(median), torch.ones_like(median), knots


def _rank(quantiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Knots, ranks and slopes of ascending quantiles (columns, n): three tensors (columns, n).

    Knots are the distinct quantiles, padded with infinity. Ranks are in 0..1, the middle one for equal quantiles,
    padded with the last rank. Slopes are those of the rank after each knot, padded with 0.
    """
    columns, count = quantiles.shape
    knots = torch.full_like(quantiles, torch.inf)
    ranks, slopes = torch.zeros_like(quantiles), torch.zeros_like(quantiles)
    for column in range(columns):
        distinct, first, times = np.unique(quantiles[column].numpy(), return_index=True, return_counts=True)
        middle = (first + (times - 1) / 2) / (count - 1)
        knots[column, : len(distinct)] = torch.from_numpy(distinct)
        ranks[column, : len(distinct)] = torch.from_numpy(middle)
        ranks[column, len(distinct) :] = middle[-1]
        slopes[column, : len(distinct) - 1] = torch.from_numpy(np.diff(middle) / np.diff(distinct))
    return knots, ranks, slopes


def _search(knots: Tensor, cells: Tensor) -> Tensor:
    """`torch.searchsorted(knots, cells, right=True)` without branches, which is three times as fast."""
    steps = len(knots).bit_length()
    padded = np.full(1 << steps, np.inf)
    padded[: len(knots)] = knots
    values = cells.numpy()
    found = np.zeros(len(values), np.int64)
    for step in reversed(range(steps)):
        found += (padded[found + ((1 << step) - 1)] <= values).astype(np.int64) << step
    return torch.from_numpy(found)


def quantiles(values: Tensor, probabilities: Tensor) -> Tensor:
    """Quantiles (columns, probabilities) of float64 (rows, columns), linear between order statistics."""
    ordered = torch.from_numpy(np.sort(values.numpy(), axis=0))  # torch.sort also computes indices
    position = probabilities * (len(values) - 1)
    low = position.floor().long()
    high = position.ceil().long()
    part = (position - low).unsqueeze(1)
    return (ordered[low] + (ordered[high] - ordered[low]) * part).t().contiguous()


def bin_edges(values: Tensor, bins: int) -> tuple[float, ...]:
    """At most `bins` + 1 ascending bin edges of float64 (rows,): the distinct quantiles.

    If quantiles coincide, quantiles of the distinct values are added, so that a mostly zero column still has several
    bins for its other values.
    """
    distinct = _distinct(values)
    if len(distinct) <= bins + 1:
        return tuple(distinct.tolist())
    edges = _distinct(_evenly(values, bins + 1))
    spare = bins + 1 - len(edges)
    return tuple(_distinct(torch.cat([edges, _evenly(distinct, spare + 2)[1:-1]])).tolist())


def _distinct(values: Tensor) -> Tensor:
    return torch.from_numpy(np.unique(values.numpy()))


def _evenly(values: Tensor, count: int) -> Tensor:
    return quantiles(values.unsqueeze(1), torch.linspace(0, 1, count, dtype=torch.float64))[0]
