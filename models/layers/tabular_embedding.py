"""Encoded columns -> one float vector per row: the first layer of networks for tables."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from datamodules.schema import ImageSpec, InputSpec, TextSpec
from models.layers.text_bag import TextBag

BAG = functools.partial(TextBag, size=64)
"""Default module of a text column."""


def mask_codes(codes: Tensor, rate: float) -> Tensor:
    """Sets each code to 0 (unknown) with probability `rate`. Scriptable."""
    return codes.masked_fill(torch.rand(codes.shape, device=codes.device) < rate, 0)


class PiecewiseLinear(nn.Module):
    """Piecewise linear embedding of numbers: `linear * x + shift + bend @ PLE(x)` (arXiv 2203.05556).

    Component t of PLE(x) is 0 below bin t, 1 above it and linear inside; the first and last bin extend to infinity.
    `bend` starts at 0, so that embeddings start linear (variant B of arXiv 2410.24210). `edges`: ascending bin edges of
    each column. (rows, columns) -> (rows, columns, `size`).
    """

    no_weight_decay = True
    slope: Tensor
    start: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, edges: Sequence[Sequence[float]], size: int) -> None:
        super().__init__()
        columns, bins = len(edges), max(len(column) for column in edges) - 1
        # Missing bins of a column stay 0.
        slope, start, low, high = torch.zeros(4, columns, bins)
        for index, column in enumerate(edges):
            ends: Tensor = torch.unique(torch.tensor(column))  # edges may coincide in float32
            left, right = ends[:-1], ends[1:]
            last = len(left) - 1
            slope[index, : last + 1] = 1 / (right - left)
            start[index, : last + 1] = -left / (right - left)
            high[index, : last + 1] = 1.0
            low[index, 0], high[index, last] = -torch.inf, torch.inf
        for name, values in {"slope": slope, "start": start, "low": low, "high": high}.items():
            self.register_buffer(name, values, persistent=False)
        self.linear = nn.Parameter(torch.empty(columns, size).uniform_(-1, 1) / size**0.5)
        self.shift = nn.Parameter(torch.empty(columns, size).uniform_(-1, 1) / size**0.5)
        self.bend = nn.Parameter(torch.zeros(columns, bins, size))

    def forward(self, numbers: Tensor) -> Tensor:
        x = numbers.unsqueeze(2)
        encoded = torch.clamp(x * self.slope + self.start, self.low, self.high)
        return x * self.linear + self.shift + torch.einsum("rcb,cbs->rcs", encoded, self.bend)


class Periodic(nn.Module):
    """Periodic embedding of numbers: `[x, mix @ cos(2 pi frequency x + phase) + shift]` (PBLD, arXiv 2407.04491).

    (rows, columns) -> (rows, columns, `size`).
    """

    def __init__(self, columns: int, size: int, frequencies: int = 16) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.randn(columns, frequencies) * 0.1)
        self.phase = nn.Parameter(torch.empty(columns, frequencies).uniform_(-math.pi, math.pi))
        self.mix = nn.Parameter(torch.empty(columns, frequencies, size - 1).uniform_(-1, 1) / frequencies**0.5)
        self.shift = nn.Parameter(torch.empty(columns, size - 1).uniform_(-1, 1) / frequencies**0.5)

    def forward(self, numbers: Tensor) -> Tensor:
        x = numbers.unsqueeze(2)
        waves = torch.cos(2 * math.pi * x * self.frequency + self.phase)
        return torch.cat([x, torch.einsum("rcf,cfs->rcs", waves, self.mix) + self.shift], 2)


class Pixels(nn.Module):
    """Standardizes a uint8 image column of a batch with the mean and standard deviation of each channel.

    Returns float (rows, C, H, W).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        self.name = f"images.{spec.name}"
        for name, values in {"mean": spec.mean, "deviation": spec.deviation}.items():
            # Not persistent: it depends on the data, not on training.
            self.register_buffer(name, 255 * torch.tensor(values).reshape(-1, 1, 1), persistent=False)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return (batch[self.name].float() - self.mean) / self.deviation


class TabularEmbedding(nn.Module):
    """Concatenates embedded numbers, plain numbers and indicators, categories, texts and pixels of a batch.

    A number with three or more values gets an embedding of `number_size` values by `number_embedding` (`ple`:
    PiecewiseLinear, `pbld`: Periodic); with `number_size=0` it is used as is. A category with two known levels (three
    with unknown) is one value: -1, +1, or 0 for unknown. Categories with up to `one_hot_max` levels are one-hot, others
    have a learned embedding of `embedding_size` values. In training, each code becomes 0 (unknown) with probability
    `unknown_rate`, so that unseen levels have a trained embedding, and Gaussian noise with standard deviation `noise`
    is added to encoded numbers (not to indicators). `text` builds the module of a text column, which has a `width`.

    Batch of `spec` -> float (rows, `width`). Raises ValueError if there are no columns or `noise` is negative.
    """

    numbers_bent: Tensor
    numbers_plain: Tensor
    column: Tensor
    plus: Tensor
    minus: Tensor
    wide: Tensor
    offset: Tensor

    def __init__(
        self,
        spec: InputSpec,
        *,
        number_size: int = 16,
        number_embedding: Literal["ple", "pbld"] = "ple",
        one_hot_max: int = 9,
        embedding_size: int = 8,
        unknown_rate: float = 0.01,
        noise: float = 0.0,
        text: Callable[[TextSpec], TextBag] = BAG,
    ) -> None:
        super().__init__()
        if noise < 0:
            raise ValueError(f"noise={noise}: must not be negative.")
        bent = [index for index, edges in enumerate(spec.edges) if number_size > 0 and len(edges) > 2]
        plain = [index for index in range(len(spec.numbers) + len(spec.indicators)) if index not in bent]
        self.bent: PiecewiseLinear | Periodic | None = None
        if bent and number_embedding == "pbld":
            self.bent = Periodic(len(bent), number_size)
        elif bent:
            self.bent = PiecewiseLinear([spec.edges[index] for index in bent], number_size)
        self.unknown_rate = float(unknown_rate)
        self.noise = noise
        self.noisy = len(spec.numbers)
        # Output j of narrow categories is (code[column] == plus) - (code[column] == minus). One-hot columns have minus
        # -1, which matches no code; binary columns have plus 2 and minus 1.
        narrow: list[tuple[int, int, int]] = []
        wide: list[int] = []
        offset: list[int] = []
        rows = 0
        for index, (_, levels) in enumerate(spec.categories):
            if levels == 3:
                narrow.append((index, 2, 1))
            elif levels <= one_hot_max:
                narrow += [(index, level, -1) for level in range(levels)]
            else:
                wide.append(index)
                offset.append(rows)
                rows += levels
        for name, values in {
            "numbers_bent": bent,
            "numbers_plain": plain,
            "column": [column for column, _, _ in narrow],
            "plus": [level for _, level, _ in narrow],
            "minus": [level for _, _, level in narrow],
            "wide": wide,
            "offset": offset,
        }.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.int32))
        # One table for all wide columns needs only one kernel.
        self.embedding = nn.Embedding(rows, embedding_size) if wide else None
        self.plain = len(plain)
        self.narrow = len(narrow)
        self.texts = nn.ModuleList(bags := [text(each) for each in spec.texts])
        self.images = nn.ModuleList(Pixels(each) for each in spec.images)
        self.sizes = [number_size] * len(bent) + [1] * len(plain)
        self.sizes += [1 if levels == 3 else levels for _, levels in spec.categories if levels <= max(3, one_hot_max)]
        self.sizes += [embedding_size] * len(wide) + [bag.width for bag in bags]
        self.sizes += [math.prod(each.shape) for each in spec.images]
        self.width = sum(self.sizes)
        if self.width == 0:
            raise ValueError(
                "there are no input columns: all columns but the target are constant, identifiers or dropped."
                " Set data.columns='{NAME: KIND}'."
            )

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        blocks: list[Tensor] = []
        if self.bent is not None or self.plain > 0:
            numbers = batch["numbers"]
            if self.training and self.noise > 0:
                numbers = numbers.clone()
                numbers[:, : self.noisy] += self.noise * torch.randn_like(numbers[:, : self.noisy])
            if self.bent is not None:
                blocks.append(self.bent(numbers.index_select(1, self.numbers_bent)).flatten(1))
            if self.plain > 0:
                blocks.append(numbers.index_select(1, self.numbers_plain))
        if self.narrow > 0 or self.embedding is not None:
            codes = batch["codes"]
            if self.training and self.unknown_rate > 0:
                codes = mask_codes(codes, self.unknown_rate)
            if self.narrow > 0:
                code = codes.index_select(1, self.column)
                blocks.append((code == self.plus).float() - (code == self.minus).float())
            if self.embedding is not None:
                blocks.append(self.embedding(codes.index_select(1, self.wide) + self.offset).flatten(1))
        for text in self.texts:
            blocks += [text(batch)]
        for image in self.images:
            blocks += [image(batch).flatten(1)]
        return torch.cat(blocks, dim=1)


FLAT = functools.partial(TabularEmbedding, number_size=0, one_hot_max=256)
"""One value per number and per level."""
