"""Thresholds: the optimum on the rows, and the same value in metrics and artifact."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from datamodules.schema import TargetSpec
from inference.artifact import Artifact
from models.training.metrics import ClassMetrics
from models.training.thresholds import best_threshold, check_threshold

BINARY = TargetSpec("y", "binary", ("no", "yes"), (3, 3))
METRICS = ["accuracy", "balanced_accuracy", "f1", "f1/no", "f1/yes"]


@given(
    st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(0, 1)), min_size=2, max_size=30),
    st.sampled_from(METRICS),
)
def test_no_other_threshold_is_better(rows: list[tuple[float, int]], metric: str) -> None:
    probability = torch.tensor([one for one, _ in rows])
    truth = torch.tensor([label for _, label in rows])
    if truth.float().mean() in (0, 1):
        return
    measured = ClassMetrics(("no", "yes"))
    measured.update(torch.stack([1 - probability, probability], 1), truth)

    def at(threshold: float) -> float:
        measured.threshold = threshold
        return float(measured.compute()[metric])

    threshold, value = best_threshold(probability, truth, metric, ("no", "yes"))
    assert at(threshold) == pytest.approx(value, abs=1e-6)
    others = [0.0, 1.1, *probability.tolist(), *(probability.double() + 1e-9).tolist()]
    assert value >= max(at(other) for other in others) - 1e-6


@pytest.mark.parametrize(
    ("threshold", "target", "message"),
    [
        (
            "auroc",
            BINARY,
            "threshold=auroc: must be a number from 0 to 1, or one of accuracy, balanced_accuracy, f1, f1/no, f1/yes.",
        ),
        (
            1.5,
            BINARY,
            "threshold=1.5: must be a number from 0 to 1, or one of accuracy, balanced_accuracy, f1, f1/no, f1/yes.",
        ),
        (
            "f1",
            TargetSpec("price", "regression"),
            "threshold=f1: only for targets with two classes, unlike 'price'.",
        ),
    ],
)
def test_invalid_thresholds_are_refused(threshold: float | str, target: TargetSpec, message: str) -> None:
    with pytest.raises(InputError) as error:
        check_threshold(threshold, target)
    assert str(error.value) == message


def test_the_artifact_has_the_threshold_chosen_on_validation(run_here: Callable[..., Path], data_dir: Path) -> None:
    settings = ("data=telco_churn", f"paths.data={data_dir}", "trainer.max_epochs=3", "logger=none", "baselines=false")
    folder = run_here(*settings, "threshold=f1/Yes")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0.1 < metrics["fit/threshold"] < 0.45  # a quarter of the customers leave
    artifact = Artifact.load(folder / "model.pt")
    assert artifact.spec["threshold"] == metrics["fit/threshold"]
    probabilities = torch.tensor(artifact.selftest["answers"]["probabilities"])[:, 1]
    labels = torch.tensor(artifact.selftest["answers"]["label"])
    assert torch.equal(labels, (probabilities >= metrics["fit/threshold"]).long())
    usual = json.loads((run_here(*settings, folder=folder.with_name("usual")) / "metrics.json").read_text())
    assert metrics["val/f1/Yes"] > usual["val/f1/Yes"] + 0.01
    assert metrics["val/auroc"] == usual["val/auroc"]
