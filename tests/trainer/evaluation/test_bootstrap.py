"""The paired bootstrap: its metrics match the logged metrics, and its interval matches theory."""

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.schema import TargetSpec
from models.training import metrics
from models.training.metric_names import NAMES
from trainer.evaluation.bootstrap import Advantage, advantage, measure

BINARY = TargetSpec("answer", "binary", ("no", "yes"), (30, 10))
FOUR = TargetSpec("kind", "multiclass", ("a", "b", "c", "never"), (10, 10, 10, 1))
PRICE = TargetSpec("price", "regression")


def predictions_and_truth(target: TargetSpec, rows: int = 60) -> tuple[Tensor, Tensor]:
    """Predictions with ties, and true values without the last of four classes."""
    generator = torch.Generator().manual_seed(0)
    if target.task == "regression":
        truth = torch.randn(rows, generator=generator) + 1000
        return truth + torch.randn(rows, generator=generator), truth
    k = len(target.classes)
    truth = torch.randint(0, min(k, 3), (rows,), generator=generator)
    logits = torch.randn(rows, k, generator=generator) + torch.nn.functional.one_hot(truth, k)
    return torch.softmax(logits.round(), 1), truth


def logged(target: TargetSpec, answers: Tensor, truth: Tensor, threshold: float) -> dict[str, Tensor]:
    metric = metrics.build(target)
    if isinstance(metric, metrics.ClassMetrics):
        metric.threshold = threshold
    metric.update(answers, truth)
    computed: dict[str, Tensor] = metric.compute()
    return computed


@pytest.mark.parametrize(
    ("target", "metric"),
    [
        (target, metric)
        for target in (BINARY, FOUR, PRICE)
        for metric in (*NAMES[target.task], *(f"f1/{name}" for name in target.classes))
    ],
    ids=lambda value: value if isinstance(value, str) else value.task,
)
def test_a_row_of_weight_three_counts_as_three_rows(target: TargetSpec, metric: str) -> None:
    answers, truth = predictions_and_truth(target)
    measured = measure(metric, answers, truth, target, 0.3)
    assert measured(np.ones(len(truth))) == pytest.approx(float(logged(target, answers, truth, 0.3)[metric]), rel=1e-4)
    if metric == "calibrated_log_loss":  # at the temperature of all rows
        return
    times = torch.randint(0, 4, (len(truth),), generator=torch.Generator().manual_seed(1))
    repeated = logged(target, answers.repeat_interleave(times, 0), truth.repeat_interleave(times), 0.3)
    assert measured(times.double().numpy()) == pytest.approx(float(repeated[metric]), rel=1e-4)


def compared(metric: str, rows: int, noise: float) -> tuple[Advantage, np.ndarray]:
    """Advantage of a regression model over the same model with added noise, and the difference of each row."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(rows, generator=generator)
    near = truth + 0.5 * torch.randn(rows, generator=generator)
    far = near + noise * torch.randn(rows, generator=generator)
    found = advantage(metric, *(measure(metric, each, truth, PRICE, 0.5) for each in (near, far)), rows)
    return found, ((far - truth).abs() - (near - truth).abs()).numpy()


def test_the_interval_of_a_mean_matches_its_standard_error() -> None:
    found, differences = compared("mae", 400, 0.5)
    mean, error = float(differences.mean()), float(differences.std() / 400**0.5)
    assert found.value == pytest.approx(mean, rel=1e-4)
    assert (found.low, found.high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=error / 4)
    assert found.second - found.first == pytest.approx(found.value)


def test_the_advantage_is_positive_whether_higher_or_lower_is_better() -> None:
    assert compared("rmse", 200, 1.0)[0].low > 0
    assert compared("r2", 200, 1.0)[0].low > 0
    answers, truth = predictions_and_truth(PRICE, 200)
    models = measure("rmse", answers, truth, PRICE, 0.5), measure("rmse", 2 * truth - answers + 0.01, truth, PRICE, 0.5)
    alike = advantage("rmse", *models, 200)
    assert alike.low < 0 < alike.high


def test_errors_shared_by_both_models_do_not_widen_the_interval() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, hard = torch.zeros(200), 100 * torch.randn(200, generator=generator).abs()
    answers = hard + torch.rand(200, generator=generator), hard + 1 + torch.rand(200, generator=generator)
    found = advantage("mae", *(measure("mae", each, truth, PRICE, 0.5) for each in answers), 200)
    assert found.high - found.low < 0.2


def test_intervals_are_reproducible_and_many_rows_get_fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compared("mae", 50, 0.5)[0] == compared("mae", 50, 0.5)[0]
    calls: list[int] = []

    def count(weights: np.ndarray) -> float:
        calls.append(int(weights.sum()))
        return 0.0

    monkeypatch.setattr("trainer.evaluation.bootstrap.WORK", 30_000)
    advantage("accuracy", count, count, 100)
    few = len(calls) // 2 - 1
    advantage("auroc", count, count, 100, 3)
    assert (few, len(calls) // 2 - 2 - few) == (300, 200)
    assert set(calls) == {100}


def test_an_undefined_metric_gives_nan() -> None:
    answers, ones = torch.full((20, 2), 0.5), torch.ones(20, dtype=torch.int64)
    measured = measure("auroc", answers, ones, BINARY, 0.5)
    found = advantage("auroc", measured, measured, 20)
    assert np.isnan([found.first, found.value, found.low, found.high]).all()
