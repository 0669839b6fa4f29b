"""Postprocessing on validation rows after training: temperature and selected members, also in the artifact."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.artifact import Artifact
from models.training.calibration import best_temperature, log_loss_at

QUICK = ("logger=none", "baselines=false", "trainer.threads=1", "callbacks.progress=null")


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), temperature=st.floats(0.2, 5.0), classes=st.integers(2, 4))
def test_the_temperature_of_scaled_logits_is_found(seed: int, temperature: float, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4000, classes, generator=generator, dtype=torch.float64) * 2
    truth = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator).squeeze(1)
    found = best_temperature(logits * temperature, truth)
    assert found == pytest.approx(temperature, rel=0.15)
    best = log_loss_at(logits * temperature, truth, found)
    for near in (found * 0.99, found * 1.01):
        assert best <= log_loss_at(logits * temperature, truth, near)


def test_the_temperature_is_bounded_if_all_predictions_are_correct() -> None:
    logits = torch.tensor([[2.0, -2.0], [-2.0, 2.0]])
    temperature = best_temperature(logits, torch.tensor([0, 1]))
    assert 1 / 20 <= temperature < 1
    assert log_loss_at(logits, torch.tensor([0, 1]), temperature) < 1e-15
    assert best_temperature(logits, torch.tensor([1, 0])) == pytest.approx(20)


def test_a_run_is_calibrated_on_validation_rows_and_so_is_the_artifact(run_here: Callable[..., Path]) -> None:
    long = ("trainer.max_epochs=40", "callbacks.early_stopping=null", "callbacks.checkpoint=null", "model.dropout=0")
    folder = run_here(*QUICK, *long, "data.split.fractions=[0.2,0.4,0.4]")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["fit/temperature"] > 1  # forty epochs on few rows are overconfident
    assert metrics["val/log_loss"] < metrics["val/loss"]
    assert metrics["val/log_loss"] == pytest.approx(metrics["val/calibrated_log_loss"], rel=1e-4)
    Artifact.load(folder / "model.pt").check()


def test_a_temperature_at_its_limit_is_reported(
    run_here: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    cells = [-2.0 - i / 99 if i % 2 else 2.0 + i / 99 for i in range(200)]
    pl.DataFrame({"x": cells, "y": ["no" if x < 0 else "yes" for x in cells]}).write_csv(tmp_path / "rows.csv")
    run_here(*QUICK, "data=table", f"data.path={tmp_path}/rows.csv", "data.target=y", "trainer.max_epochs=5")
    line = next(message for message in caplog.messages if message.startswith("temperature: "))
    assert line.startswith("temperature: 0.05, the limit of its range (val/log_loss ")


def test_the_requested_number_of_members_is_kept(
    run_here: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = run_here(
        *QUICK, "model=tabm", "model.members=6", "model.hidden=[16]", "model.keep=2", "trainer.max_epochs=2"
    )
    assert "members: kept 2 of 6" in caplog.messages
    loaded = torch.jit.load(str(folder / "model.pt"))
    assert loaded.network.heads.weight.shape[0] == 2
    Artifact.load(folder / "model.pt").check()


def test_predictions_are_clipped_near_the_training_range(run_here: Callable[..., Path], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(300, generator=generator, dtype=torch.float64)
    table = pl.DataFrame({"x": x.tolist(), "price": (100 + 50 * x).tolist()})
    table.write_csv(tmp_path / "rows.csv")
    folder = run_here(
        *QUICK,
        "data=table",
        f"data.path={tmp_path / 'rows.csv'}",
        "data.target=price",
        "data.numbers=standard",
        "model=linear",
        "optimizer.lr=0.1",
        "trainer.max_epochs=30",
    )
    artifact = Artifact.load(folder / "model.pt")
    answers = artifact.score(pl.DataFrame({"x": ["0.5", "100", "-100"]})).answers
    near, high, low = answers["value"].to_list()
    assert near == pytest.approx(125, abs=3)
    assert high == pytest.approx(155, abs=0.5)  # 100 to 150, widened by a tenth
    assert low == pytest.approx(95, abs=0.5)
