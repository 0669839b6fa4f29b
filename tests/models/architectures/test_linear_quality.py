"""model=linear compared with scikit-learn's ridge and logistic regression on the same encoded rows."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import PredefinedSplit, cross_val_score
from torch import Tensor
from torch.nn import functional as F

from datamodules.schema import InputSpec, TextSpec
from models.architectures.linear import Linear
from models.layers.linear_solver import FOLDS, PENALTIES, solve
from models.training.prediction_head import all_logits
from scripts.benchmark.linear import encoded
from tests.models.problems import MIXED, mixed_rows, script, start
from trainer.evaluation.baselines import encode

Batch = dict[str, Tensor]
TABLES: dict[str, Any] = {"binary": load_breast_cancer, "multiclass": load_wine, "regression": load_diabetes}


def splits(task: str) -> tuple[Batch, Batch]:
    """Two thirds of a real table and the rest, standardized."""
    features, truth = (torch.tensor(each) for each in TABLES[task](return_X_y=True))
    order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(0))
    train, val = order[: 2 * len(order) // 3], order[2 * len(order) // 3 :]
    features = (features - features[train].mean(0)) / features[train].std(0)
    if task == "regression":
        truth = ((truth - truth[train].mean()) / truth[train].std()).float()
    return tuple({"numbers": features[part].float(), "target": truth[part]} for part in (train, val))


def theirs(features: np.ndarray, truth: np.ndarray, task: str) -> Any:
    """scikit-learn's model with the best penalty over the same folds."""
    folds = PredefinedSplit(np.arange(len(truth)) % FOLDS)
    scoring = "neg_mean_squared_error" if task == "regression" else "neg_log_loss"

    def make(penalty: float) -> Any:
        return (
            Ridge(penalty)
            if task == "regression"
            else LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=9999, solver="newton-cholesky")
        )

    def score(penalty: float) -> float:
        return float(cross_val_score(make(penalty), features, truth, scoring=scoring, cv=folds).mean())

    return make(max(PENALTIES, key=score)).fit(features, truth)


def answers(model: Any, features: np.ndarray, task: str) -> Tensor:
    """Predictions in the form of network outputs."""
    if task == "regression":
        return torch.from_numpy(model.predict(features)).unsqueeze(1)
    logits = torch.from_numpy(model.predict_log_proba(features))
    return logits[:, 1:] - logits[:, :1] if task == "binary" else logits


def loss_of(output: Tensor, truth: Tensor) -> float:
    if truth.is_floating_point():
        return float(F.mse_loss(output[:, 0], truth).sqrt())
    return float(F.cross_entropy(all_logits(output), truth))


def linear(train: Batch, outputs: int) -> Linear:
    return Linear(InputSpec(numbers=tuple(map(str, range(train["numbers"].shape[1])))), outputs)


@pytest.mark.parametrize("task", TABLES)
@torch.no_grad()
def test_the_start_equals_scikit_learn(task: str) -> None:
    train, val = splits(task)
    network = linear(train, 3 if task == "multiclass" else 1)
    start(network, train)
    model = theirs(train["numbers"].double().numpy(), train["target"].numpy(), task)
    expected = answers(model, val["numbers"].double().numpy(), task)
    assert loss_of(network(val), val["target"]) == pytest.approx(loss_of(expected, val["target"]), rel=0.005)


@pytest.mark.parametrize(("data", "metric"), [("breast_cancer", "log_loss"), ("diabetes", "rmse")])
def test_a_run_is_as_accurate_as_scikit_learn(data: str, metric: str, run_here: Callable[..., Path]) -> None:
    """The default command, on the rows that it encodes."""
    folder = run_here(
        f"data={data}", "model=linear", "calibrate=false", "logger=none", "export=none", "baselines=false"
    )
    target, features, truth = encoded([f"data={data}"])
    model = theirs(features["train"], truth["train"], target.task)
    ours = json.loads((folder / "metrics.json").read_text())
    for split in ("val", "test"):
        loss = loss_of(answers(model, features[split], target.task), torch.from_numpy(truth[split])) * target.scale
        assert ours[f"{split}/{metric}"] < 1.005 * loss


def test_duplicate_few_and_extreme_rows_are_solved() -> None:
    column = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    truth = 2 * column[:, 0] + 1
    weight, bias = solve(torch.cat([column, column], 1), truth, 1)
    assert weight[0].tolist() == pytest.approx([1.0, 1.0], abs=1e-2)
    assert bias.tolist() == pytest.approx([1.0], abs=1e-2)
    for rows in (1, 2, 9):
        weight, bias = solve(column[:rows], truth[:rows], 1)
        assert bool(weight.isfinite().all() & bias.isfinite().all())
    weight, bias = solve(torch.cat([1e20 * column, 1e20 * column, column], 1), truth, 1)
    assert bool(weight.isfinite().all() & bias.isfinite().all())


WORDS = replace(MIXED, images=())
SPECS = {"numbers and words": WORDS, "words alone": replace(WORDS, numbers=())}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@torch.no_grad()
def test_word_weights_are_solved(spec: InputSpec) -> None:
    train, val = mixed_rows(200), mixed_rows(200, seed=1)
    network = Linear(spec, 1)
    start(network, train)
    assert loss_of(script(network.eval())(val), val["target"]) == pytest.approx(loss_of(network(val), val["target"]))
    features, more = encode(train, spec), encode(val, spec)
    expected = answers(theirs(features, train["target"].numpy(), "binary"), more, "binary")
    assert loss_of(network(val), val["target"]) == pytest.approx(loss_of(expected, val["target"]), rel=0.005)
    assert loss_of(network(val), val["target"]) < 0.66


@torch.no_grad()
def test_wide_and_nonfinite_rows_leave_the_weights_at_zero() -> None:
    many = tuple(map(str, range(2001)))
    texts = Linear(replace(WORDS, texts=(TextSpec("title", many, (1.0,) * 2001),)), 1)
    start(texts, mixed_rows(32))
    wide = {"numbers": torch.randn(20, 2001), "target": torch.arange(20) % 2}
    broken = {"numbers": torch.full((20, 1), torch.inf), "target": torch.arange(20) % 2}
    networks = [texts, linear(wide, 1), linear(broken, 1)]
    for network, batch in zip(networks[1:], (wide, broken), strict=True):
        start(network, batch)
    for network in networks:
        assert all(bool((weight == 0).all()) for weight in network.parameters())


def test_texts_without_known_words_give_the_class_frequencies() -> None:
    spec = InputSpec(texts=(TextSpec("title", (), ()),))
    linear = Linear(spec, 1)
    target = torch.tensor([1, 1, 1, 0] * 8)
    batch = {"tokens.title": torch.zeros(0).int(), "offsets.title": torch.zeros(33).long(), "target": target}
    with torch.no_grad():
        linear.start(batch)
        assert linear(batch)[:, 0].sigmoid().tolist() == pytest.approx([0.75] * 32, abs=1e-3)
