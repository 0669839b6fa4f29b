"""A small Transformer encoder over the words of the text columns, in their order."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.schema import InputSpec
from models.layers.column_support import refuse_columns
from models.layers.tabular_embedding import TabularEmbedding, mask
from models.layers.text_bag import shared_words

PART = 256
"""Rows that are read at a time, so that a large batch without gradients needs little memory."""


class Block(nn.Module):
    """Attention, then two layers on each word by itself, each added to what comes in, which is normalised first.

    Takes x (rows, words, size) and `seen`, true where a word may be looked at, (rows, 1, 1, words).
    """

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(size)
        self.query_key_value = nn.Linear(size, 3 * size)
        self.attention_out = nn.Linear(size, size)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, 4 * size), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * size, size)
        )

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        rows, words, size = x.shape
        three = self.query_key_value(self.attention_norm(x)).view(rows, words, 3, self.heads, size // self.heads)
        query, key, value = three.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout)
        x = x + F.dropout(self.attention_out(attended.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return x + F.dropout(self.feed_forward(x), self.dropout, self.training)


class TextTransformer(nn.Module):
    """Words with learned positions through blocks of attention (pre-norm, arXiv 2002.04745), and a linear head on their
    mean.

    Of each text the first `max_length` words are read; several texts stand one behind the other and share their
    words, each with a vector of its column added. In training a word becomes unknown with probability `unknown_rate`,
    so that an unseen one has a trained meaning. Columns of other kinds go to the head by `Inputs`, beside the mean.

    Gives (rows, outputs) logits or standardised values. ValueError where no column is a text.
    """

    ids: Tensor

    def __init__(
        self,
        spec: InputSpec,
        outputs: int,
        *,
        size: int = 128,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        max_length: int = 256,
        unknown_rate: float = 0.02,
    ) -> None:
        super().__init__()
        refuse_columns(spec, "text_transformer", ["number", "category", "text", "image"], needs="text")
        if size % heads:
            raise ValueError(f"size={size}: must be a multiple of heads={heads}.")
        self.names = [text.name for text in spec.texts]
        self.max_length = max_length
        self.part: int = PART
        self.unknown_rate = float(unknown_rate)
        words, ids, self.starts = shared_words(spec.texts)
        self.register_buffer("ids", ids, persistent=False)
        self.words = nn.Embedding(len(words) + 2, size)
        self.positions = nn.Embedding(max_length, size)
        self.columns = nn.Embedding(len(self.names), size)
        for embedding in (self.words, self.positions, self.columns):
            nn.init.normal_(embedding.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(size, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(size)
        others = replace(spec, texts=())
        self.inputs = TabularEmbedding(others) if others != InputSpec() else None
        self.head = nn.Linear(size + (self.inputs.width if self.inputs is not None else 0), outputs)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        rows = len(batch["offsets." + self.names[0]]) - 1
        # A start, there in every row: one without words has it to look at.
        words = [torch.full((rows, 1), self.words.num_embeddings - 1, device=self.ids.device)]
        there = [torch.ones(rows, 1, dtype=torch.bool, device=self.ids.device)]
        places = [torch.zeros(1, self.words.embedding_dim, device=self.ids.device)]
        for index, name in enumerate(self.names):
            tokens, mask = self.pad(batch["tokens." + name], batch["offsets." + name])
            words.append(self.ids[tokens + self.starts[index]])
            there.append(mask)
            places.append(self.positions.weight[: tokens.shape[1]] + self.columns.weight[index])
        place = torch.cat(places)
        parts, masks = torch.split(torch.cat(words, 1), self.part), torch.split(torch.cat(there, 1), self.part)
        blocks = [torch.cat([self.read(part, place, masks[index]) for index, part in enumerate(parts)])]
        if self.inputs is not None:
            blocks += [self.inputs(batch)]
        output: Tensor = self.head(torch.cat(blocks, 1))
        return output

    def read(self, words: Tensor, place: Tensor, there: Tensor) -> Tensor:
        """Word ids (rows, words), what their places add (words, size), and where there are any -> (rows, size)."""
        x = self.dropout(self.words(words) + place)
        for block in self.blocks:
            x = block(x, there[:, None, None, :])
        weight = there.unsqueeze(2).to(x.dtype)
        mean: Tensor = (self.norm(x) * weight).sum(1) / weight.sum(1)
        return mean

    def pad(self, tokens: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Ragged rows as token ids (rows, most words of a row) with 0 behind the end, and where there are words."""
        lengths = offsets.diff().clamp_max(self.max_length)
        place = torch.arange(int(F.pad(lengths, (0, 1)).max()), device=tokens.device)
        there = place < lengths.unsqueeze(1)
        padded = torch.zeros(there.shape, dtype=tokens.dtype, device=tokens.device)
        padded[there] = tokens[(offsets[:-1].unsqueeze(1) + place)[there]]
        if self.training and self.unknown_rate > 0:
            padded = mask(padded, self.unknown_rate)
        return padded, there
