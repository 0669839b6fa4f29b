"""Transformer on the columns of a table: each column of a row is a token."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.schema import InputSpec, TextSpec
from models.layers.column_support import refuse_columns
from models.layers.common import Dropout
from models.layers.tabular_embedding import BAG, mask
from models.layers.text_bag import TextBag

PART = 512
"""Rows that are read at a time, so that a large batch without gradients needs little memory."""


class TextToken(nn.Module):
    """A text as `bag` has it, through a linear layer: (rows, `size`)."""

    def __init__(self, bag: TextBag, size: int) -> None:
        super().__init__()
        self.bag = bag
        self.linear = nn.Linear(bag.width, size)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        token: Tensor = self.linear(self.bag(batch))
        return token


class Tokens(nn.Module):
    """A row as one vector of `size` values a column: numbers and indicators, then categories, then texts.

    A number x is `x * scale + shift`, a level is a learned vector plus its column's shift, a text is what `text` makes
    of it through a linear layer. In training each code becomes 0 (unknown) with probability `unknown_rate`, so that an
    unseen level has a trained meaning. Takes a batch of `spec`, gives float (rows, columns, `size`).
    """

    no_weight_decay = True
    offset: Tensor

    def __init__(
        self,
        spec: InputSpec,
        *,
        size: int = 192,
        unknown_rate: float = 0.01,
        text: Callable[[TextSpec], TextBag] = BAG,
    ) -> None:
        super().__init__()
        self.size = size
        self.unknown_rate = float(unknown_rate)
        self.numbers = len(spec.numbers) + len(spec.indicators)
        levels = torch.tensor([0, *(levels for _, levels in spec.categories)])
        bound = size**-0.5

        def draw(count: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(count, size).uniform_(-bound, bound))

        self.scale: nn.Parameter | None = draw(self.numbers) if self.numbers else None
        # One table for all categories: one kernel, however many they are.
        self.levels: nn.Parameter | None = draw(int(levels.sum())) if spec.categories else None
        self.register_buffer("offset", levels.cumsum(0)[:-1], persistent=False)
        self.shift = draw(self.numbers + len(spec.categories))
        self.texts = nn.ModuleList(TextToken(text(each), size) for each in spec.texts)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        tokens: list[Tensor] = []
        if self.scale is not None:
            tokens.append(torch.addcmul(self.shift[: self.numbers], batch["numbers"].unsqueeze(2), self.scale))
        if self.levels is not None:
            codes = batch["codes"]
            if self.training and self.unknown_rate > 0:
                codes = mask(codes, self.unknown_rate)
            tokens.append(F.embedding(codes + self.offset, self.levels) + self.shift[self.numbers :])
        for text in self.texts:
            tokens += [text(batch).unsqueeze(1)]
        return torch.cat(tokens, 1)


class Block(nn.Module):
    """Attention among the tokens of a row, then ReGLU on each token, each added to what comes in.

    Takes (rows, tokens, size) and gives the same; the `last` block gives the first token alone, (rows, 1, size),
    because no other is read. The `first` one does not normalise what its attention reads.
    """

    def __init__(
        self,
        size: int,
        heads: int,
        hidden: int,
        attention_dropout: float,
        dropout: float,
        *,
        first: bool,
        last: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.last = last
        self.attention_dropout = attention_dropout
        self.attention_norm = nn.Identity() if first else nn.LayerNorm(size)
        self.query = nn.Linear(size, size)
        self.key_value = nn.Linear(size, 2 * size)
        self.attention_out = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size)
        self.value_gate = nn.Linear(size, 2 * hidden)
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        if self.last:
            x = x[:, :1]
        key, value = self.key_value(normed).chunk(2, 2)
        query = self.query(normed[:, : x.shape[1]])
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(
            self.split(query), self.split(key), self.split(value), dropout_p=dropout
        )
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))
        value, gate = self.value_gate(self.norm(x)).chunk(2, 2)
        added: Tensor = self.out(self.dropout(value * F.relu(gate)))
        return x + added

    def split(self, x: Tensor) -> Tensor:
        """(rows, tokens, size) -> (rows, heads, tokens, size of a head)."""
        rows, tokens, size = x.shape
        return x.reshape(rows, tokens, self.heads, size // self.heads).transpose(1, 2)


class FTTransformer(nn.Module):
    """A token for each column, and one that reads them all, through pre-norm blocks of attention.

    FT-Transformer of arXiv 2106.11959. `inputs` makes the tokens; `hidden` are the values of a token inside a block's
    feed-forward part. LayerNorm, ReLU and a linear head make the answer of the token that reads.
    Gives (rows, outputs) logits or standardised values. ValueError where a column holds images, and where there is
    none.
    """

    def __init__(
        self,
        spec: InputSpec,
        outputs: int,
        *,
        blocks: int = 3,
        heads: int = 8,
        hidden: int = 256,
        attention_dropout: float = 0.2,
        dropout: float = 0.1,
        inputs: Callable[[InputSpec], Tokens] = Tokens,
    ) -> None:
        super().__init__()
        refuse_columns(spec, "ft_transformer", ("number", "category", "text"))
        self.inputs = inputs(spec)
        size = self.inputs.size
        if size % heads:
            raise ValueError(f"inputs.size={size}: must be a multiple of heads={heads}.")
        self.part: int = PART
        # Of one dimension, as biases are: it is spared from decay.
        self.reader = nn.Parameter(torch.empty(size).uniform_(-1, 1) / size**0.5)
        self.blocks = nn.Sequential(
            *(
                Block(
                    size,
                    heads,
                    hidden,
                    attention_dropout,
                    dropout,
                    first=index == 0,
                    last=index == blocks - 1,
                )
                for index in range(blocks)
            )
        )
        self.head = nn.Sequential(nn.LayerNorm(size), nn.ReLU(), nn.Linear(size, outputs))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        parts = torch.split(self.inputs(batch), self.part)
        output: Tensor = self.head(torch.cat([self.read(part) for part in parts]))
        return output

    def read(self, tokens: Tensor) -> Tensor:
        """Tokens (rows, columns, size) -> what the reading token became, (rows, size)."""
        reader = self.reader.expand(len(tokens), 1, -1)
        read: Tensor = self.blocks(torch.cat([reader, tokens], 1))[:, 0]
        return read
