"""Metrics of predictions: class probabilities, or values in units of the target.

A metric keeps the predictions of an epoch on the device and is computed once at its end: an update neither starts
computations nor waits for the device. Large sums are in double precision.
"""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import mean_absolute_error, mean_squared_error
from torchmetrics.functional.classification import (
    binary_roc,
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_recall,
)
from torchmetrics.utilities import dim_zero_cat

from datamodules.schema import TargetSpec
from models.training.calibration import best_temperature, log_loss_at
from models.training.prediction_head import labels

CALIBRATION_BINS = 15


def build(target: TargetSpec) -> Metric:
    """Returns all metrics of `models.training.metric_names.NAMES` for this target; `compute` maps names to scalars.

    Classes: `update(probabilities (rows, classes), index (rows,))`. Numbers: `update(values (rows,), truth (rows,))`.
    """
    return RegressionMetrics() if target.task == "regression" else ClassMetrics(target.classes)


class _PredictionMetric(Metric):
    """Keeps the predictions and the targets of an epoch."""

    full_state_update = False
    answers: list[Tensor]
    truth: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("answers", default=[], dist_reduce_fx="cat")
        self.add_state("truth", default=[], dist_reduce_fx="cat")

    def update(self, answers: Tensor, truth: Tensor) -> None:
        self.answers.append(answers)
        self.truth.append(truth)


class ClassMetrics(_PredictionMetric):
    """Metrics of class probabilities. Means over classes ignore classes without rows.

    With two classes, AUROC and average precision are those of class 1. `f1/<class>` is 0 for a class without rows.
    `calibrated_log_loss` is the log loss at the temperature that minimizes it (arXiv 2501.19195). `calibration_error`
    is the mean difference between confidence and accuracy of the top class in 15 bins (Naeini et al. 2015).
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.classes = classes
        self.threshold = 0.5
        """With two classes: probability of class 1 from which a row is assigned to class 1."""

    def compute(self) -> dict[str, Tensor]:
        probabilities, truth = dim_zero_cat(self.answers), dim_zero_cat(self.truth)
        k = len(self.classes)
        label = labels(probabilities, "binary" if k == 2 else "multiclass", self.threshold)
        rows, predicted = torch.bincount(truth, minlength=k), torch.bincount(label, minlength=k)
        recall = multiclass_recall(label, truth, k, average="none", validate_args=False)
        f1 = multiclass_f1_score(label, truth, k, average="none", validate_args=False)

        # Means over classes are computed here, because torchmetrics counts a class without rows as 0.
        scored = [c for c in ([1] if k == 2 else range(k)) if 0 < int(rows[c]) < len(truth)]
        ranked = [ranking(probabilities[:, c], truth == c) for c in scored]
        logits = probabilities.double().clamp_min(torch.finfo(torch.float32).tiny).log()
        return {
            "accuracy": (label == truth).double().mean(),
            "balanced_accuracy": recall[rows > 0].mean(),
            "f1": f1[rows + predicted > 0].mean(),
            "auroc": _mean([auroc for auroc, _ in ranked], truth),
            "average_precision": _mean([precision for _, precision in ranked], truth),
            "log_loss": log_loss_at(logits, truth, 1.0),
            "calibrated_log_loss": log_loss_at(logits, truth, best_temperature(logits, truth)),
            "calibration_error": multiclass_calibration_error(
                probabilities, truth, k, n_bins=CALIBRATION_BINS, validate_args=False
            ),
        } | {f"f1/{name}": f1[index] for index, name in enumerate(self.classes)}


class RegressionMetrics(_PredictionMetric):
    """Metrics of values in units of the target; `mape` is a fraction, `r2` of a constant target is NaN."""

    def compute(self) -> dict[str, Tensor]:
        answers, truth = dim_zero_cat(self.answers).double(), dim_zero_cat(self.truth).double()
        error = answers - truth
        spread = (truth - truth.mean()).square().sum()
        # R2 and MAPE of torchmetrics depend on the unit: it treats a sum of squares below 1e-4 as 0, and clips targets
        # at 1e-6.
        return {
            "rmse": mean_squared_error(answers, truth, squared=False),
            "mae": mean_absolute_error(answers, truth),
            "r2": torch.where(spread > 0, 1 - error.square().sum() / spread, torch.nan),
            "mape": (error.abs() / truth.abs().clamp_min(torch.finfo(torch.float64).eps)).mean(),
        }


def ranking(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Returns AUROC and average precision of `scores` (rows,); `truth` bool (rows,) must have both values."""
    # Both from one sort, which takes most of the time.
    false, true, _ = binary_roc(scores, truth.long(), validate_args=False)
    false, true = false.double(), true.double()
    hits, misses = true[1:] * truth.sum(), false[1:] * (~truth).sum()
    return torch.trapezoid(true, false), (true.diff() * hits / (hits + misses)).sum()


def _mean(values: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(values).mean() if values else torch.tensor(torch.nan, device=like.device)
