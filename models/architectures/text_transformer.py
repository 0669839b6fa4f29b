"""A small Transformer encoder on the words of the text columns."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.schema import InputSpec
from models.layers.column_support import refuse_columns
from models.layers.tabular_embedding import TabularEmbedding, mask_codes
from models.layers.text_bag import shared_words

CHUNK_SIZE = 256
"""Number of rows encoded at a time, so that a large batch without gradients needs little memory."""


class Block(nn.Module):
    """Pre-norm Transformer block: self-attention and a feed-forward network, each with a residual connection.

    x: (rows, words, size); `visible`: bool (rows, 1, 1, words), whether a word can be attended to.
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

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        rows, words, size = x.shape
        projected = self.query_key_value(self.attention_norm(x)).view(rows, words, 3, self.heads, size // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
        x = x + F.dropout(self.attention_out(attended.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return x + F.dropout(self.feed_forward(x), self.dropout, self.training)


class TextTransformer(nn.Module):
    """Transformer encoder (pre-norm, arXiv 2002.04745) with learned positions, and a linear head on the mean of words.

    The first `max_length` words of each text are used. Several text columns are concatenated; they share a vocabulary,
    and words get a learned vector of their column added. In training, a word becomes unknown with probability
    `unknown_rate`, so that unseen words have a trained embedding. Columns of other kinds are encoded by
    `TabularEmbedding` and concatenated with the mean.

    Returns (rows, outputs) logits or standardized values. Raises ValueError if there is no text column.
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
        self.chunk_size: int = CHUNK_SIZE
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
        # A start token in each row, so that rows without words have a token to attend to.
        words = [torch.full((rows, 1), self.words.num_embeddings - 1, device=self.ids.device)]
        present = [torch.ones(rows, 1, dtype=torch.bool, device=self.ids.device)]
        positions = [torch.zeros(1, self.words.embedding_dim, device=self.ids.device)]
        for index, name in enumerate(self.names):
            tokens, mask = self.pad(batch["tokens." + name], batch["offsets." + name])
            words.append(self.ids[tokens + self.starts[index]])
            present.append(mask)
            positions.append(self.positions.weight[: tokens.shape[1]] + self.columns.weight[index])
        position = torch.cat(positions)
        chunks = torch.split(torch.cat(words, 1), self.chunk_size)
        masks = torch.split(torch.cat(present, 1), self.chunk_size)
        blocks = [torch.cat([self.encode(chunk, position, masks[index]) for index, chunk in enumerate(chunks)])]
        if self.inputs is not None:
            blocks += [self.inputs(batch)]
        output: Tensor = self.head(torch.cat(blocks, 1))
        return output

    def encode(self, words: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        """Word ids (rows, words), position vectors (words, size) and mask bool (rows, words) -> (rows, size)."""
        x = self.dropout(self.words(words) + position)
        for block in self.blocks:
            x = block(x, mask[:, None, None, :])
        weight = mask.unsqueeze(2).to(x.dtype)
        mean: Tensor = (self.norm(x) * weight).sum(1) / weight.sum(1)
        return mean

    def pad(self, tokens: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Pads ragged rows with 0: token ids (rows, longest row), and the mask of words."""
        lengths = offsets.diff().clamp_max(self.max_length)
        position = torch.arange(int(F.pad(lengths, (0, 1)).max()), device=tokens.device)
        mask = position < lengths.unsqueeze(1)
        padded = torch.zeros(mask.shape, dtype=tokens.dtype, device=tokens.device)
        padded[mask] = tokens[(offsets[:-1].unsqueeze(1) + position)[mask]]
        if self.training and self.unknown_rate > 0:
            padded = mask_codes(padded, self.unknown_rate)
        return padded, mask
