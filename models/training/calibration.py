"""The temperature that makes probabilities as sure as they are right (Guo et al. 2017, arXiv 1706.04599)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LIMIT = math.log(20.0)
"""Temperatures lie between 1/20 and 20: rows that are all answered rightly would have it fall to nothing."""
STEPS = 60
CLOSE = 1e-10
"""Of the logarithm of the temperature."""


def best_temperature(logits: Tensor, truth: Tensor) -> float:
    """The temperature for `logits` (rows, classes) with the smallest log-loss on `truth` int64 (rows,).

    The loss is convex in the inverse temperature (arXiv 2501.19195): Newton's steps find where its slope is zero, and
    where one leaves the interval in which that must be, the middle is taken.
    """
    logits = logits.double().T.contiguous()  # (classes, rows): sums over few classes are fast so
    right = logits.gather(0, truth.unsqueeze(0)).mean()
    low, high, at = -math.inf, math.inf, 0.0
    for _ in range(STEPS):
        shares = torch.softmax(logits * math.exp(at), 0)
        expected = (shares * logits).sum(0)
        spread = (shares * logits.square()).sum(0) - expected.square()
        slope, bend = torch.stack([expected.mean() - right, spread.mean() * math.exp(at)]).tolist()
        if slope == 0:
            break
        low, high = (low, at) if slope > 0 else (at, high)
        step = at - slope / bend if bend > 0 else -math.copysign(math.inf, slope)
        step = min(max(step, -LIMIT), LIMIT)
        before = at
        at = step if low < step < high else (max(low, -LIMIT) + min(high, LIMIT)) / 2
        if abs(at - before) < CLOSE:
            break
    return math.exp(-at)


def log_loss_at(logits: Tensor, truth: Tensor, temperature: float) -> Tensor:
    """Mean log-loss of `logits` (rows, classes) divided by the temperature."""
    return F.cross_entropy(logits.double() / temperature, truth)
