"""Metrics of final answers: probabilities of classes, or values in the target's units.

Each metric keeps the answers of an epoch on the device and computes once at its end: an update launches nothing and
waits for nothing, and sums of large values are taken in double precision.
"""

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    multiclass_calibration_error,
)
from torchmetrics.utilities import dim_zero_cat

from datamodules.schema import TargetSpec

CALIBRATION_BINS = 15


def build(target: TargetSpec) -> MetricCollection:
    """Every metric of `models.metric_names.NAMES` for this target; `compute` gives a scalar a name.

    Classes: `update(probabilities (rows, classes), class index (rows,))`. Numbers: `update(values (rows,), true values)`.
    """
    metric: Metric = RegressionMetrics() if target.task == "regression" else ClassMetrics(target.classes)
    return MetricCollection([metric])


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
    `calibration_error`: mean gap of confidence and accuracy of the likeliest class in 15 bins (Naeini et al. 2015).
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.classes = classes

    def compute(self) -> dict[str, Tensor]:
        probabilities, truth = dim_zero_cat(self.answers), dim_zero_cat(self.truth)
        k = len(self.classes)
        label = probabilities.argmax(1)
        one_hot, guess = (torch.nn.functional.one_hot(x, k).double() for x in (truth, label))
        hits, rows, guesses = (one_hot * guess).sum(0), one_hot.sum(0), guess.sum(0)
        f1 = 2 * hits / (rows + guesses).clamp_min(1)

        ranked = [1] if k == 2 else list(range(k))
        seen = [c for c in ranked if 0 < int(rows[c]) < len(truth)]
        pairs = [(probabilities[:, c], (truth == c).long()) for c in seen]
        auroc = [binary_auroc(p, t, validate_args=False) for p, t in pairs]
        precision = [binary_average_precision(p, t, validate_args=False) for p, t in pairs]
        chosen = probabilities.gather(1, truth[:, None]).double()
        return {
            "accuracy": hits.sum() / len(truth),
            "balanced_accuracy": (hits / rows)[rows > 0].mean(),
            "f1": f1[rows + guesses > 0].mean(),
            "auroc": _mean(auroc, truth),
            "average_precision": _mean(precision, truth),
            "log_loss": -chosen.clamp_min(torch.finfo(torch.float32).tiny).log().mean(),
            "calibration_error": multiclass_calibration_error(
                probabilities, truth, k, n_bins=CALIBRATION_BINS, validate_args=False
            ),
        } | {f"f1/{name}": f1[index] for index, name in enumerate(self.classes)}


class RegressionMetrics(_Answers):
    """Metrics of values in the target's units; `mape` is a fraction, R2 of a constant target is not a number."""

    def compute(self) -> dict[str, Tensor]:
        truth = dim_zero_cat(self.truth).double()
        error = dim_zero_cat(self.answers).double() - truth
        spread = (truth - truth.mean()).square().sum()
        return {
            "rmse": error.square().mean().sqrt(),
            "mae": error.abs().mean(),
            "r2": torch.where(spread > 0, 1 - error.square().sum() / spread, torch.nan),
            "mape": (error.abs() / truth.abs().clamp_min(torch.finfo(torch.float64).eps)).mean(),
        }


def _mean(values: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(values).mean() if values else torch.tensor(torch.nan, device=like.device)
