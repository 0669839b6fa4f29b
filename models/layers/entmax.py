"""1.5-entmax: sparse counterparts of softmax and sigmoid (arXiv 1905.05702)."""

import torch
from torch import Tensor


def entmax15(scores: Tensor) -> Tensor:
    """Scores -> weights over the last dimension that sum to 1; low scores get exactly 0. Scriptable.

    The weights are max(score/2 - t, 0)^2. Sorting finds the nonzero ones, from which t follows in closed form, so that
    gradients by autograd are exact.
    """
    half = scores / 2
    half = half - half.detach().max(-1, keepdim=True).values
    with torch.no_grad():
        ordered = half.sort(-1, descending=True).values
        count = torch.arange(1, half.shape[-1] + 1, device=half.device)
        mean = ordered.cumsum(-1) / count
        # Sum of squared deviations of the largest `count` scores.
        spread = ordered.square().cumsum(-1) - count * mean.square()
        threshold = mean - ((1 - spread) / count).clamp_min(0).sqrt()
        kept = (threshold <= ordered).sum(-1, keepdim=True)
        inside = half > threshold.gather(-1, kept - 1)
    kept = inside.sum(-1, keepdim=True)
    mean = (half * inside).sum(-1, keepdim=True) / kept
    spread = ((half - mean).square() * inside).sum(-1, keepdim=True)
    threshold = mean - ((1 - spread) / kept).sqrt()
    return (half - threshold).square() * inside


def entmoid15(x: Tensor) -> Tensor:
    """First weight of `entmax15([x, 0])`: 0 below -2, 1 above 2, 1/2 at 0. Scriptable."""
    x = x.clamp(-2, 2)
    return (x + (8 - x.square()).sqrt()).square() / 16
