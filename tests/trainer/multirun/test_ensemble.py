"""Ensembles: one artifact that averages runs from several seeds, and resuming."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch

from inference.artifact import Artifact
from tests.conftest import run_script
from trainer import compose, train
from trainer.command.prepare import prepare
from trainer.config.errors import ConfigError

RunHere = Callable[..., Path]
QUICK = (
    *("n_jobs=1", "trainer.max_epochs=2", "logger=none", "callbacks.early_stopping=null", "baselines=false"),
    "calibrate=false",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an ensemble of two members."""
    folder = tmp_path_factory.mktemp("ensemble") / "run"
    return train(compose("ensemble=2", *QUICK, f"hydra.run.dir={folder}")).folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    return loaded


def metrics(folder: Path) -> dict[str, float]:
    loaded: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    return loaded


def test_the_artifact_predicts_the_mean_of_its_members(run: Path, run_here: RunHere, tmp_path: Path) -> None:
    folder = run
    alone = [run_here(f"seed={seed}", *QUICK, folder=tmp_path / str(seed)) for seed in (0, 1)]
    for index, each in enumerate(alone):
        for name, values in weights(each).items():
            assert torch.equal(weights(folder / f"member_{index}")[name], values)
    extra = {"selftest.json": ""}
    torch.jit.load(str(folder / "model.pt"), _extra_files=extra)
    selftest = json.loads(extra["selftest.json"])
    numbers = {name: torch.tensor(cells, dtype=torch.float64) for name, cells in selftest["numbers"].items()}
    answers = [torch.jit.load(str(each / "model.pt"))(numbers, {}, {})["probabilities"] for each in (folder, *alone)]
    torch.testing.assert_close(answers[0], (answers[1] + answers[2]) / 2, rtol=0, atol=1e-6)
    Artifact.load(folder / "model.pt").check()
    found = metrics(folder)
    losses = [metrics(each)["test/log_loss"] for each in alone]
    assert found["member/test/log_loss"] == pytest.approx(sum(losses) / 2)
    assert found["member/test/log_loss/std"] == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
    assert found["test/log_loss"] < found["member/test/log_loss"]  # the loss is convex


def test_the_console_has_one_line_per_member_and_the_log_file_all_messages(tmp_path: Path) -> None:
    done = run_script("train.py", "ensemble=2", *QUICK, "calibrate=true", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("member_")]
    for index, line in enumerate(lines):
        loss = metrics(tmp_path / f"member_{index}")["val/loss"]
        assert re.fullmatch(
            rf"member_{index}: val/loss {loss:.5g}; 2 epochs in [\d.]+ s, the best was epoch [12]", line
        )
    assert len(lines) == 2
    assert done.stdout.count("temperature: ") == done.stdout.count("run folder ") == 1
    assert (tmp_path / "train.log").read_text().count("temperature: ") == 3
    assert done.stdout.count("Columns") == 1
    table = done.stdout[done.stdout.index("Result\n") :]
    assert "\nlog_loss " in table
    assert "calibrated_log_loss" not in table
    assert "test/calibrated_log_loss" in metrics(tmp_path)


def test_an_interrupted_ensemble_resumes_to_the_same_weights(run: Path) -> None:
    folder = run
    whole, loaded = metrics(folder), weights(folder / "member_1")
    shutil.rmtree(folder / "member_1")
    (folder / "metrics.json").unlink()
    first = (folder / "member_0" / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    train(compose("ensemble=2", *QUICK, f"hydra.run.dir={folder}", "resume=auto"))
    assert (folder / "member_0" / "checkpoints" / "best.ckpt").stat().st_mtime_ns == first
    for name, values in weights(folder / "member_1").items():
        assert torch.equal(loaded[name], values)
    assert metrics(folder)["test/loss"] == whole["test/loss"]


def test_members_with_other_settings_are_not_mixed(run: Path) -> None:
    changed = compose("ensemble=2", "l1=0.1", *QUICK, f"hydra.run.dir={run}-again")
    changed.hydra.runtime.output_dir = str(run)
    with pytest.raises(ConfigError) as error:
        train(changed)
    assert str(error.value) == (
        f"{run} was started with other values of l1 (see its config.yaml): restore them, or choose another"
        " hydra.run.dir."
    )


def test_regressions_and_networks_with_members_are_averaged(run_here: RunHere) -> None:
    folder = run_here("data=diabetes", "model=tabm", "model.members=3", "model.hidden=[8]", "ensemble=2", *QUICK)
    artifact = Artifact.load(folder / "model.pt")
    artifact.check()
    assert artifact.score(pl.DataFrame({"age": ["0.01"]})).answers["value"].is_finite().all()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["ensemble=1"], "command line: ensemble: must be 2 or more; it is 1."),
        (
            ["ensemble=2", "cross_validate=3"],
            "command line: ensemble: cannot be combined with cross_validate, whose artifact averages its folds: leave"
            " one out.",
        ),
        (
            ["ensemble=2", "model=word2vec", "data=sms_spam"],
            "command line: ensemble: the vectors of Word2Vec cannot be averaged: leave it out.",
        ),
    ],
)
def test_settings_that_ensembles_do_not_support_are_rejected(arguments: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        prepare(arguments)
    assert str(error.value) == f"A setting is wrong:\n  {problem}"
