"""Solver for ridge and logistic regression with a cross-validated L2 penalty."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models.training.prediction_head import all_logits

PENALTIES = [10.0**power for power in range(4, -4, -1)]
"""Factors of half the sum of squared weights, added to the sum of losses: scikit-learn's `alpha` and `1 / C`."""
FOLDS = 5
MAX_CHOICE_VALUES = 2**20
"""Maximum number of feature values for the choice of the penalty, from evenly spaced rows."""


def solve(features: Tensor, target: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Returns weight (outputs, width) and bias (outputs,) for the penalty with the lowest cross-validated loss.

    `features`: float (rows, width). `target`: (rows,), int64 classes or float values; with two classes and `outputs` 1,
    the logit of class 0 is 0.
    """
    rows = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    zeros = torch.zeros(rows.shape[1], outputs, dtype=torch.float64)
    subset = slice(None, None, math.ceil(rows.numel() / MAX_CHOICE_VALUES))
    penalty = _choose(rows[subset], target[subset], zeros) if len(rows) >= 2 * FOLDS else 1.0
    weights = _fit(rows, target, penalty, zeros).to(features.dtype)
    return weights[:-1].T, weights[-1]


def _choose(rows: Tensor, target: Tensor, zeros: Tensor) -> float:
    """Returns the last penalty before the cross-validated loss rises, which has a single minimum."""
    fold = torch.arange(len(rows)) % FOLDS
    weights = [zeros] * FOLDS
    best, least = PENALTIES[0], math.inf
    for penalty in PENALTIES:
        weights = [_fit(rows[fold != out], target[fold != out], penalty, weights[out]) for out in range(FOLDS)]
        loss = sum(float(_loss(rows[fold == out] @ weights[out], target[fold == out])) for out in range(FOLDS))
        if loss > least:
            break
        best, least = penalty, loss
    return best


def _loss(output: Tensor, target: Tensor) -> Tensor:
    """Sum of the losses of all rows."""
    if target.is_floating_point():
        return (output[:, 0] - target).square().sum() / 2
    return F.cross_entropy(all_logits(output), target, reduction="sum")


def _fit(rows: Tensor, target: Tensor, penalty: float, start: Tensor) -> Tensor:
    """L-BFGS preconditioned with an upper bound of the Hessian (Böhning 1992), so that few iterations suffice."""
    bound = 1.0 if target.is_floating_point() else 0.5 if start.shape[1] > 1 else 0.25
    penalties = torch.full((rows.shape[1],), penalty, dtype=rows.dtype)
    penalties[-1] = 0.0  # none on the bias
    hessian = bound * rows.T @ rows + penalties.diag()
    hessian.diagonal().add_(1e-12 * hessian.diagonal().max())  # for duplicate columns with large values
    factor = torch.linalg.cholesky(hessian).T  # coordinates in which the bound is the identity
    point = (factor @ start).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point], max_iter=100, history_size=10, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def weights() -> Tensor:
        solved: Tensor = torch.linalg.solve_triangular(factor, point, upper=True)
        return solved

    def closure() -> Tensor:
        current = weights()
        loss = _loss(rows @ current, target) + (penalties @ current.square()).sum() / 2
        point.grad = torch.autograd.grad(loss, point)[0].contiguous()
        return loss.detach()

    step: Callable[[Callable[[], Tensor]], Tensor] = optimizer.step  # untyped in torch
    step(closure)
    return weights().detach()
