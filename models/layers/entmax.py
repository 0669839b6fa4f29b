"""1.5-entmax: what softmax and the sigmoid are, but exactly 0 and 1 beyond a point (arXiv 1905.05702)."""

import torch
from torch import Tensor


def entmax15(scores: Tensor) -> Tensor:
    """Scores -> weights over the last dimension that sum to 1, those of low scores exactly 0. Scriptable.

    The weights are ((score/2 - t)+)^2; sorting finds which ones are not 0, and of these t follows in closed form, so
    that autograd's gradients are exact.
    """
    half = scores / 2
    half = half - half.detach().max(-1, keepdim=True).values
    with torch.no_grad():
        ordered = half.sort(-1, descending=True).values
        count = torch.arange(1, half.shape[-1] + 1, device=half.device)
        mean = ordered.cumsum(-1) / count
        # Squares summed less `count` times the squared mean: the spread of the largest ones.
        spread = ordered.square().cumsum(-1) - count * mean.square()
        bound = mean - ((1 - spread) / count).clamp_min(0).sqrt()
        kept = (bound <= ordered).sum(-1, keepdim=True)
        inside = half > bound.gather(-1, kept - 1)
    kept = inside.sum(-1, keepdim=True)
    mean = (half * inside).sum(-1, keepdim=True) / kept
    spread = ((half - mean).square() * inside).sum(-1, keepdim=True)
    bound = mean - ((1 - spread) / kept).sqrt()
    return (half - bound).square() * inside


def entmoid15(x: Tensor) -> Tensor:
    """The first of the two weights of `entmax15([x, 0])`: 0 up to -2, 1 from 2 on, 1/2 at 0. Scriptable."""
    x = x.clamp(-2, 2)
    return (x + (8 - x.square()).sqrt()).square() / 16
