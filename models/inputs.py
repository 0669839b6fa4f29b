"""Encoded columns -> one float vector a row: the first layer of every network for tables."""

import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec


class Inputs(nn.Module):
    """Numbers and indicators as they are, then narrow categories as 0/1 columns, then wide ones as learned vectors.

    A category of two known levels (three, unknown counted) is one column: -1, +1, and 0 for unknown. One of up to
    `one_hot_max` levels is one-hot; a wider one is a learned embedding of `embedding_size` values. In training each
    code becomes 0 (unknown) with probability `unknown_rate`, so that an unseen level has a trained meaning.

    Takes `numbers` float (rows, numbers + indicators) and `codes` int (rows, categories); gives float (rows, `width`).
    """

    column: Tensor
    plus: Tensor
    minus: Tensor
    wide: Tensor
    offset: Tensor

    def __init__(
        self, spec: InputSpec, *, one_hot_max: int = 9, embedding_size: int = 8, unknown_rate: float = 0.01
    ) -> None:
        super().__init__()
        self.unknown_rate = unknown_rate
        # Output j of the narrow block is (code[column] == plus) - (code[column] == minus): one-hot has no minus (-1
        # matches no code), a binary column has level 2 as plus and level 1 as minus.
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
            "column": [column for column, _, _ in narrow],
            "plus": [level for _, level, _ in narrow],
            "minus": [level for _, _, level in narrow],
            "wide": wide,
            "offset": offset,
        }.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.int32))
        # One table for all wide columns: one kernel, however many they are.
        self.embedding = nn.Embedding(rows, embedding_size) if wide else None
        self.numbers = len(spec.numbers) + len(spec.indicators)
        self.narrow = len(narrow)
        self.width = self.numbers + self.narrow + len(wide) * embedding_size

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        blocks: list[Tensor] = []
        if self.numbers > 0:
            blocks.append(batch["numbers"])
        if self.narrow > 0 or self.embedding is not None:
            codes = batch["codes"]
            if self.training and self.unknown_rate > 0:
                unknown = torch.rand_like(codes, dtype=torch.float32) < self.unknown_rate
                codes = codes.masked_fill(unknown, 0)
            if self.narrow > 0:
                code = codes.index_select(1, self.column)
                blocks.append((code == self.plus).float() - (code == self.minus).float())
            if self.embedding is not None:
                blocks.append(self.embedding(codes.index_select(1, self.wide) + self.offset).flatten(1))
        return torch.cat(blocks, dim=1)
