"""Metrics of final answers: probabilities of classes, or values in the target's units.

Each metric keeps the answers of an epoch on the device and computes once at its end: an update launches nothing and
waits for nothing, and sums of large values are taken in double precision.
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
    """Every metric of `models.training.metric_names.NAMES` for this target; `compute` gives a scalar a name.

    Classes: `update(probabilities (rows, classes), index (rows,))`. Numbers: `update(values (rows,), truth (rows,))`.
    """
    return RegressionMetrics() if target.task == "regression" else ClassMetrics(target.classes)


class _Answers(Metric):
    """Keeps the answers and the truth of an epoch."""

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


class ClassMetrics(_Answers):
    """Metrics of probabilities. A class that the data lack is left out of every mean over classes.

    With two classes AUROC and average precision are those of class 1. `f1/<class>` is 0 for a class without rows.
    `calibrated_log_loss` is the log-loss at the temperature that makes it smallest (arXiv 2501.19195).
    `calibration_error`: mean gap of confidence and accuracy of the likeliest class in 15 bins (Naeini et al. 2015).
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.classes = classes
        self.threshold = 0.5
        """With two classes the probability of class 1 from which on a row is class 1."""

    def compute(self) -> dict[str, Tensor]:
        probabilities, truth = dim_zero_cat(self.answers), dim_zero_cat(self.truth)
        k = len(self.classes)
        label = labels(probabilities, "binary" if k == 2 else "multiclass", self.threshold)
        rows, guesses = torch.bincount(truth, minlength=k), torch.bincount(label, minlength=k)
        recall = multiclass_recall(label, truth, k, average="none", validate_args=False)
        f1 = multiclass_f1_score(label, truth, k, average="none", validate_args=False)

        # The means over classes are taken here: torchmetrics counts a class that the data lack as 0.
        scored = [c for c in ([1] if k == 2 else range(k)) if 0 < int(rows[c]) < len(truth)]
        ranked = [ranking(probabilities[:, c], truth == c) for c in scored]
        logits = probabilities.double().clamp_min(torch.finfo(torch.float32).tiny).log()
        return {
            "accuracy": (label == truth).double().mean(),
            "balanced_accuracy": recall[rows > 0].mean(),
            "f1": f1[rows + guesses > 0].mean(),
            "auroc": _mean([auroc for auroc, _ in ranked], truth),
            "average_precision": _mean([precision for _, precision in ranked], truth),
            "log_loss": log_loss_at(logits, truth, 1.0),
            "calibrated_log_loss": log_loss_at(logits, truth, best_temperature(logits, truth)),
            "calibration_error": multiclass_calibration_error(
                probabilities, truth, k, n_bins=CALIBRATION_BINS, validate_args=False
            ),
        } | {f"f1/{name}": f1[index] for index, name in enumerate(self.classes)}


class RegressionMetrics(_Answers):
    """Metrics of values in the target's units; `mape` is a fraction, R2 of a constant target is not a number."""

    def compute(self) -> dict[str, Tensor]:
        answers, truth = dim_zero_cat(self.answers).double(), dim_zero_cat(self.truth).double()
        error = answers - truth
        spread = (truth - truth.mean()).square().sum()
        # By hand where torchmetrics depends on the unit: for R2 it takes a spread below 1e-4 for none, and for MAPE it
        # raises truths to 1e-6.
        return {
            "rmse": mean_squared_error(answers, truth, squared=False),
            "mae": mean_absolute_error(answers, truth),
            "r2": torch.where(spread > 0, 1 - error.square().sum() / spread, torch.nan),
            "mape": (error.abs() / truth.abs().clamp_min(torch.finfo(torch.float64).eps)).mean(),
        }


def ranking(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """AUROC and average precision of `scores` (rows,) for `truth` bool (rows,), which has both values."""
    # Of one sort, which is most of the work.
    false, true, _ = binary_roc(scores, truth.long(), validate_args=False)
    false, true = false.double(), true.double()
    hits, misses = true[1:] * truth.sum(), false[1:] * (~truth).sum()
    return torch.trapezoid(true, false), (true.diff() * hits / (hits + misses)).sum()


def _mean(values: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(values).mean() if values else torch.tensor(torch.nan, device=like.device)
