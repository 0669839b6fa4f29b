"""Metrics equal scikit-learn's, also where data are degenerate."""

import math

import numpy
import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor

from datamodules.schema import TargetSpec, Task
from models import metrics
from models.metric_names import NAMES
from tests.models.problems import target


def measure(target: TargetSpec, answers: Tensor, truth: Tensor, batches: int = 3) -> dict[str, float]:
    metric = metrics.build(target)
    for part, true in zip(answers.chunk(batches), truth.chunk(batches), strict=True):
        metric.update(part, true)
    return {name: float(value) for name, value in metric.compute().items()}


def guesses(classes: int, rows: int, seed: int, sharpness: float = 2.0) -> tuple[Tensor, Tensor]:
    """Probabilities that are right more often than not, rounded so that many are tied, and the truth."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, (rows,), generator=generator)
    logits = torch.randn(rows, classes, generator=generator)
    logits[torch.arange(rows), truth] += 1
    probabilities = (torch.softmax(sharpness * logits, dim=1) * 50).round() + 0.5
    return probabilities / probabilities.sum(1, keepdim=True), truth


def of_classes(answers: Tensor, index: Tensor, classes: tuple[str, ...]) -> dict[str, float]:
    """The same by scikit-learn, means taken over the classes that are there."""
    probabilities, truth, k = answers.double().numpy(), index.numpy(), len(classes)
    whole = probabilities / probabilities.sum(1, keepdims=True)  # to double precision
    label = probabilities.argmax(1)
    scored = [1] if k == 2 else [c for c in range(k) if (truth == c).any()]
    each = [(truth == c, probabilities[:, c]) for c in scored]
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    bins = numpy.ceil(confidence * metrics.CALIBRATION_BINS)
    gaps = [(bins == b).mean() * abs((confidence - right)[bins == b].mean()) for b in numpy.unique(bins)]
    f1 = reference.f1_score(truth, label, labels=range(k), average=None, zero_division=0)
    return {
        "accuracy": reference.accuracy_score(truth, label),
        "balanced_accuracy": reference.recall_score(truth, label, labels=numpy.unique(truth), average="macro"),
        "f1": reference.f1_score(truth, label, average="macro"),
        "auroc": numpy.mean([reference.roc_auc_score(true, p) for true, p in each]),
        "average_precision": numpy.mean([reference.average_precision_score(true, p) for true, p in each]),
        "log_loss": reference.log_loss(truth, whole, labels=range(k)),
        "calibration_error": sum(gaps),
    } | {f"f1/{name}": value for name, value in zip(classes, f1, strict=True)}


@pytest.mark.parametrize("task", ["binary", "multiclass"])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_classes_equal_those_of_scikit_learn(task: Task, seed: int) -> None:
    spec = target(task)
    probabilities, truth = guesses(len(spec.classes), 1_000, seed)
    expected = of_classes(probabilities, truth, spec.classes)
    assert measure(spec, probabilities, truth) == pytest.approx(expected, rel=1e-5)
    assert set(expected) == {*NAMES[spec.task], *(f"f1/{name}" for name in spec.classes)}


def test_a_class_that_the_data_lack_is_left_out_of_the_means() -> None:
    spec = target("multiclass")
    probabilities, truth = guesses(3, 500, seed=0)
    probabilities, truth = probabilities[truth != 1], truth[truth != 1]
    expected = of_classes(probabilities, truth, spec.classes)
    measured = measure(spec, probabilities, truth)
    assert measured == pytest.approx(expected, rel=1e-5)
    assert measured["f1/mid"] == 0
    assert measured["auroc"] > 0.7


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_one_class_alone_has_no_rank_and_all_else(task: Task) -> None:
    spec = target(task)
    probabilities, truth = guesses(len(spec.classes), 200, seed=0)
    probabilities, truth = probabilities[truth == 1], truth[truth == 1]
    measured = measure(spec, probabilities, truth)
    right = float((probabilities.argmax(1) == 1).float().mean())
    assert [measured["accuracy"], measured["balanced_accuracy"]] == pytest.approx([right, right])
    assert measured["log_loss"] == pytest.approx(float(-probabilities[:, 1].log().mean()))
    assert math.isnan(measured["auroc"])
    assert math.isnan(measured["average_precision"])


def test_a_probability_of_zero_for_the_truth_is_a_finite_log_loss() -> None:
    measured = measure(target("binary"), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1]), batches=1)
    assert measured["log_loss"] == pytest.approx(-math.log(torch.finfo(torch.float32).tiny) / 2)
    assert measured["accuracy"] == 0.5


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_metrics_of_numbers_equal_those_of_scikit_learn_in_any_unit(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = scale * (5 + torch.randn(1_000, generator=generator))
    values = truth + scale * torch.randn(1_000, generator=generator)
    pair = truth.double().numpy(), values.double().numpy()
    assert measure(target("regression"), values, truth) == pytest.approx(
        {
            "rmse": reference.root_mean_squared_error(*pair),
            "mae": reference.mean_absolute_error(*pair),
            "r2": reference.r2_score(*pair),
            "mape": reference.mean_absolute_percentage_error(*pair),
        },
        rel=1e-6,
    )


def test_a_constant_target_has_no_r2_and_a_truth_of_zero_a_huge_mape() -> None:
    truth, values = torch.full((9,), 3.0), torch.arange(9.0)
    measured = measure(target("regression"), values, truth)
    assert math.isnan(measured["r2"])
    assert measured["mae"] == pytest.approx(reference.mean_absolute_error(truth, values))
    zero, one = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])
    expected = reference.mean_absolute_percentage_error(zero.double(), one.double())
    assert measure(target("regression"), one, zero, batches=1)["mape"] == pytest.approx(expected)


def test_sums_of_large_values_are_exact() -> None:
    truth = torch.full((4,), 2.0**24)
    truth[:2] += 2
    measured = measure(target("regression"), truth + 2, truth, batches=2)
    assert (measured["mae"], measured["rmse"]) == (2.0, 2.0)
    assert measured["r2"] == pytest.approx(-3.0)
