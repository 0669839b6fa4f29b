"""Temperature scaling, which calibrates predicted probabilities (Guo et al. 2017, arXiv 1706.04599)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LIMIT = math.log(20.0)
"""Maximum absolute logarithm of the temperature, which would tend to 0 if all rows were classified correctly."""
MAX_STEPS = 60
CLOSE = 1e-10
"""Tolerance for the logarithm of the temperature."""


def best_temperature(logits: Tensor, truth: Tensor) -> float:
    """Returns the temperature of `logits` (rows, classes) that minimizes the log loss on `truth` int64 (rows,).

    The loss is convex in the inverse temperature (arXiv 2501.19195). Newton's method finds the zero of its derivative,
    with a bisection step whenever a Newton step leaves the bracketing interval.
    """
    logits = logits.double().T.contiguous()  # (classes, rows): faster sums over few classes
    true_logit = logits.gather(0, truth.unsqueeze(0)).mean()
    low, high, at = -math.inf, math.inf, 0.0
    for _ in range(MAX_STEPS):
        probabilities = torch.softmax(logits * math.exp(at), 0)
        expected = (probabilities * logits).sum(0)
        variance = (probabilities * logits.square()).sum(0) - expected.square()
        slope, curvature = torch.stack([expected.mean() - true_logit, variance.mean() * math.exp(at)]).tolist()
        if slope == 0:
            break
        low, high = (low, at) if slope > 0 else (at, high)
        step = at - slope / curvature if curvature > 0 else -math.copysign(math.inf, slope)
        step = min(max(step, -LIMIT), LIMIT)
        before = at
        at = step if low < step < high else (max(low, -LIMIT) + min(high, LIMIT)) / 2
        if abs(at - before) < CLOSE:
            break
    return math.exp(-at)


def log_loss_at(logits: Tensor, truth: Tensor, temperature: float) -> Tensor:
    """Returns the mean log loss of `logits` (rows, classes) divided by the temperature."""
    return F.cross_entropy(logits.double() / temperature, truth)
