"""Linear and logistic regression on encoded columns: the baseline that every other network has to beat."""

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec, TextSpec
from models.inputs import Inputs
from models.ridge import solve
from models.texts import tfidf

ONE_HOT = functools.partial(Inputs, number_size=0, one_hot_max=256)
"""One weight a number and one a level are what makes it linear."""
PACE = 300.0
"""So many times the weight of a word counts that is in every row; one in a share of the rows less by its fourth root.
Adam moves each weight that a step has by about the learning rate, however rare the word: common words would take
hundreds of epochs, and rare ones be learnt by heart. Chosen on sms_spam and ag_news."""
MOST, WIDEST = 2**25, 2000
"""Encoded values of training rows that `start` looks at, 256 MB in all, and the most of a row: a matrix is square."""


class WordWeights(nn.Module):
    """One weight a word and output, times the word's TF-IDF in the row; they start at zero. Gives (rows, outputs)."""

    idf: Tensor
    pace: Tensor

    def __init__(self, spec: TextSpec, outputs: int) -> None:
        super().__init__()
        self.tokens = f"tokens.{spec.name}"
        self.offsets = f"offsets.{spec.name}"
        idf = torch.tensor((0.0, *spec.idf))
        share = (1 - idf).exp()
        # What tells two classes apart is the difference of two outputs.
        pace = PACE / min(outputs, 2) * share**0.25
        self.register_buffer("idf", idf, persistent=False)
        self.register_buffer("pace", pace, persistent=False)
        self.weights = nn.EmbeddingBag(len(idf), outputs, mode="sum", include_last_offset=True)
        nn.init.zeros_(self.weights.weight)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        tokens, offsets = batch[self.tokens], batch[self.offsets]
        weights = tfidf(tokens, offsets, self.idf) * self.pace.index_select(0, tokens)
        output: Tensor = self.weights(tokens.long(), offsets, weights)
        return output


class Linear(nn.Module):
    """One linear layer. It starts as ridge or logistic regression has it, where `start` looks at training rows, else at
    zero: even odds, or the mean.

    `inputs` makes the first layer, of all columns but texts: each word of a text has its own weight, times its TF-IDF.
    Gives (rows, outputs) logits or standardised values.
    """

    start_rows = 1
    """As many training rows as `start` makes use of."""

    def __init__(self, spec: InputSpec, outputs: int, *, inputs: Callable[[InputSpec], Inputs] = ONE_HOT) -> None:
        super().__init__()
        table = replace(spec, texts=())
        self.inputs: Inputs | None = None
        self.layer: nn.Linear | None = None
        self.bias: nn.Parameter | None = None
        if table == InputSpec() and spec.texts:
            self.bias = nn.Parameter(torch.zeros(outputs))
        else:
            self.inputs = inputs(table)
            self.layer = nn.Linear(self.inputs.width, outputs)
            nn.init.zeros_(self.layer.weight)
            nn.init.zeros_(self.layer.bias)
            if self.inputs.width <= WIDEST and not spec.texts:
                self.start_rows = MOST // self.inputs.width
        self.texts = nn.ModuleList(WordWeights(text, outputs) for text in spec.texts)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        output = self.bias
        if self.inputs is not None and self.layer is not None:
            output = self.layer(self.inputs(batch))
        assert output is not None
        for text in self.texts:
            output = output + text(batch)
        return output

    def start(self, batch: dict[str, Tensor]) -> None:
        """Solves for the weights on these training rows, with their `target`; neither with texts nor for wide rows."""
        if self.inputs is None or self.layer is None or self.start_rows == 1:
            return
        features = self.inputs.eval()(batch)
        self.inputs.train()
        if features.isfinite().all():  # training says in which column it is not
            weight, bias = solve(features, batch["target"], self.layer.out_features)
            self.layer.weight.copy_(weight)
            self.layer.bias.copy_(bias)
