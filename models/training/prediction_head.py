"""Conversion of network outputs to predictions, for training and the artifact."""

import torch
from torch import Tensor, nn

from datamodules.schema import TargetSpec

MARGIN = 0.1
"""Fraction of the range of the training targets by which a prediction may exceed this range."""


class PredictionHead(nn.Module):
    """Output (rows, k) or (rows, members, k) -> probabilities (rows, classes), or values (rows,) in target units.

    A binary network gives one logit, of class 1; the logit of class 0 is 0. Logits are divided by `temperature` (Guo et
    al. 2017, arXiv 1706.04599). Values are clipped to the range of the training targets, extended by MARGIN on either
    side, but not beyond 0 if all training targets have the same sign. Scriptable.
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


def to_units(standardized: Tensor, target: TargetSpec) -> Tensor:
    """Converts standardized values of a regression to units of the target."""
    return standardized * target.scale + target.mean


def combine(output: Tensor, task: str) -> Tensor:
    """(rows, members, k) -> (rows, k): the mean of the members' values, or logits of their mean probabilities.

    An output (rows, k) is returned unchanged. Scriptable.
    """
    if output.ndim == 2:
        return output
    if task == "regression":
        return output.mean(1)
    if output.shape[2] == 1:
        # The difference of log(mean p) and log(mean (1 - p)) is the logit; it is exact for p close to 0 or 1.
        ones = torch.logsumexp(nn.functional.logsigmoid(output), 1)
        return ones - torch.logsumexp(nn.functional.logsigmoid(-output), 1)
    return torch.logsumexp(torch.log_softmax(output, 2), 1)


def labels(probabilities: Tensor, task: str, threshold: float) -> Tensor:
    """Returns int64 classes: for two classes, 1 from the threshold on, else the most probable one. Scriptable."""
    return (probabilities[:, 1] >= threshold).long() if task == "binary" else probabilities.argmax(1)


def all_logits(output: Tensor) -> Tensor:
    """Returns one logit per class: (rows, 2) for the (rows, 1) of a binary network, else `output` (rows, classes)."""
    return torch.nn.functional.pad(output, [1, 0]) if output.shape[1] == 1 else output
