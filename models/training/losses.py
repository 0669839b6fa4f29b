"""Losses: `loss(output (rows, k), target (rows,)) -> scalar`; each is built for one target."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.schema import TargetSpec
from models.training.prediction_head import all_logits

ClassWeights = Literal["balanced"] | Sequence[float] | None


def auto(target: TargetSpec, *, label_smoothing: float = 0.0, class_weights: ClassWeights = None) -> nn.Module:
    """Returns cross-entropy for classes, squared error on the standardized target for numbers."""
    if target.task != "regression":
        return CrossEntropy(target, label_smoothing=label_smoothing, class_weights=class_weights)
    if label_smoothing > 0 or class_weights is not None:
        raise ValueError(
            f"loss.label_smoothing and loss.class_weights are for classes, but the target {target.name!r} is a number:"
            " remove them."
        )
    return MSE(target)


class CrossEntropy(nn.Module):
    """Cross-entropy; for a binary network with its single logit this is BCE with logits.

    `label_smoothing` mixes the true class with the uniform distribution (arXiv 1512.00567). `class_weights`: one per
    class in code order, or "balanced": rows / (classes * rows of the class). The loss is the weighted mean.
    """

    weight: Tensor | None

    def __init__(self, target: TargetSpec, *, label_smoothing: float = 0.0, class_weights: ClassWeights = None) -> None:
        super().__init__()
        _require_classes(target, self)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing={label_smoothing}: must be at least 0 and below 1.")
        self.label_smoothing = label_smoothing
        # Not persistent: it depends on settings and data, not on training.
        self.register_buffer("weight", _class_weights(target, class_weights), persistent=False)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(all_logits(output), target, weight=self.weight, label_smoothing=self.label_smoothing)


class Focal(nn.Module):
    """Focal loss: cross-entropy times (1 - p)^gamma, with the probability p of the true class (arXiv 1708.02002)."""

    def __init__(self, target: TargetSpec, *, gamma: float = 2.0) -> None:
        super().__init__()
        _require_classes(target, self)
        if gamma < 0:
            raise ValueError(f"loss.gamma={gamma}: must not be negative.")
        self.gamma = gamma

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(all_logits(output).float(), target, reduction="none")
        # 1 - p without cancellation, and above 0, where powers below 1 have an infinite gradient.
        miss = (-torch.expm1(-loss)).clamp_min(torch.finfo(loss.dtype).tiny)
        return (miss**self.gamma * loss).mean()


class MSE(nn.Module):
    """Squared error on the standardized target."""

    def __init__(self, target: TargetSpec) -> None:
        super().__init__()
        _require_number(target, self)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output[:, 0].float(), target)


class MAE(nn.Module):
    """Absolute error on the standardized target; the network learns the median."""

    def __init__(self, target: TargetSpec) -> None:
        super().__init__()
        _require_number(target, self)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(output[:, 0].float(), target)


class Huber(nn.Module):
    """Half the squared error up to `delta` standard deviations of the target, linear beyond that (Huber 1964)."""

    def __init__(self, target: TargetSpec, *, delta: float = 1.0) -> None:
        super().__init__()
        _require_number(target, self)
        if delta <= 0:
            raise ValueError(f"loss.delta={delta}: must be above 0.")
        self.delta = delta

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(output[:, 0].float(), target, delta=self.delta)


def _require_classes(target: TargetSpec, loss: nn.Module) -> None:
    if target.task == "regression":
        raise ValueError(
            f"loss={_choice(loss)} needs classes, but the target {target.name!r} is a number:"
            " choose loss=mse, mae or huber."
        )


def _require_number(target: TargetSpec, loss: nn.Module) -> None:
    if target.task != "regression":
        raise ValueError(
            f"loss={_choice(loss)} needs a number, but the target {target.name!r} has"
            f" {len(target.classes)} classes: choose loss=cross_entropy or focal."
        )


def _choice(loss: nn.Module) -> str:
    """The name of the loss in the settings."""
    return "cross_entropy" if isinstance(loss, CrossEntropy) else type(loss).__name__.lower()


def _class_weights(target: TargetSpec, given: ClassWeights) -> Tensor | None:
    if given is None:
        return None
    if given == "balanced":
        counts = torch.tensor(target.counts).clamp_min(1)
        return counts.sum() / (len(counts) * counts)
    if isinstance(given, str) or len(given) != len(target.classes):
        raise ValueError(
            f"loss.class_weights={given!r}: must be 'balanced' or one weight for each of the"
            f" {len(target.classes)} classes of {target.name!r}: {', '.join(target.classes)}."
        )
    return torch.tensor(given, dtype=torch.float32)
