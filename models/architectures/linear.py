"""Linear and logistic regression on encoded columns, a baseline for all other networks."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec, TextSpec
from models.layers.linear_solver import solve
from models.layers.tabular_embedding import FLAT, TabularEmbedding
from models.layers.text_bag import rows_of, tfidf

TOKEN_LR_SCALE = 300.0
"""Learning rate factor of a word that occurs in all rows; for a fraction f of rows it is TOKEN_LR_SCALE * f**0.25.
Adam changes each weight by about the learning rate per step, however rare the word is: without the factor, common
words need hundreds of epochs and rare ones are overfitted. Chosen on sms_spam and ag_news."""
MAX_VALUES, MAX_WIDTH = 2**25, 2000
"""Maximum number of values for `start` (256 MB), and of values per row (the solver needs a square matrix)."""


class WordWeights(nn.Module):
    """Linear layer on the TF-IDF values of words; weights are initially 0. Returns (rows, outputs)."""

    idf: Tensor
    pace: Tensor

    def __init__(self, spec: TextSpec, outputs: int, *, scaled: bool) -> None:
        super().__init__()
        self.tokens = f"tokens.{spec.name}"
        self.offsets = f"offsets.{spec.name}"
        idf = torch.tensor((0.0, *spec.idf))
        share = (1 - idf).exp()
        # With two outputs, their difference separates the classes.
        pace = TOKEN_LR_SCALE / min(outputs, 2) * share**0.25 if scaled else torch.ones_like(idf)
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
        """Returns the inputs of the linear layer as a dense matrix (rows, words)."""
        tokens, offsets = batch[self.tokens], batch[self.offsets]
        values = torch.zeros(len(offsets) - 1, len(self.idf))
        return values.index_put_((rows_of(offsets), tokens), tfidf(tokens, offsets, self.idf), accumulate=True)


class Linear(nn.Module):
    """A single linear layer. `start` solves it by ridge or logistic regression if rows are not too wide; otherwise its
    weights are initially 0.

    `inputs` encodes all columns but texts; each word of a text has a weight for its TF-IDF value.
    Returns (rows, outputs) logits or standardized values.
    """

    def __init__(
        self, spec: InputSpec, outputs: int, *, inputs: Callable[[InputSpec], TabularEmbedding] = FLAT
    ) -> None:
        super().__init__()
        table = replace(spec, texts=())
        self.inputs: TabularEmbedding | None = None
        self.layer: nn.Linear | None = None
        self.bias: nn.Parameter | None = None
        width = sum(1 + len(text.tokens) for text in spec.texts)  # one for unknown words
        if table == InputSpec() and spec.texts:
            self.bias = nn.Parameter(torch.zeros(outputs))
        else:
            self.inputs = inputs(table)
            self.layer = nn.Linear(self.inputs.width, outputs)
            nn.init.zeros_(self.layer.weight)
            nn.init.zeros_(self.layer.bias)
            width += self.inputs.width
        self.solved = width <= MAX_WIDTH
        self.start_rows = MAX_VALUES // width if self.solved else 1
        """Number of training rows for `start`."""
        self.texts = nn.ModuleList(WordWeights(text, outputs, scaled=not self.solved) for text in spec.texts)

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
        """Solves for the weights on training rows with their `target`, unless rows are too wide."""
        if not self.solved:
            return
        words = [text for text in self.texts if isinstance(text, WordWeights)]
        blocks = [(text.dense(batch), text.weights.weight.T) for text in words]
        own_bias = self.bias
        if self.inputs is not None and self.layer is not None:
            blocks.append((self.inputs(batch), self.layer.weight))
            own_bias = self.layer.bias
        assert own_bias is not None
        features = torch.cat([columns for columns, _ in blocks], 1)
        if features.isfinite().all():  # otherwise training reports the column
            weight, bias = solve(features, batch["target"], len(own_bias))
            own_bias.copy_(bias)
            weights = torch.split(weight, [columns.shape[1] for columns, _ in blocks], 1)
            for (_, own), solved in zip(blocks, weights, strict=True):
                own.copy_(solved)
