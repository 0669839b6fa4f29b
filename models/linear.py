"""Linear and logistic regression on encoded columns: the baseline that every other network has to beat."""

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec
from models.inputs import Inputs
from models.texts import TextBag

ONE_HOT = functools.partial(Inputs, number_size=0, one_hot_max=256)
"""One weight a number and one a level are what makes it linear."""
WORDS = 400.0
"""So many times the weights of words count. Most words are in few rows, and Adam moves a weight by about the learning
rate in each step that has the word: with 1 it would take hundreds of epochs. Chosen on sms_spam and ag_news."""


class Linear(nn.Module):
    """One linear layer that starts at zero, so that it starts at even odds or at the mean.

    `encoder` makes the first layer, of all columns but texts: each word of a text has its own weight, times its TF-IDF.
    Gives (rows, outputs) logits or standardised values.
    """

    def __init__(self, inputs: InputSpec, outputs: int, *, encoder: Callable[[InputSpec], Inputs] = ONE_HOT) -> None:
        super().__init__()
        table = replace(inputs, texts=())
        self.inputs: Inputs | None = None
        self.layer: nn.Linear | None = None
        self.bias: nn.Parameter | None = None
        if table == InputSpec() and inputs.texts:
            self.bias = nn.Parameter(torch.zeros(outputs))
        else:
            self.inputs = encoder(table)
            self.layer = nn.Linear(self.inputs.width, outputs)
            nn.init.zeros_(self.layer.weight)
            nn.init.zeros_(self.layer.bias)
        self.texts = nn.ModuleList(TextBag(text, outputs) for text in inputs.texts)
        for weight in self.texts.parameters():
            nn.init.zeros_(weight)
        self.words = WORDS / min(outputs, 2)  # what tells two classes apart is the difference of two outputs

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        output = self.bias
        if self.inputs is not None and self.layer is not None:
            output = self.layer(self.inputs(batch))
        assert output is not None
        for text in self.texts:
            output = output + self.words * text(batch)
        return output
