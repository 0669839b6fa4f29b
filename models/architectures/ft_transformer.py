"""FT-Transformer: a Transformer with one token per column of a table (arXiv 2106.11959)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.schema import InputSpec, TextSpec
from models.layers.column_support import refuse_columns
from models.layers.common import Dropout
from models.layers.tabular_embedding import BAG, mask_codes
from models.layers.text_bag import TextBag

CHUNK_SIZE = 512
"""Number of rows encoded at a time, so that a large batch without gradients needs little memory."""


class TextToken(nn.Module):
    """Linear layer on the output of `bag`: (rows, `size`)."""

    def __init__(self, bag: TextBag, size: int) -> None:
        super().__init__()
        self.bag = bag
        self.linear = nn.Linear(bag.width, size)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        token: Tensor = self.linear(self.bag(batch))
        return token


class Tokens(nn.Module):
    """Feature tokenizer: one token of `size` values per column, in the order numbers, indicators, categories, texts.

    A number x gives `x * scale + shift`, a level its embedding plus the shift of its column, a text the output of
    `text` through a linear layer. In training, each code becomes 0 (unknown) with probability `unknown_rate`, so that
    unseen levels have a trained embedding. Batch of `spec` -> float (rows, columns, `size`).
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
        # One table for all categories needs only one kernel.
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
                codes = mask_codes(codes, self.unknown_rate)
            tokens.append(F.embedding(codes + self.offset, self.levels) + self.shift[self.numbers :])
        for text in self.texts:
            tokens += [text(batch).unsqueeze(1)]
        return torch.cat(tokens, 1)


class Block(nn.Module):
    """Pre-norm Transformer block: self-attention and a ReGLU feed-forward network, each with a residual connection.

    (rows, tokens, size) -> (rows, tokens, size). The `last` block returns only the first token, (rows, 1, size), which
    the head uses. The `first` block has no norm before its attention.
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
        """(rows, tokens, size) -> (rows, heads, tokens, size / heads)."""
        rows, tokens, size = x.shape
        return x.reshape(rows, tokens, self.heads, size // self.heads).transpose(1, 2)


class FTTransformer(nn.Module):
    """Pre-norm Transformer on one token per column and a [CLS] token; LayerNorm, ReLU and a linear head on the latter.

    `inputs` builds the tokens; `hidden` is the size of the feed-forward network. Returns (rows, outputs) logits or
    standardized values. Raises ValueError for image columns, and if there are no columns.
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
        self.chunk_size: int = CHUNK_SIZE
        # The [CLS] token; one-dimensional, so that it has no weight decay.
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
        chunks = torch.split(self.inputs(batch), self.chunk_size)
        output: Tensor = self.head(torch.cat([self.encode(chunk) for chunk in chunks]))
        return output

    def encode(self, tokens: Tensor) -> Tensor:
        """Tokens (rows, columns, size) -> output of the [CLS] token (rows, size)."""
        reader = self.reader.expand(len(tokens), 1, -1)
        encoded: Tensor = self.blocks(torch.cat([reader, tokens], 1))[:, 0]
        return encoded
