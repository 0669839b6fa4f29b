"""The plots of a run, and the entries for calibration and threshold in the artifact."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchmetrics.functional.classification import multiclass_calibration_error

from inference.artifact import Artifact
from trainer.evaluation.plots import Bin, calibration_error, predicted_figure, reliability, reliability_figure, show
from trainer.loop.trainer import Trainer

RunHere = Callable[..., Path]
QUICK = ("trainer.max_epochs=2", "baselines=false", "logger=none", "trainer.threads=1")


def described(folder: Path) -> tuple[dict[str, Any], str]:
    """Spec and model card of the artifact."""
    extra: dict[str, Any] = {"spec.json": None, "card.md": None}
    torch.jit.load(str(folder / "model.pt"), _extra_files=extra)
    return json.loads(extra["spec.json"]), extra["card.md"].decode()


def test_rows_fall_into_bins_of_equal_width() -> None:
    probability = torch.tensor([0.0, 0.05, 0.5, 0.55, 0.74, 1.0])
    happened = torch.tensor([0, 1, 1, 0, 1, 1])
    assert reliability(probability, happened, bins=4) == [
        Bin(0.0, 0.25, 2, pytest.approx(0.025), 0.5),
        Bin(0.5, 0.75, 3, pytest.approx(1.79 / 3), pytest.approx(2 / 3)),
        Bin(0.75, 1.0, 1, 1.0, 1.0),
    ]


def test_the_calibration_error_equals_the_metric() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(500, 3, generator=generator).softmax(1)
    truth = torch.randint(0, 3, (500,), generator=generator)
    confidence, label = probabilities.max(1)
    error = calibration_error(reliability(confidence, label == truth))
    assert error == pytest.approx(float(multiclass_calibration_error(probabilities, truth, 3, n_bins=15)), rel=1e-5)


@pytest.mark.parametrize(
    ("observed", "interval"), [(0.0, (0.0, 0.2775)), (0.5, (0.2366, 0.7634)), (1.0, (0.7225, 1.0))]
)
def test_the_wilson_interval_of_ten_rows(observed: float, interval: tuple[float, float]) -> None:
    assert Bin(0.0, 0.1, 10, 0.05, observed).interval() == pytest.approx(interval, abs=1e-4)


def test_any_name_can_be_plotted(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False)
    names = ["$x_{$", "収入", r"\frac{a}{b}", "a very long name of a class that is longer than forty characters"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in names:
            figure = reliability_figure(
                [Bin(0.0, 0.1, 1, 0.05, 0.0)], [], temperature=1.0, threshold=0.5, positive=name
            )
            show(figure, tmp_path / "a.png", trainer)
        constant = torch.zeros(3)
        show(predicted_figure(constant, constant, 0.0, 0.0), tmp_path / "b.png", trainer)
    assert Image.open(tmp_path / "a.png").size == (800, 800)


def test_two_classes(run_here: RunHere) -> None:
    folder = run_here(*QUICK, "logger=tensorboard", "threshold=f1")
    spec, card = described(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert spec["temperature"] == metrics["fit/temperature"] != 1.0
    assert spec["threshold"] == metrics["fit/threshold"]
    assert spec["clamp"] is None
    calibration = spec["calibration"]
    assert (calibration["split"], calibration["of"]) == ("test", "malignant")
    before, after = calibration["before"], calibration["after"]
    assert before["bins"] != after["bins"]
    for each in (before, after):
        assert sum(bin["rows"] for bin in each["bins"]) == 115
        assert sum(bin["rows"] * bin["observed"] for bin in each["bins"]) == pytest.approx(43)
    assert (
        f"The label is malignant if its probability is at least {spec['threshold']:.4g}. Probabilities are scaled with"
        f" temperature {spec['temperature']:.4g}, fitted on validation rows. The expected calibration error of"
        f" malignant on test rows is {after['error']:.3g} ({before['error']:.3g} without temperature), in bins of"
        " equal width.\n"
    ) in card
    assert Image.open(folder / "reliability.png").size == (800, 800)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["reliability"]


def test_the_likeliest_of_several_classes(run_here: RunHere) -> None:
    folder = run_here(*QUICK, "data=wine", "test=false")
    spec, _ = described(folder)
    calibration = spec["calibration"]
    assert (calibration["split"], calibration["of"]) == ("validation", "the likeliest class")
    measured = json.loads((folder / "metrics.json").read_text())["val/calibration_error"]
    assert calibration["after"]["error"] == pytest.approx(measured, abs=1e-6)
    assert spec["threshold"] is None


def test_without_calibration_there_is_no_temperature(run_here: RunHere) -> None:
    spec, card = described(run_here(*QUICK, "data=iris", "calibrate=false"))
    assert spec["temperature"] == 1.0
    assert spec["calibration"]["before"] == spec["calibration"]["after"]
    assert "temperature" not in card.replace(" without temperature)", "")


def test_predictions_are_clipped_to_the_range_in_the_artifact(run_here: RunHere) -> None:
    folder = run_here(*QUICK, "data=diabetes")
    spec, card = described(folder)
    assert (spec["temperature"], spec["calibration"]) == (None, None)
    low, high = spec["clamp"]
    assert 0 <= low < 30
    assert 346 < high < 400
    assert f"Values are clipped to {low:.6g} ... {high:.6g}: the training range, widened by at most a tenth.\n" in card
    absurd = pl.DataFrame({column["name"]: [-1e6, 1e6] for column in spec["columns"]})
    values = Artifact.load(folder / "model.pt").score(absurd).answers["value"]
    assert values.is_between(low, high).all()
    assert Image.open(folder / "predicted.png").size == (800, 800)
