"""The probability of class 1 from which on a row is class 1, chosen by what it does to the validation rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.errors import InputError
from datamodules.schema import TargetSpec
from models.training.metric_names import THRESHOLD_FOR


def check_threshold(threshold: float | str, target: TargetSpec) -> None:
    """Raises InputError where the target has no threshold, or this is none."""
    if target.task != "binary":
        raise InputError(f"threshold={threshold}: only a target of two classes has one, and '{target.name}' is none.")
    metrics = (*THRESHOLD_FOR, *(f"f1/{name}" for name in target.classes))
    if threshold not in metrics and (isinstance(threshold, str) or not 0 <= threshold <= 1):
        raise InputError(f"threshold={threshold}: give a number from 0 to 1, or one of {', '.join(metrics)}.")


def best_threshold(probability: Tensor, truth: Tensor, metric: str, classes: Sequence[str]) -> tuple[float, float]:
    """The threshold for `probability` of class 1, (rows,), with the highest metric, and the metric; of several the one
    nearest to 0.5. Between two neighbouring probabilities it lies in the middle.
    """
    ordered, order = probability.double().sort(descending=True)
    positive = truth[order].double()
    # Entry i counts the i likeliest rows as class 1.
    hits = torch.nn.functional.pad(positive.cumsum(0), (1, 0))
    guessed = torch.arange(len(hits), dtype=torch.float64, device=hits.device)
    rows, ones = len(positive), hits[-1]
    zeros = rows - ones
    right_zeros = zeros - (guessed - hits)
    f1_one = 2 * hits / (guessed + ones).clamp_min(1)
    f1_zero = 2 * right_zeros / (rows - guessed + zeros).clamp_min(1)
    scores = {
        "accuracy": (hits + right_zeros) / rows,
        "balanced_accuracy": (hits / ones.clamp_min(1) + right_zeros / zeros.clamp_min(1)) / 2,
        "f1": (f1_one + f1_zero) / 2,
        f"f1/{classes[0]}": f1_zero,
        f"f1/{classes[1]}": f1_one,
    }
    ends = torch.cat([ordered.new_tensor([1.0 + 1e-6]), ordered, ordered.new_tensor([0.0])])
    middle = ((ends[:-1] + ends[1:]) / 2).float().double()  # as probabilities are compared with it
    between = torch.where(middle > ends[1:], middle, ends[:-1])
    possible = ends[:-1] > ends[1:]  # equal probabilities are on one side
    possible[-1], between[-1] = True, 0.0
    best = torch.where(possible, scores[metric], -1.0)
    nearest = torch.where(best >= best.max() - 1e-12, (between - 0.5).abs(), torch.inf).argmin()
    return float(between[nearest]), float(best[nearest])
