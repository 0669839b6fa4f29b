"""Linear and logistic regression on encoded columns: the baseline that every other network has to beat."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec, TextSpec
from models.layers.linear_solver import solve
from models.layers.tabular_embedding import FLAT, TabularEmbedding
from models.layers.text_bag import rows_of, tfidf

TOKEN_LR_SCALE = 300.0
"""So many times the weight of a word counts that is in every row; one in a share of the rows less by its fourth root.
Adam moves each weight that a step has by about the learning rate, however rare the word: common words would take
hundreds of epochs, and rare ones be learnt by heart. Chosen on sms_spam and ag_news."""
MOST, WIDEST = 2**25, 2000
"""Encoded values of training rows that `start` looks at, 256 MB in all, and the most of a row: a matrix is square."""


class WordWeights(nn.Module):
    """One weight a word and output, times the word's TF-IDF in the row; they start at zero. Gives (rows, outputs)."""

    idf: Tensor
    pace: Tensor

    def __init__(self, spec: TextSpec, outputs: int, *, paced: bool) -> None:
        super().__init__()
        self.tokens = f"tokens.{spec.name}"
        self.offsets = f"offsets.{spec.name}"
        idf = torch.tensor((0.0, *spec.idf))
        share = (1 - idf).exp()
        # What tells two classes apart is the difference of two outputs.
        pace = TOKEN_LR_SCALE / min(outputs, 2) * share**0.25 if paced else torch.ones_like(idf)
        self.register_buffer("idf", idf, persistent=False)
        self.register_buffer("pace", pace, persistent=False)
        self.weights = nn.EmbeddingBag(len(idf), outputs, mode="sum", include_last_offset=True)
        nn.init.zeros_(self.weights.weight)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        tokens, offsets = batch[self.tokens], batch[self.offsets]
        weights = tfidf(tokens, offsets, self.idf) * self.pace.index_select(0, tokens)
        output: Tensor = self.weights(tokens.long(), offsets, weights)
        return output

    @torch.jit.unused
    def dense(self, batch: dict[str, Tensor]) -> Tensor:
        """What the weights are times of: (rows, words)."""
        tokens, offsets = batch[self.tokens], batch[self.offsets]
        values = torch.zeros(len(offsets) - 1, len(self.idf))
        return values.index_put_((rows_of(offsets), tokens), tfidf(tokens, offsets, self.idf), accumulate=True)


class Linear(nn.Module):
    """One linear layer. It starts as ridge or logistic regression has it, where `start` looks at training rows that are
    not too wide, else at zero: even odds, or the mean.

    `inputs` makes the first layer, of all columns but texts: each word of a text has its own weight, times its TF-IDF.
    Gives (rows, outputs) logits or standardised values.
    """

    def __init__(
        self, spec: InputSpec, outputs: int, *, inputs: Callable[[InputSpec], TabularEmbedding] = FLAT
    ) -> None:
        super().__init__()
        table = replace(spec, texts=())
        self.inputs: TabularEmbedding | None = None
        self.layer: nn.Linear | None = None
        self.bias: nn.Parameter | None = None
        width = sum(1 + len(text.tokens) for text in spec.texts)  # unknown words are one
        if table == InputSpec() and spec.texts:
            self.bias = nn.Parameter(torch.zeros(outputs))
        else:
            self.inputs = inputs(table)
            self.layer = nn.Linear(self.inputs.width, outputs)
            nn.init.zeros_(self.layer.weight)
            nn.init.zeros_(self.layer.bias)
            width += self.inputs.width
        self.solved = width <= WIDEST
        self.start_rows = MOST // width if self.solved else 1
        """As many training rows as `start` looks at."""
        self.texts = nn.ModuleList(WordWeights(text, outputs, paced=not self.solved) for text in spec.texts)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        output = self.bias
        if self.inputs is not None and self.layer is not None:
            output = self.layer(self.inputs(batch))
        assert output is not None
        for text in self.texts:
            output = output + text(batch)
        return output

    @torch.jit.unused
    def start(self, batch: dict[str, Tensor]) -> None:
        """Solves for the weights on these training rows, with their `target`, where rows are not too wide."""
        if not self.solved:
            return
        words = [text for text in self.texts if isinstance(text, WordWeights)]
        parts = [(text.dense(batch), text.weights.weight.T) for text in words]
        own_bias = self.bias
        if self.inputs is not None and self.layer is not None:
            parts.append((self.inputs(batch), self.layer.weight))
            own_bias = self.layer.bias
        assert own_bias is not None
        features = torch.cat([columns for columns, _ in parts], 1)
        if features.isfinite().all():  # training says in which column it is not
            weight, bias = solve(features, batch["target"], len(own_bias))
            own_bias.copy_(bias)
            weights = torch.split(weight, [columns.shape[1] for columns, _ in parts], 1)
            for (_, own), solved in zip(parts, weights, strict=True):
                own.copy_(solved)
