"""Metrics compared with scikit-learn, also for inputs where some are undefined."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn import metrics as sk
from torch import Tensor
from torchmetrics import Metric

from datamodules.schema import TargetSpec, Task
from models.training import metrics
from models.training.calibration import LIMIT
from models.training.metric_names import HIGHER_IS_BETTER, NAMES
from tests.models.problems import target


def measure(spec: TargetSpec, answers: Tensor, truth: Tensor) -> dict[str, float]:
    """Computes the metrics with three updates, as in an epoch with three batches."""
    metric: Metric = metrics.build(spec)
    for part in np.array_split(np.arange(len(truth)), 3):
        metric.update(answers[part], truth[part])
    return {name: float(value) for name, value in metric.compute().items()}


def calibrated_log_loss(probabilities: np.ndarray, truth: np.ndarray) -> float:
    logits = np.log(np.clip(probabilities.astype(np.float64), np.finfo(np.float32).tiny, None))

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        return float(np.mean(logsumexp(scaled, 1) - scaled[np.arange(len(truth)), truth]))

    return float(minimize_scalar(loss, bounds=(-LIMIT, LIMIT), method="bounded", options={"xatol": 1e-9}).fun)


def calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == truth
    bins = np.clip(np.ceil(confidence * 15) - 1, 0, 14)
    return float(sum(abs(hit[bins == b].sum() - confidence[bins == b].sum()) for b in range(15)) / len(truth))


def expected(spec: TargetSpec, probabilities: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Metrics by scikit-learn; means over the classes that occur in `truth`."""
    k = len(spec.classes)
    label = (probabilities[:, 1] >= 0.5).astype(int) if k == 2 else probabilities.argmax(1)
    ranked = [c for c in ([1] if k == 2 else range(k)) if 0 < (truth == c).sum() < len(truth)]
    pairs = [(truth == c, probabilities[:, c]) for c in ranked]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        per_class = sk.f1_score(truth, label, labels=range(k), average=None, zero_division=0)
        return {
            "accuracy": sk.accuracy_score(truth, label),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, label),
            "f1": sk.f1_score(truth, label, average="macro", zero_division=0),
            "auroc": float(np.mean([sk.roc_auc_score(*pair) for pair in pairs])) if pairs else math.nan,
            "average_precision": float(np.mean([sk.average_precision_score(*pair) for pair in pairs]))
            if pairs
            else math.nan,
            "log_loss": sk.log_loss(truth, probabilities, labels=range(k)),
            "calibrated_log_loss": calibrated_log_loss(probabilities, truth),
            "calibration_error": calibration_error(probabilities, truth),
        } | {f"f1/{name}": per_class[c] for c, name in enumerate(spec.classes)}


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(3, 60),
    task=st.sampled_from(["binary", "multiclass"]),
    absent=st.booleans(),
    ties=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_classification_metrics_equal_those_of_scikit_learn(
    seed: int, rows: int, task: Task, absent: bool, ties: bool
) -> None:
    """Also with a class without rows, with a single class, and with ties."""
    spec = target(task)
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.softmax(torch.randn(rows, len(spec.classes), generator=generator) * 2, 1)
    if ties:
        probabilities = (probabilities * 4 + 0.01).round() + 1
        probabilities /= probabilities.sum(1, keepdim=True)
    truth = torch.randint(0, len(spec.classes) - absent, (rows,), generator=generator)
    ours, theirs = measure(spec, probabilities, truth), expected(spec, probabilities.numpy(), truth.numpy())
    if ties:  # these probabilities lie on bin edges, where rounding decides
        theirs["calibration_error"] = ours["calibration_error"]
    assert ours == pytest.approx(theirs, abs=2e-5, nan_ok=True)


@given(seed=st.integers(0, 10_000), rows=st.integers(3, 60), scale=st.sampled_from([1e-4, 1.0, 1e6]))
@settings(max_examples=40, deadline=None)
def test_regression_metrics_equal_those_of_scikit_learn_in_any_unit(seed: int, rows: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = (torch.randn(rows, generator=generator) + 3) * scale
    answers = truth + torch.randn(rows, generator=generator) * scale / 2
    y, p = truth.double().numpy(), answers.double().numpy()
    assert measure(target("regression"), answers, truth) == pytest.approx(
        {
            "rmse": sk.root_mean_squared_error(y, p),
            "mae": sk.mean_absolute_error(y, p),
            "r2": sk.r2_score(y, p),
            "mape": sk.mean_absolute_percentage_error(y, p),
        },
        rel=1e-6,
    )


def test_sums_of_large_values_are_exact() -> None:
    truth = torch.tensor([2.0**24 + 2, 2.0**24 + 2, 2.0**24, 2.0**24])
    ours = measure(target("regression"), truth + 2, truth)
    assert (ours["mae"], ours["rmse"], ours["r2"]) == (2.0, 2.0, pytest.approx(-3.0))


def test_r2_of_a_constant_target_is_nan() -> None:
    ours = measure(target("regression"), torch.tensor([1.0, 2.0, 3.0]), torch.full((3,), 2.0))
    assert math.isnan(ours["r2"])
    assert ours["mae"] == pytest.approx(2 / 3)


def test_the_log_loss_of_a_wrong_prediction_with_probability_1_is_finite() -> None:
    ours = measure(target("binary"), torch.tensor([[1.0, 0.0]]).repeat(3, 1), torch.ones(3).long())
    assert 80 < ours["log_loss"] < 100


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_metrics_have_the_declared_names(task: Task) -> None:
    spec = target(task)
    if task == "regression":
        answers, truth = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])
    else:
        answers, truth = torch.eye(len(spec.classes)).repeat(2, 1), torch.arange(len(spec.classes)).repeat(2)
    names = [*NAMES[task], *(f"f1/{name}" for name in spec.classes)]
    assert list(measure(spec, answers, truth)) == names
    assert {name for declared in NAMES.values() for name in declared} >= HIGHER_IS_BETTER
