"""scripts/evaluate.py: the metrics of training on labeled rows."""

import json
from pathlib import Path

import polars as pl
import pytest

from common.errors import InputError
from inference.artifact import Artifact
from scripts.evaluate import evaluate
from scripts.evaluate import heading as evaluate_heading
from tests.conftest import run_script


@pytest.mark.parametrize(
    ("run", "file"), [("adult_run", "adult/adult.csv.gz"), ("housing_run", "california_housing/housing.csv")]
)
def test_metrics_of_the_test_rows_match_the_run(
    run: str, file: str, data_dir: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from omegaconf import OmegaConf

    from datamodules.readers.read import LINE
    from trainer.config.instantiate import instantiate

    folder: Path = request.getfixturevalue(run)
    datamodule = instantiate(OmegaConf.load(folder / "config.yaml").data)
    datamodule.setup()
    raw = pl.read_csv(data_dir / file, infer_schema=False)
    raw[datamodule.row_locations("test")[LINE] - 2].write_csv(tmp_path / "test.csv")
    done = run_script(
        "scripts/evaluate.py", "--artifact", str(folder / "model.pt"), "--input", "test.csv", "--output", "out.json",
        cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    ours = json.loads((tmp_path / "out.json").read_text())
    counts = {name: ours.pop(name) for name in ("rows", "rejected", "without_target")}
    assert counts == {"rows": datamodule.splits["test"]["rows"], "rejected": 0, "without_target": 0}
    theirs = json.loads((folder / "metrics.json").read_text())
    del theirs["test/loss"]
    expected = {name.removeprefix("test/"): value for name, value in theirs.items() if name.startswith("test/")}
    assert ours == pytest.approx(expected, rel=1e-5)
    heading, first, *_ = done.stdout.splitlines()
    assert heading == evaluate_heading(Artifact.load(folder / "model.pt"))
    name, value = first.split()
    assert float(value.replace(",", "")) == pytest.approx(ours[name], rel=1e-5)


def test_the_threshold_of_the_artifact_is_printed_and_used(adult: Artifact, rows: pl.DataFrame, tmp_path: Path) -> None:
    rows.write_csv(source := tmp_path / "rows.csv")
    assert evaluate_heading(adult) == "income: class 1 (>50K) if its probability is at least 0.5"
    adult.spec["threshold"] = 0.0
    try:
        assert evaluate_heading(adult) == "income: class 1 (>50K) if its probability is at least 0"
        assert evaluate(adult, str(source))["f1/<=50K"] == 0
    finally:
        adult.spec["threshold"] = 0.5


def test_rejected_and_unlabeled_rows_are_counted(adult: Artifact, rows: pl.DataFrame, tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    odd = rows.head(6).with_columns(
        pl.Series("income", [" <=50K", ">50K.", "", "?", "rich", " >50K "]),
        pl.Series("age", ["39", "thirty", "53", "28", "37", "49"]),
    )
    odd.write_csv(source)
    measured = evaluate(adult, str(source))
    assert {name: measured[name] for name in ("rows", "rejected", "without_target")} == {
        "rows": 2,
        "rejected": 1,
        "without_target": 3,
    }


def test_no_target_column(adult: Artifact, rows: pl.DataFrame, tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    rows.head(3).drop("income").write_csv(source)
    with pytest.raises(InputError) as error:
        evaluate(adult, str(source))
    assert str(error.value) == (
        f"{source}: has no column 'income', the target of {adult.path}. Give labeled rows, or use predict.py for rows"
        " without labels."
    )


def test_no_row_to_measure(adult: Artifact, rows: pl.DataFrame, tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    rows.head(3).with_columns(income=pl.lit("?")).write_csv(source)
    with pytest.raises(InputError) as error:
        evaluate(adult, str(source))
    assert str(error.value) == f"{source}: no row to measure: all rows are rejected, or have no known 'income'."


def test_a_file_that_cannot_be_written(adult: Artifact, rows: pl.DataFrame, tmp_path: Path) -> None:
    output = tmp_path / "none" / "metrics.json"
    rows.head(50).write_csv(tmp_path / "rows.csv")
    command = ["--artifact", str(adult.path), "--input", f"{tmp_path}/rows.csv"]
    ended = run_script("scripts/evaluate.py", *command, "--output", str(output))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"{output}: cannot be written: No such file or directory.\n"
