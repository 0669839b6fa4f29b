"""Ridge and logistic regression, solved: the weights that gradient steps would come to in the end."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models.training.prediction_head import all_logits

PENALTIES = [10.0**power for power in range(4, -4, -1)]
"""Times half the sum of squared weights, beside the sum of the rows' losses: scikit-learn's `alpha` and `1 / C`."""
FOLDS = 5
CHOOSING = 2**20
"""Values of rows, evenly taken, that the penalty is chosen on; the weights are fitted on all."""


def solve(features: Tensor, target: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Weight (outputs, width) and bias (outputs,) with the penalty that is best over folds of the rows.

    `features`: float (rows, width); `target`: int64 classes, of which the first has logit 0 where `outputs` is 1, or
    float values (rows,).
    """
    rows = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    none = torch.zeros(rows.shape[1], outputs, dtype=torch.float64)
    few = slice(None, None, math.ceil(rows.numel() / CHOOSING))
    penalty = _choose(rows[few], target[few], none) if len(rows) >= 2 * FOLDS else 1.0
    weights = _fit(rows, target, penalty, none).to(features.dtype)
    return weights[:-1].T, weights[-1]


def _choose(rows: Tensor, target: Tensor, none: Tensor) -> float:
    """The first penalty after which the loss on rows left out rises: its curve has one valley."""
    fold = torch.arange(len(rows)) % FOLDS
    weights = [none] * FOLDS
    best, least = PENALTIES[0], math.inf
    for penalty in PENALTIES:
        weights = [_fit(rows[fold != out], target[fold != out], penalty, weights[out]) for out in range(FOLDS)]
        loss = sum(float(_loss(rows[fold == out] @ weights[out], target[fold == out])) for out in range(FOLDS))
        if loss > least:
            break
        best, least = penalty, loss
    return best


def _loss(output: Tensor, target: Tensor) -> Tensor:
    """Sum over the rows."""
    if target.is_floating_point():
        return (output[:, 0] - target).square().sum() / 2
    return F.cross_entropy(all_logits(output), target, reduction="sum")


def _fit(rows: Tensor, target: Tensor, penalty: float, start: Tensor) -> Tensor:
    """L-BFGS with the bound of the Hessian as the metric (Böhning 1992), so that a few passes over the rows do."""
    bound = 1.0 if target.is_floating_point() else 0.5 if start.shape[1] > 1 else 0.25
    shrunk = torch.full((rows.shape[1],), penalty, dtype=rows.dtype)
    shrunk[-1] = 0.0  # the bias is free
    metric = bound * rows.T @ rows + shrunk.diag()
    metric.diagonal().add_(1e-12 * metric.diagonal().max())  # equal columns of large values
    factor = torch.linalg.cholesky(metric).T  # in whose coordinates the bound is the identity
    point = (factor @ start).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point], max_iter=100, history_size=10, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def weights() -> Tensor:
        found: Tensor = torch.linalg.solve_triangular(factor, point, upper=True)
        return found

    def closure() -> Tensor:
        now = weights()
        loss = _loss(rows @ now, target) + (shrunk @ now.square()).sum() / 2
        point.grad = torch.autograd.grad(loss, point)[0].contiguous()
        return loss.detach()

    step: Callable[[Callable[[], Tensor]], Tensor] = optimizer.step  # which torch has left untyped
    step(closure)
    return weights().detach()
