"""Decision threshold of a binary target, chosen to maximize a metric on the validation rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.errors import InputError
from datamodules.schema import TargetSpec
from models.training.metric_names import THRESHOLD_FOR


def check_threshold(threshold: float | str, target: TargetSpec) -> None:
    """Raises InputError if the target is not binary, or if the threshold is neither a probability nor a metric."""
    if target.task != "binary":
        raise InputError(f"threshold={threshold}: only for targets with two classes, unlike '{target.name}'.")
    metrics = (*THRESHOLD_FOR, *(f"f1/{name}" for name in target.classes))
    if threshold not in metrics and (isinstance(threshold, str) or not 0 <= threshold <= 1):
        raise InputError(f"threshold={threshold}: must be a number from 0 to 1, or one of {', '.join(metrics)}.")


def best_threshold(probability: Tensor, truth: Tensor, metric: str, classes: Sequence[str]) -> tuple[float, float]:
    """Returns the threshold for `probability` of class 1, (rows,), with the highest metric, and that metric.

    Candidates are midpoints between adjacent probabilities; ties go to the one closest to 0.5.
    """
    ordered, order = probability.double().sort(descending=True)
    positive = truth[order].double()
    # Entry i is for the i rows with the highest probabilities in class 1.
    hits = torch.nn.functional.pad(positive.cumsum(0), (1, 0))
    predicted = torch.arange(len(hits), dtype=torch.float64, device=hits.device)
    rows, ones = len(positive), hits[-1]
    zeros = rows - ones
    right_zeros = zeros - (predicted - hits)
    f1_one = 2 * hits / (predicted + ones).clamp_min(1)
    f1_zero = 2 * right_zeros / (rows - predicted + zeros).clamp_min(1)
    scores = {
        "accuracy": (hits + right_zeros) / rows,
        "balanced_accuracy": (hits / ones.clamp_min(1) + right_zeros / zeros.clamp_min(1)) / 2,
        "f1": (f1_one + f1_zero) / 2,
        f"f1/{classes[0]}": f1_zero,
        f"f1/{classes[1]}": f1_one,
    }
    ends = torch.cat([ordered.new_tensor([1.0 + 1e-6]), ordered, ordered.new_tensor([0.0])])
    middle = ((ends[:-1] + ends[1:]) / 2).float().double()  # the precision of the comparison with probabilities
    between = torch.where(middle > ends[1:], middle, ends[:-1])
    possible = ends[:-1] > ends[1:]  # equal probabilities get the same class
    possible[-1], between[-1] = True, 0.0
    best = torch.where(possible, scores[metric], -1.0)
    nearest = torch.where(best >= best.max() - 1e-12, (between - 0.5).abs(), torch.inf).argmin()
    return float(between[nearest]), float(best[nearest])
