"""The baselines of a run: their inputs, their predictions, and the comparison in the last lines of a run."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from datamodules.schema import InputSpec, TargetSpec, TextSpec
from models.training.losses import MSE, CrossEntropy
from trainer.evaluation.baselines import constant, encode, fit

RunHere = Callable[..., Path]
QUICK = ("logger=none", "export=none", "paths.cache=null", "trainer.threads=1", "callbacks.progress=null")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table whose target `line` is linear in x and z, `cross` is the product of their signs, `level` is their sum,
    and `toss` is independent of them.
    """
    generator = np.random.default_rng(0)
    x, z, noise = generator.normal(size=(3, 600))
    line = np.where(x + z + noise > 0, "yes", "no")
    cross = np.where(x * z > 0, "same", "other")
    frame = pl.DataFrame({"x": x, "z": z, "line": line, "cross": cross, "level": 1000 + 30 * (x + z) + noise})
    toss = pl.Series(generator.choice(["head", "tail"], 600))
    frame.with_columns(shop=pl.Series(np.arange(600) // 4), toss=toss).write_csv(tmp_path / "rows.csv")
    return tmp_path / "rows.csv"


def settings(table: Path, target: str, *more: str) -> list[str]:
    others = [f"{name}: drop" for name in ("line", "cross", "level", "shop", "toss") if name != target]
    return [
        "data=table",
        f"data.path={table}",
        f"data.target={target}",
        f"++data.columns={{{', '.join(others)}}}",
        *QUICK,
        *more,
    ]


def metrics(folder: Path) -> dict[str, float]:
    loaded: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    return loaded


def closing(caplog: pytest.LogCaptureFixture) -> str:
    return caplog.messages[-1]


@pytest.fixture(autouse=True)
def logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_the_linear_model_gets_numbers_known_levels_and_words() -> None:
    texts = ["red green red", "", "green blue", "blue unknown"]
    words = TfidfVectorizer(sublinear_tf=True, vocabulary=["red", "green", "blue"]).fit(texts)
    spec = InputSpec(
        numbers=("a",),
        indicators=("a",),
        categories=(("c", 3), ("d", 4)),
        texts=(TextSpec("t", ("red", "green", "blue"), tuple(words.idf_)),),
    )
    rows = {
        "numbers": torch.tensor([[0.5, 0.0], [-1.0, 1.0], [0.0, 0.0], [2.0, 0.0]]),
        "codes": torch.tensor([[1, 3], [2, 0], [0, 1], [1, 2]], dtype=torch.int32),
        "tokens.t": torch.tensor([1, 2, 1, 2, 3, 3, 0], dtype=torch.int32),
        "offsets.t": torch.tensor([0, 3, 3, 5, 7]),
        "target": torch.zeros(4),
    }
    known = [[1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 1, 0]]
    expected = np.hstack([rows["numbers"].numpy(), known, words.transform(texts).toarray()])
    np.testing.assert_allclose(encode(rows, spec), expected, atol=1e-12)


def test_a_wide_table_is_sparse() -> None:
    rows = {"codes": torch.tensor([[300], [0]], dtype=torch.int32), "target": torch.zeros(2)}
    matrix = encode(rows, InputSpec(categories=(("c", 400),)))
    assert (matrix.shape, matrix.nnz, matrix[0, 299]) == ((2, 399), 1, 1.0)


def classes(seed: int, k: int, rows: int = 400) -> tuple[np.ndarray, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator)
    scores = x @ torch.tensor([[2.0, 0.0, -1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])[:, :k]
    gumbel = -(-torch.rand(rows, k, generator=generator).log()).log()
    return x.double().numpy(), (scores + gumbel).argmax(1)


def fitted(target: TargetSpec, train: Tensor, weights: Tensor | None = None) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Output for the validation rows, their inputs, and the inputs of the training rows."""
    k = len(target.classes)
    inputs = {split: classes(seed, k)[0] for seed, split in enumerate(("train", "val"))}
    rows = {"train": {"target": train}, "val": {"target": classes(1, k)[1]}}
    return fit(inputs, rows, target, CrossEntropy(target), weights)(inputs["val"]), inputs["val"], inputs["train"]


@pytest.mark.parametrize("k", [2, 3])
def test_logistic_regression_matches_scikit_learn_at_the_best_penalty(k: int) -> None:
    truth = classes(0, k)[1]
    target = TargetSpec("y", "binary" if k == 2 else "multiclass", ("a", "b", "c")[:k], (1,) * k)
    output, val, train = fitted(target, truth)
    losses = []
    for power in range(-3, 5):
        scores = LogisticRegression(C=10.0**power, tol=1e-8).fit(train, truth).decision_function(val)
        other = torch.from_numpy(scores).float().reshape(len(val), -1)
        losses.append(float(CrossEntropy(target)(other, classes(1, k)[1])))
    assert float(CrossEntropy(target)(output, classes(1, k)[1])) == pytest.approx(min(losses), rel=1e-3)
    assert output.shape == (400, target.outputs)


def test_a_class_missing_from_the_sample_keeps_its_frequency() -> None:
    train = classes(0, 3)[1].clamp_max(1)
    output, _, _ = fitted(TargetSpec("y", "multiclass", ("a", "b", "c"), (60, 30, 10)), train)
    shares = torch.softmax(output, 1)
    torch.testing.assert_close(shares[:, 2], torch.full((400,), 0.1))
    assert shares[:, 0].std() > 0.1
    alone, _, _ = fitted(TargetSpec("y", "binary", ("a", "b"), (60, 30)), torch.zeros(400, dtype=torch.int64))
    torch.testing.assert_close(torch.sigmoid(alone), torch.full((400, 1), 1 / 3))


def test_class_weights_apply_to_the_linear_model() -> None:
    truth = classes(0, 2)[1]
    target = TargetSpec("y", "binary", ("a", "b"), (1, 1))
    plain, _, _ = fitted(target, truth)
    weighted, _, _ = fitted(target, truth, torch.tensor([1.0, 5.0]))
    assert (weighted - plain).mean() == pytest.approx(math.log(5), abs=0.3)


def test_regression_is_fitted_by_ridge_and_the_constant_is_the_mean() -> None:
    target = TargetSpec("y", "regression", mean=50.0, scale=8.0)
    generator = torch.Generator().manual_seed(0)
    inputs = {split: torch.randn(100, 2, generator=generator, dtype=torch.float64) for split in ("train", "val")}
    rows = {split: {"target": (x @ torch.tensor([1.0, -2.0]).double() + 3).float()} for split, x in inputs.items()}
    model = fit({split: x.numpy() for split, x in inputs.items()}, rows, target, MSE(target), None)
    torch.testing.assert_close(model(inputs["val"].numpy())[:, 0], rows["val"]["target"], atol=1e-3, rtol=0)
    assert constant(target, 3).tolist() == [[0.0]] * 3
    odds = constant(TargetSpec("y", "binary", ("a", "b"), (30, 10)), 2)
    torch.testing.assert_close(torch.sigmoid(odds), torch.full((2, 1), 0.25))


def test_the_command_of_the_linear_model_is_given_unless_the_network_is_better(
    run_here: RunHere, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = ("model=mlp", "model.hidden=[8]", "optimizer.lr=0.01", "trainer.max_epochs=5", "threshold=f1", "seed=1")
    own += ("calibrate=false",)
    folder = run_here(*settings(table, "line", *own))
    found, text = metrics(folder), closing(caplog)
    assert "Result\nmetric" in text
    assert text.splitlines()[1].split() == ["metric", "val", "test", "linear", "constant"]
    for name in ("log_loss", "auroc", "f1/yes", "loss"):
        cells = [
            f"{found[f'{place}/{name}']:,.5g}" for place in ("val", "test", "baseline/linear", "baseline/constant")
        ]
        assert [name, *cells] in [line.split() for line in text.splitlines()]
    assert "linear: scikit-learn's logistic regression; constant: the class frequencies of the training rows;" in text
    low, high = (found[f"baseline/advantage/log_loss/{end}"] for end in ("low", "high"))
    gained = found["baseline/advantage/log_loss"]
    assert gained == pytest.approx(found["baseline/linear/log_loss"] - found["test/log_loss"], abs=1e-6)
    assert low <= gained <= high
    assert low < 0
    outcome = "No clear difference between the network and"
    if high < 0:
        outcome = "The network is worse than"
    assert (
        f"{outcome} the linear model: test/log_loss {found['test/log_loss']:,.5g} vs"
        f" {found['baseline/linear/log_loss']:,.5g}, advantage {gained:,.3g} (95 % CI {low:,.3g} to {high:,.3g}).\n"
        "The linear model is simpler. Train it with: python train.py model=linear data=table"
        f" data.path={table} data.target=line 'data.columns={{cross: drop, level: drop, shop: drop, toss: drop}}'"
        " paths.cache=null threshold=f1 seed=1 calibrate=false\n"
    ) in text
    assert found["baseline/constant/auroc"] == 0.5
    assert found["baseline/seconds"] > 0


def test_the_network_is_better_on_a_nonlinear_target(
    run_here: RunHere, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    choice = ("monitor=val/balanced_accuracy", "mode=max", "optimizer.lr=0.02", "trainer.max_epochs=20")
    folder = run_here(*settings(table, "cross", *choice))
    found, text = metrics(folder), closing(caplog)
    assert found["baseline/advantage/balanced_accuracy/low"] > 0.2
    assert found["baseline/linear/balanced_accuracy"] < 0.6
    assert "The network is better than the linear model: test/balanced_accuracy" in text
    assert "The linear model is simpler" not in text
    assert "constant baseline" not in text


def test_noise_shows_no_clear_difference_from_the_constant_baseline(
    run_here: RunHere, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_here(*settings(table, "toss", "monitor=val/accuracy", "mode=max", "trainer.max_epochs=3"))
    found = metrics(folder)
    assert " between the network and the constant baseline: test/accuracy" in closing(caplog)
    better = found["baseline/linear/accuracy"] > found["baseline/constant/accuracy"]
    assert ("The linear model is simpler" in closing(caplog)) is better


def test_regression_compares_the_rmse(run_here: RunHere, table: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = run_here(*settings(table, "level", "optimizer.lr=1e-9", "trainer.max_epochs=1"))
    found, text = metrics(folder), closing(caplog)
    assert found["baseline/linear/rmse"] < 10 < 35 < found["baseline/constant/rmse"]
    assert found["baseline/constant/r2"] == pytest.approx(0, abs=0.05)
    assert "scikit-learn's ridge regression; constant: the mean of the training rows;" in text
    assert "The network is worse than the linear model: test/rmse" in text
    assert "python train.py model=linear data=table" in text


def test_a_linear_network_is_compared_with_scikit_learns(
    run_here: RunHere, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_here(*settings(table, "line", "model=linear", "trainer.max_epochs=5"))
    assert "No clear difference between this linear model and scikit-learn's: test/log_loss" in closing(caplog)
    assert "The linear model is simpler" not in closing(caplog)


def test_dependent_rows_and_samples_are_mentioned(
    run_here: RunHere, table: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.evaluation.baselines.ROWS", 100)
    split = ("data.split.by=group", "data.split.column=shop")
    folder = run_here(*settings(table, "line", *split, "trainer.max_epochs=1"))
    text = closing(caplog)
    assert "Rows of data.split.by=group are not independent of each other: the true interval is wider." in text
    assert "; on a sample of 100 of 384 train rows; on a sample of 100 of 120 test rows;" in text
    assert 0.5 < metrics(folder)["baseline/linear/auroc"] < 1


def test_a_recipe_without_a_network_stays_in_the_command(
    run_here: RunHere, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_here("experiment=imbalanced", *settings(table, "line", "trainer.max_epochs=1"))
    assert "baseline/advantage/balanced_accuracy" in metrics(folder)
    assert "python train.py model=linear data=table experiment=imbalanced" in closing(caplog)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("test=false", "\n\nNot compared with a linear model, because test=false.\n"),
        ("baselines=false", ""),
    ],
)
def test_no_baselines_without_test_rows_or_if_switched_off(
    run_here: RunHere, table: Path, caplog: pytest.LogCaptureFixture, setting: str, text: str
) -> None:
    folder = run_here(*settings(table, "line", setting, "trainer.max_epochs=1"))
    assert not [name for name in metrics(folder) if name.startswith("baseline")]
    assert text in closing(caplog)
    assert "scikit-learn" not in closing(caplog)


def test_images_alone_have_no_linear_baseline(run_here: RunHere, caplog: pytest.LogCaptureFixture) -> None:
    limits = ("+trainer.limit_train_batches=1", "trainer.max_epochs=1")
    folder = run_here("data=digits", "model=cnn", "model.channels=4", *QUICK, *limits)
    assert not [name for name in metrics(folder) if name.startswith("baseline")]
    assert "linear" not in closing(caplog)


def test_cross_validation_prints_the_means_of_the_baselines(
    run_here: RunHere, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_here(*settings(table, "line", "cross_validate=2", "n_jobs=1", "trainer.max_epochs=1"))
    values = [metrics(folder / f"fold_{fold}")["baseline/linear/auroc"] for fold in range(2)]
    assert metrics(folder)["baseline/linear/auroc"] == pytest.approx(np.mean(values))
    row = next(line for line in closing(caplog).splitlines() if line.startswith("auroc"))
    assert f"{np.mean(values):,.5g} ± {np.std(values, ddof=1):.2g}" in row
    assert "data.target=line" in caplog.text
    assert "cross_validate=2" in caplog.text
