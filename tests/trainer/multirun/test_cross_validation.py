"""Cross-validation: its files, no leak from test rows, resuming, and settings that are rejected."""

import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from common.errors import InputError
from inference.artifact import ROW, Artifact
from trainer import compose, train
from trainer.command.prepare import prepare
from trainer.config.errors import ConfigError

RunHere = Callable[..., Path]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that `x` mostly separates, and a number to predict."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=120)
    kind = np.where(x + generator.normal(size=120) / 2 > 0, "yes", "no")
    frame = pl.DataFrame({"x": x, "place": generator.choice(["a", "b", "c"], 120), "kind": kind, "amount": 1000 + x})
    path = tmp_path_factory.mktemp("table") / "rows.csv"
    frame.write_csv(path)
    return path


@pytest.fixture(scope="module")
def kind(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and log messages of a cross-validation of classes."""
    stream, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(stream), root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        folder = run(tmp_path_factory.mktemp("kind") / "run", *of_kind(table))
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    return folder, stream.getvalue()


@pytest.fixture(scope="module")
def amount(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a cross-validation of a regression."""
    return run(tmp_path_factory.mktemp("amount") / "run", *settings(table, "amount", "+data.columns={kind: drop}"))


def run(folder: Path, *overrides: str) -> Path:
    return train(compose(*overrides, f"hydra.run.dir={folder}")).folder


def of_kind(table: Path) -> list[str]:
    return settings(table, "kind", "logger=tensorboard", "threshold=f1/no")


def settings(table: Path, target: str, *more: str) -> list[str]:
    quick = ["trainer.max_epochs=3", "logger=none", "baselines=false", "paths.cache=null"]
    folds = ["cross_validate=3", "n_jobs=1"]
    return ["data=table", f"data.path={table}", f"data.target={target}", *quick, *folds, *more]


def metrics(folder: Path) -> dict[str, float]:
    loaded: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    return loaded


def answered(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "out_of_fold.parquet")


def test_each_row_is_predicted_once_by_a_model_that_was_not_trained_on_it(kind: tuple[Path, str], table: Path) -> None:
    folder, messages = kind
    answers, rows = answered(folder), pl.read_csv(table, infer_schema=False)
    assert answers["line"].to_list() == list(range(2, 122))
    assert answers["file"].unique().to_list() == [str(table)]
    assert answers["target"].to_list() == rows["kind"].to_list()
    np.testing.assert_allclose(answers["fold"].value_counts()["count"], 40, atol=2)
    for fold in range(3):
        scored = Artifact.load(folder / f"fold_{fold}" / "model.pt").score(rows.drop("kind")).answers
        own = answers.filter(pl.col("fold") == fold)
        of_fold = scored.filter(pl.col(ROW).is_in((own["line"] - 2).implode()))
        assert own["prediction"].to_list() == of_fold["label"].to_list()
        np.testing.assert_allclose(own["probability_yes"], of_fold["probability_yes"], atol=1e-5)
        accuracy = (own["prediction"] == own["target"]).mean()
        assert metrics(folder / f"fold_{fold}")["test/accuracy"] == pytest.approx(accuracy)
        assert {"checkpoints", "tensorboard", "config.yaml", "audit.json"} <= {
            path.name for path in (folder / f"fold_{fold}").iterdir()
        }
    assert not (folder / "checkpoints").exists()
    accuracies = [metrics(folder / f"fold_{fold}")["test/accuracy"] for fold in range(3)]
    assert metrics(folder)["test/accuracy"] == pytest.approx(np.mean(accuracies))
    assert metrics(folder)["test/accuracy/std"] == pytest.approx(np.std(accuracies, ddof=1))
    closing = messages[messages.index("Result of 3 folds, mean ± standard deviation") :]
    assert f"{np.mean(accuracies):,.5g} ± {np.std(accuracies, ddof=1):.2g}" in closing
    assert messages.count("numbers from") == 2  # the columns, once


@pytest.mark.parametrize("target", ["kind", "amount"])
def test_the_artifact_is_the_mean_of_the_folds(run_here: RunHere, table: Path, amount: Path, target: str) -> None:
    folder = run_here(*settings(table, "kind", "threshold=0.3")) if target == "kind" else amount
    rows = pl.read_csv(table, infer_schema=False).drop(target)
    rows = rows.vstack(rows.head(1).with_columns(x=pl.lit("99"), place=pl.lit("z")))
    artifacts = [Artifact.load(folder / where / "model.pt") for where in (".", "fold_0", "fold_1", "fold_2")]
    whole, *folds = [artifact.score(rows).answers for artifact in artifacts]
    name = "value" if target == "amount" else "probability_yes"
    mean = np.mean([fold[name].to_numpy() for fold in folds], axis=0)
    np.testing.assert_allclose(whole[name].to_numpy(), mean, rtol=1e-5)
    if target == "kind":
        assert whole["label"].to_list() == np.where(mean >= 0.3, "yes", "no").tolist()
    x = pl.read_csv(table)["x"]  # each row is a training row of some fold
    assert whole["flags"].to_list()[-1] == f'x: 99 is far outside {x.min()}..{x.max()}; place: unseen level "z"'
    artifacts[0].check()
    extra = {"card.md": b""}
    torch.jit.load(str(folder / "model.pt"), _extra_files=extra)
    assert b"Means over the folds, each measured on rows that it was not trained on" in extra["card.md"]


def test_predictions_of_a_regression_are_in_the_units_of_the_target(amount: Path, table: Path) -> None:
    answers = answered(amount)
    np.testing.assert_allclose(answers["target"], pl.read_csv(table)["amount"], atol=1e-5)
    for fold in range(3):
        own = answers.filter(pl.col("fold") == fold)
        assert metrics(amount / f"fold_{fold}")["test/mae"] == pytest.approx(
            float((own["prediction"] - own["target"]).abs().mean()), rel=1e-4
        )


def test_features_are_fitted_within_the_fold(run_here: RunHere, tmp_path: Path) -> None:
    """Each shop has one class, so levels or target means from the test rows would give all answers away; without them
    the model can only guess."""
    generator = np.random.default_rng(0)
    shop = np.repeat(np.arange(60), 4)
    names, area = [f"s{each}" for each in shop], generator.normal(size=240)
    frame = pl.DataFrame({"shop": names, "copy": names, "area": area, "sold": generator.integers(0, 2, 60)[shop]})
    frame.write_csv(tmp_path / "shops.csv")
    split = ("data.split.by=group", "data.split.column=copy", "+data.columns={shop: category}")
    folder = run_here(*settings(tmp_path / "shops.csv", "sold", *split, "optimizer.lr=0.05", "trainer.max_epochs=6"))
    answers = answered(folder)
    for fold in range(3):
        lines = answers.filter(pl.col("fold") == fold)["line"].to_numpy() - 2
        spec = Artifact.load(folder / f"fold_{fold}" / "model.pt").spec
        columns = {column["name"]: column for column in spec["columns"]}
        assert not set(columns["shop"]["levels"]) & set(frame["shop"].gather(lines))
        others = np.delete(area, lines)
        assert others.min() <= columns["area"]["min"] < columns["area"]["max"] <= others.max()
        assert not {columns["area"]["min"], columns["area"]["max"]} & set(area[lines])
    right = (answers["prediction"].cast(pl.String) == answers["target"].cast(pl.String)).sum()
    assert 0.3 < right / len(answers) < 0.7


def test_word_vectors_are_fitted_within_the_fold(
    run_here: RunHere, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each row has a unique word: the vectors of a fold do not contain those of its test rows."""
    generator = np.random.default_rng(0)
    words = generator.choice(["red", "green", "blue", "grey"], (90, 4)).tolist()
    lines = [" ".join([f"only{row}", *line]) for row, line in enumerate(words)]
    pl.DataFrame({"line": lines, "kind": ["a", "b"] * 45}).write_csv(tmp_path / "lines.csv")
    common = settings(tmp_path / "lines.csv", "kind", "+data.columns={line: text}", "trainer.max_epochs=1")
    vectors = run_here(*common, "model=word2vec", "model.size=4", folder=tmp_path / "words")
    assert not (vectors / "out_of_fold.parquet").exists()
    caplog.set_level(logging.INFO)
    folder = run_here(*common, "model=mlp", f"model.inputs.text.vectors={vectors}", folder=tmp_path / "used")
    answers = answered(folder)
    for fold in range(3):
        known = (vectors / f"fold_{fold}" / "vectors.txt").read_text().split()
        tested = answers.filter(pl.col("fold") == fold)["line"].to_numpy() - 2
        assert "green" in known
        assert not {f"only{row}" for row in tested} & set(known)
        assert f"are initialized from {vectors}/fold_{fold}" in caplog.text
    assert "perhaps on rows that are tested here" not in caplog.text


def test_folds_by_time_do_not_predict_the_first_rows(run_here: RunHere, table: Path) -> None:
    folder = run_here(*settings(table, "kind", "data.split.by=time", "export=none", "trainer.max_epochs=1"))
    assert answered(folder)["line"].to_list() == list(range(32, 122))
    assert answered(folder)["fold"].to_list() == [0] * 30 + [1] * 30 + [2] * 30


def test_an_interrupted_cross_validation_resumes(kind: tuple[Path, str], table: Path) -> None:
    folder, _ = kind
    before, figures = answered(folder), metrics(folder)
    whole = (folder / "fold_0" / "model.pt").stat().st_mtime_ns
    for name in ("out_of_fold.parquet", "metrics.json", "fold_1/predictions.parquet", "fold_1/model.pt"):
        (folder / name).unlink()
    shutil.rmtree(folder / "fold_2")
    run(folder, *of_kind(table), "resume=auto")
    assert_frame_equal(answered(folder), before)
    assert {name: value for name, value in metrics(folder).items() if "/samples" not in name} == pytest.approx(
        {name: value for name, value in figures.items() if "/samples" not in name}, abs=5
    )
    assert metrics(folder)["test/log_loss"] == figures["test/log_loss"]
    assert (folder / "fold_0" / "model.pt").stat().st_mtime_ns == whole
    assert (folder / "fold_1" / "model.pt").exists()


def test_folds_with_other_settings_are_not_mixed(kind: tuple[Path, str], table: Path) -> None:
    folder, _ = kind
    before = (folder / "config.yaml").read_bytes()
    changed = compose(*of_kind(table), "model.hidden=[8]", "l1=0.1", f"hydra.run.dir={folder}-again")
    changed.hydra.runtime.output_dir = str(folder)
    with pytest.raises(ConfigError) as error:
        train(changed)
    assert str(error.value) == (
        f"{folder} was started with other values of l1, model (see its config.yaml): restore them, or choose another"
        " hydra.run.dir."
    )
    assert (folder / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["cross_validate=1"], "cross_validate: must be 2 or more; it is 1."),
        (["cross_validate=all"], 'cross_validate: must be an integer or null; it is "all".'),
        (
            ["cross_validate=5", "test=false"],
            "test: cross_validate measures on the test rows of each fold: use test=true.",
        ),
        (
            ["cross_validate=5", "data.split.fold=2"],
            "data.split.fold: is set by cross_validate=5 for each run: leave it out.",
        ),
        (["cross_validate=5", "~data.split"], "cross_validate: needs data.split, which this data does not have."),
    ],
)
def test_contradictory_settings_are_rejected(arguments: list[str], problem: str) -> None:
    with pytest.raises(InputError) as error:
        prepare(arguments)
    assert str(error.value) == f"A setting is wrong:\n  command line: {problem}"


def test_a_single_run_cannot_be_resumed_as_a_cross_validation(default_run: tuple[Path, str]) -> None:
    folder, _ = default_run
    with pytest.raises(InputError) as error:
        prepare([f"resume={folder}", "cross_validate=5"])
    assert str(error.value) == (
        "A setting is wrong:\n  command line: resume: resumes a single run, not cross_validate: give the same command"
        " again with hydra.run.dir=FOLDER. Runs that are done are skipped."
    )
