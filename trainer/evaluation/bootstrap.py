"""Confidence interval of the difference between two models on the same test rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from datamodules.schema import TargetSpec
from models.training.calibration import best_temperature
from models.training.metric_names import HIGHER_IS_BETTER
from models.training.metrics import CALIBRATION_BINS
from models.training.prediction_head import labels

Floats = npt.NDArray[np.float64]
Measure = Callable[[Floats], float]
"""Maps weights (rows,) to a metric in which row i counts `weights[i]` times."""

RESAMPLES, MIN_RESAMPLES = 1000, 200
WORK = 50_000_000
"""Maximum of rows times resamples (times classes, for rankings); more rows get fewer resamples."""
RANKINGS = ("auroc", "average_precision")


@dataclass(frozen=True)
class Advantage:
    """Metrics of two models, and the advantage of the first: positive if it is better, with its 95 % interval."""

    first: float
    second: float
    value: float
    low: float
    high: float


def advantage(metric: str, first: Measure, second: Measure, rows: int, classes: int = 2) -> Advantage:
    """Returns the advantage of the first model over the second, both measured on the same `rows`.

    Paired bootstrap with percentile intervals (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter
    13; Koehn 2004, EMNLP): rows are drawn with replacement, the same rows for both models, so that variation which
    both share cancels. It assumes independent rows and fixed models: the interval does not include the variation
    between seeds, splits or training sets. Values are NaN if the metric is not defined.
    """
    sign = 1.0 if metric.split("/")[0] in HIGHER_IS_BETTER else -1.0
    generator = np.random.default_rng(0)
    rankings = max(classes, 1) if metric in RANKINGS else 1
    resamples = int(np.clip(WORK / (rows * rankings), MIN_RESAMPLES, RESAMPLES))
    differences = np.empty(resamples)
    for index in range(resamples):
        weights = np.bincount(generator.integers(0, rows, rows), minlength=rows).astype(np.float64)
        differences[index] = sign * (first(weights) - second(weights))
    ones = np.ones(rows)
    values = first(ones), second(ones)
    finite = differences[np.isfinite(differences)]  # a resample may lack a class
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (np.nan, np.nan)
    return Advantage(*values, sign * (values[0] - values[1]), float(low), float(high))


def measure(metric: str, answers: Tensor, truth: Tensor, target: TargetSpec, threshold: float) -> Measure:
    """Returns a metric of `models.training.metrics` as a function of row weights. All tensors are on the CPU.

    Work that does not depend on the weights, such as sorting, is done once, here.
    """
    if target.task == "regression":
        return _measure_values(metric, answers.double().numpy(), truth.double().numpy())
    if metric in RANKINGS:
        return _measure_ranking(metric, answers, truth.numpy())
    probability = answers.double()
    confidence, likeliest = probability.max(1)
    label = labels(answers, target.task, threshold)
    if metric == "accuracy":
        return _mean((label == truth).double().numpy())
    if metric in ("log_loss", "calibrated_log_loss"):
        logits = probability.clamp_min(torch.finfo(torch.float32).tiny).log()
        # The temperature is at a minimum, so fitting it to each resample would change almost nothing.
        temperature = best_temperature(logits, truth) if metric == "calibrated_log_loss" else 1.0
        return _mean(nn.functional.cross_entropy(logits / temperature, truth, reduction="none").numpy())
    if metric == "calibration_error":
        edges = torch.linspace(0, 1, CALIBRATION_BINS + 1)
        bins = (torch.bucketize(answers.max(1).values, edges, right=True) - 1).numpy()
        gap = ((likeliest == truth).double() - confidence).numpy()
        return lambda weights: float(np.abs(np.bincount(bins, gap * weights)).sum() / weights.sum())
    return _measure_labels(metric, label.numpy(), truth.numpy(), target.classes)


def _mean(values: Floats) -> Measure:
    return lambda weights: float(weights @ values / weights.sum())


def _measure_values(metric: str, answers: Floats, truth: Floats) -> Measure:
    error, square = _mean(np.abs(answers - truth)), _mean((answers - truth) ** 2)
    if metric == "mae":
        return error
    if metric == "rmse":
        return lambda weights: square(weights) ** 0.5
    if metric == "mape":
        return _mean(np.abs(answers - truth) / np.maximum(np.abs(truth), np.finfo(np.float64).eps))
    assert metric == "r2"
    centered = truth - truth.mean()
    mean, spread = _mean(centered), _mean(centered**2)

    def r2(weights: Floats) -> float:
        variance = spread(weights) - mean(weights) ** 2
        return 1 - square(weights) / variance if variance > 0 else np.nan

    return r2


def _measure_labels(
    metric: str, label: npt.NDArray[np.int64], truth: npt.NDArray[np.int64], classes: Sequence[str]
) -> Measure:
    def score(weights: Floats) -> float:
        rows, guesses, hits = (
            np.bincount(codes, weights * counted, len(classes))
            for codes, counted in ((truth, 1), (label, 1), (truth, label == truth))
        )
        if metric == "balanced_accuracy":
            return float((hits[rows > 0] / rows[rows > 0]).mean())
        f1 = 2 * hits / np.maximum(rows + guesses, 1)
        if metric == "f1":
            return float(f1[rows + guesses > 0].mean())
        return float(f1[classes.index(metric.removeprefix("f1/"))])

    return score


def _measure_ranking(metric: str, answers: Tensor, truth: npt.NDArray[np.int64]) -> Measure:
    """AUROC or average precision: of class 1 for two classes, else the mean over classes, one against the rest."""
    classes = [1] if answers.shape[1] == 2 else range(answers.shape[1])
    rankings = []
    for code in classes:
        scores = answers[:, code].numpy()
        order = np.argsort(-scores, kind="stable")
        # Rows of equal scores share one point of the curve.
        ends = np.flatnonzero(np.diff(scores[order], append=np.nan))
        rankings.append((order, ends, truth[order] == code))

    def score(weights: Floats) -> float:
        values = []
        for order, ends, positive in rankings:
            ordered = weights[order]
            hits, passed = np.cumsum(ordered * positive)[ends], np.cumsum(ordered)[ends]
            found = np.diff(hits, prepend=0)
            false = passed - hits
            if not 0 < hits[-1] < passed[-1]:
                continue
            if metric == "auroc":
                above = false - np.diff(false, prepend=0) / 2
                values.append(1 - found @ above / (hits[-1] * false[-1]))
            else:
                values.append(found @ (hits / np.maximum(passed, 1)) / hits[-1])
        return float(np.mean(values)) if values else np.nan

    return score
