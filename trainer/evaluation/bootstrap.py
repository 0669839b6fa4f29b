"""How far chance in the rows that were tested could move the difference between two models."""

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
"""A metric of answered rows when row i counts `weights[i]` times, weights (rows,)."""

RESAMPLES, LEAST = 1000, 200
WORK = 50_000_000
"""Rows times resamples times classes that are ranked: of more rows there are fewer resamples, down to LEAST."""
RANKINGS = ("auroc", "average_precision")


@dataclass(frozen=True)
class Advantage:
    """A metric of two models, by how much the first is better, and the 95 % interval of that; below 0 it is worse."""

    first: float
    second: float
    value: float
    low: float
    high: float


def advantage(metric: str, first: Measure, second: Measure, rows: int, classes: int = 2) -> Advantage:
    """The first model's over the second, both measured on the same `rows`.

    Paired bootstrap with percentile intervals (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter
    13; Koehn 2004, EMNLP): rows are drawn with replacement, the same for both models, so that what makes a row hard for
    both drops out. It takes rows for independent and both models as they are: what another seed, another split or other
    training rows would change is not in it. NaN where the metric is not defined.
    """
    sign = 1.0 if metric.split("/")[0] in HIGHER_IS_BETTER else -1.0
    generator = np.random.default_rng(0)
    rankings = max(classes, 1) if metric in RANKINGS else 1
    resamples = int(np.clip(WORK / (rows * rankings), LEAST, RESAMPLES))
    differences = np.empty(resamples)
    for index in range(resamples):
        weights = np.bincount(generator.integers(0, rows, rows), minlength=rows).astype(np.float64)
        differences[index] = sign * (first(weights) - second(weights))
    once = np.ones(rows)
    values = first(once), second(once)
    known = differences[np.isfinite(differences)]  # a resample may lack a class
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return Advantage(*values, sign * (values[0] - values[1]), float(low), float(high))


def measure(metric: str, answers: Tensor, truth: Tensor, target: TargetSpec, threshold: float) -> Measure:
    """The metric of `models.training.metrics` for answers on the CPU, as a function of the rows' weights.

    What can be done without the weights, such as sorting, is done here, once.
    """
    if target.task == "regression":
        return _of_values(metric, answers.double().numpy(), truth.double().numpy())
    if metric in RANKINGS:
        return _of_rankings(metric, answers, truth.numpy())
    probability = answers.double()
    confidence, likeliest = probability.max(1)
    label = labels(answers, target.task, threshold)
    if metric == "accuracy":
        return _mean((label == truth).double().numpy())
    if metric in ("log_loss", "calibrated_log_loss"):
        logits = probability.clamp_min(torch.finfo(torch.float32).tiny).log()
        # At a minimum a resample's own temperature would change next to nothing.
        temperature = best_temperature(logits, truth) if metric == "calibrated_log_loss" else 1.0
        return _mean(nn.functional.cross_entropy(logits / temperature, truth, reduction="none").numpy())
    if metric == "calibration_error":
        edges = torch.linspace(0, 1, CALIBRATION_BINS + 1)
        bins = (torch.bucketize(answers.max(1).values, edges, right=True) - 1).numpy()
        gap = ((likeliest == truth).double() - confidence).numpy()
        return lambda weights: float(np.abs(np.bincount(bins, gap * weights)).sum() / weights.sum())
    return _of_labels(metric, label.numpy(), truth.numpy(), target.classes)


def _mean(values: Floats) -> Measure:
    return lambda weights: float(weights @ values / weights.sum())


def _of_values(metric: str, answers: Floats, truth: Floats) -> Measure:
    error, square = _mean(np.abs(answers - truth)), _mean((answers - truth) ** 2)
    if metric == "mae":
        return error
    if metric == "rmse":
        return lambda weights: square(weights) ** 0.5
    if metric == "mape":
        return _mean(np.abs(answers - truth) / np.maximum(np.abs(truth), np.finfo(np.float64).eps))
    assert metric == "r2"
    centred = truth - truth.mean()
    mean, spread = _mean(centred), _mean(centred**2)

    def r2(weights: Floats) -> float:
        variance = spread(weights) - mean(weights) ** 2
        return 1 - square(weights) / variance if variance > 0 else np.nan

    return r2


def _of_labels(
    metric: str, label: npt.NDArray[np.int64], truth: npt.NDArray[np.int64], classes: Sequence[str]
) -> Measure:
    def score(weights: Floats) -> float:
        rows, guesses, hits = (
            np.bincount(which, weights * counted, len(classes))
            for which, counted in ((truth, 1), (label, 1), (truth, label == truth))
        )
        if metric == "balanced_accuracy":
            return float((hits[rows > 0] / rows[rows > 0]).mean())
        f1 = 2 * hits / np.maximum(rows + guesses, 1)
        if metric == "f1":
            return float(f1[rows + guesses > 0].mean())
        return float(f1[classes.index(metric.removeprefix("f1/"))])

    return score


def _of_rankings(metric: str, answers: Tensor, truth: npt.NDArray[np.int64]) -> Measure:
    """Of two classes that of class 1, of more the mean over each against the others."""
    classes = [1] if answers.shape[1] == 2 else range(answers.shape[1])
    rankings = []
    for each in classes:
        scores = answers[:, each].numpy()
        order = np.argsort(-scores, kind="stable")
        # Rows of equal scores are passed together.
        ends = np.flatnonzero(np.diff(scores[order], append=np.nan))
        rankings.append((order, ends, truth[order] == each))

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
