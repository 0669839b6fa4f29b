"""What a network's output means: the one place that turns it into answers, in training and in the artefact."""

import torch
from torch import Tensor, nn

from datamodules.schema import TargetSpec

MARGIN = 0.1
"""Of the range of the training targets, by which a value may lie outside of it."""


class PredictionHead(nn.Module):
    """Output (rows, k) or (rows, members, k) -> probabilities (rows, classes), or values (rows,) in the target's units.

    A binary network gives one logit, that of class 1; class 0 has logit 0. Logits are divided by `temperature` (Guo et
    al. 2017, arXiv 1706.04599). Values are held in the range of the training targets, widened by a tenth on either
    side, but not past zero: a row unlike all others is not answered by a number that never was. Scriptable.
    """

    def __init__(self, target: TargetSpec) -> None:
        super().__init__()
        self.task: str = target.task
        self.mean = target.mean
        self.scale = target.scale
        self.temperature = 1.0
        margin = MARGIN * (target.high - target.low)
        self.low = max(target.low - margin, 0.0) if target.low >= 0 else target.low - margin
        self.high = min(target.high + margin, 0.0) if target.high <= 0 else target.high + margin

    def forward(self, output: Tensor) -> Tensor:
        output = combine(output, self.task).float()
        if self.task == "regression":
            return (output[:, 0] * self.scale + self.mean).clamp(self.low, self.high)
        return torch.softmax(all_logits(output) / self.temperature, dim=1)


def to_units(standardised: Tensor, target: TargetSpec) -> Tensor:
    """The encoded target of a regression in the target's units."""
    return standardised * target.scale + target.mean


def combine(output: Tensor, task: str) -> Tensor:
    """(rows, members, k) -> (rows, k): the mean of the members' values, or what gives the mean of their probabilities.

    An output of one member, (rows, k), is left as it is. Scriptable.
    """
    if output.ndim == 2:
        return output
    if task == "regression":
        return output.mean(1)
    if output.shape[2] == 1:
        # The logarithms of the means of p and of 1 - p: their difference is the logit, however near to 0 or 1 p is.
        ones = torch.logsumexp(nn.functional.logsigmoid(output), 1)
        return ones - torch.logsumexp(nn.functional.logsigmoid(-output), 1)
    return torch.logsumexp(torch.log_softmax(output, 2), 1)


def labels(probabilities: Tensor, task: str, threshold: float) -> Tensor:
    """The class that each row is given, int64: of two classes 1 from the threshold on, of more the likeliest.

    Scriptable.
    """
    return (probabilities[:, 1] >= threshold).long() if task == "binary" else probabilities.argmax(1)


def all_logits(output: Tensor) -> Tensor:
    """One logit a class: (rows, classes) from (rows, classes), or (rows, 2) from the (rows, 1) of a binary network."""
    return torch.nn.functional.pad(output, [1, 0]) if output.shape[1] == 1 else output
