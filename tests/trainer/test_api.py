"""`from trainer import compose, load, train`."""

import json
import logging
from pathlib import Path

import polars as pl
import pytest
from hydra.core.hydra_config import HydraConfig

from trainer import Result, compose, load, train
from trainer.config.errors import ConfigError

IRIS = pl.DataFrame(
    {
        "sepal length (cm)": ["5.1", "6.3", "long"],
        "sepal width (cm)": ["3.5", "2.5", "3"],
        "petal length (cm)": ["1.4", "99", "4"],
        "petal width (cm)": ["0.2", "1.9", "1"],
    }
)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("api") / "run"
    return train(compose("data=iris", "model=linear", "trainer.max_epochs=3", f"hydra.run.dir={folder}"))


def test_train_returns_the_metrics_the_folder_and_the_module(result: Result) -> None:
    written = json.loads((result.folder / "metrics.json").read_text())
    assert {name: result.metrics[name] for name in written} == written
    assert result.value == result.metrics["val/loss"]
    assert result.module is not None
    assert result.module.target.classes == ("setosa", "versicolor", "virginica")
    assert json.loads((result.folder / "status.json").read_text())["state"] == "done"
    assert "INFO task: multiclass" in (result.folder / "train.log").read_text()


def test_load_predicts_and_returns_rejected_rows(result: Result) -> None:
    predictions = load(result.folder / "model.pt").predict(IRIS)
    assert predictions.predictions["label"].to_list() == ["setosa", "virginica"]
    assert predictions.rejected.select("row", "column", "value").rows() == [(2, "sepal length (cm)", "long")]
    assert predictions.flags["row"].to_list() == [1]
    assert "petal length (cm)" in predictions.flags["flags"][0]


def test_compose_reports_all_mistakes_and_leaves_hydra_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        compose("model.hiden=64", "sed=1")
    assert str(error.value) == (
        "2 settings are wrong:\n"
        "  command line: model.hiden: unknown key. Did you mean hidden?\n"
        "  command line: sed: unknown key. Did you mean seed?"
    )
    assert HydraConfig.instance().cfg is None


def test_compose_takes_one_run_only() -> None:
    with pytest.raises(ConfigError) as error:
        compose("hydra.mode=MULTIRUN", "seed=0,1")
    assert str(error.value) == "compose: these settings are a sweep; compose one run, or use python train.py -m."


def test_a_run_is_resumed_from_python(result: Result, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    resumed = train(compose(f"resume={result.folder}", "trainer.max_epochs=4"))
    assert resumed.folder == result.folder
    assert resumed.metrics["fit/epochs"] == 4
