"""Inference with an artifact: predictions, flags, rejected rows, and files that cannot be loaded."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.errors import ArtifactError
from inference.artifact import Artifact, Scored


def with_cells(rows: pl.DataFrame, **cells: list[str | None]) -> pl.DataFrame:
    length = len(next(iter(cells.values())))
    return rows.head(length).with_columns(pl.Series(name.replace("_", "-"), column) for name, column in cells.items())


def flags(scored: Scored) -> list[str]:
    return scored.answers["flags"].to_list()


def test_the_self_test(adult: Artifact) -> None:
    adult.check()


def test_raw_and_cleaned_rows_get_the_same_predictions(adult: Artifact, rows: pl.DataFrame) -> None:
    cleaned = rows.with_columns(pl.all().str.strip_chars().replace("?", ""))
    typed = cleaned.with_columns(pl.all().replace("", None)).with_columns(
        pl.col("age", "fnlwgt", "education-num", "capital-gain", "capital-loss").cast(pl.Int64),
        pl.col("hours-per-week").cast(pl.Float32),
    )
    raw = adult.score(rows)
    assert len(raw.answers) == len(rows)
    assert raw.rejects.is_empty()
    assert adult.score(cleaned).answers.equals(raw.answers)
    assert adult.score(typed).answers.equals(raw.answers)


def test_text_in_a_number_column_is_rejected(adult: Artifact, rows: pl.DataFrame) -> None:
    odd = with_cells(rows, age=["39", " thirty", "50"], hours_per_week=["40", "full time", "12h"])
    scored = adult.score(odd)
    assert scored.answers["row"].to_list() == [0]
    assert scored.rejects.rows() == [
        (1, "age", "not a number", " thirty"),
        (1, "hours-per-week", "not a number", "full time"),
        (2, "hours-per-week", "not a number", "12h"),
    ]


def test_unusual_values_are_flagged_and_predicted(adult: Artifact, rows: pl.DataFrame) -> None:
    odd = with_cells(
        rows,
        age=["39", "", "NA", "130", "120"],
        workclass=["?", "Robot", " Private ", "Private", "private"],
        sex=["Male", "Male", "?", "Male", "Male"],
        hours_per_week=["40", "40", "40", "1e9", "inf"],
    )
    scored = adult.score(odd)
    assert scored.rejects.is_empty()
    assert flags(scored) == [
        "",
        'age: missing; workclass: unseen level "Robot"',
        "age: missing; sex: missing",
        "age: 130 is far outside 17..90; hours-per-week: 1000000000 is far outside 1..99",
        'workclass: unseen level "private"; hours-per-week: missing',
    ]
    assert scored.answers.select(pl.all().is_null().sum()).sum_horizontal().item() == 0


def test_missing_columns_count_as_missing_values_and_unknown_ones_are_ignored(
    adult: Artifact, rows: pl.DataFrame
) -> None:
    few = rows.head(5).drop("age", "workclass").with_columns(name=pl.lit("x"))
    empty = rows.head(5).with_columns(age=pl.lit(""), workclass=pl.lit(None, pl.String))
    assert adult.compare_columns(few.columns) == (["age", "workclass"], ["name"])
    scored = adult.score(few)
    assert scored.answers.equals(adult.score(empty).answers)
    assert flags(scored) == ["age: missing"] * 5


def test_no_rows_and_only_rejected_rows(adult: Artifact, rows: pl.DataFrame) -> None:
    some = adult.score(rows.head(3)).answers
    none = adult.score(rows.clear())
    assert none.answers.schema == some.schema
    assert none.answers.is_empty()
    rejected = adult.score(with_cells(rows, age=["x", "y"]))
    assert rejected.answers.is_empty()
    assert rejected.rejects["row"].to_list() == [0, 1]


def test_a_regression_predicts_in_the_units_of_its_target(housing_run: Path, data_dir: Path) -> None:
    artifact = Artifact.load(housing_run / "model.pt")
    artifact.check()
    rows = pl.read_csv(data_dir / "california_housing" / "housing.csv")
    scored = artifact.score(rows.head(2000))
    assert scored.answers.columns == ["row", "value", "flags"]
    assert 100_000 < scored.answers["value"].to_numpy().mean() < 400_000


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_row_is_predicted_or_rejected(adult: Artifact, data: st.DataObject) -> None:
    cells = st.one_of(
        st.none(),
        st.text(max_size=8),
        st.sampled_from(["?", " ", "NaN", "inf", "-1", "1e400", "1,000", "0x1F", "Private", "12.0", "\u00a0Male"]),
        st.floats().map(str),
    )
    names = data.draw(st.lists(st.sampled_from(adult.columns), min_size=1, unique=True))
    length = data.draw(st.integers(1, 6))
    frame = pl.DataFrame(
        {name: data.draw(st.lists(cells, min_size=length, max_size=length)) for name in names},
        schema=dict.fromkeys(names, pl.String),
    )
    scored = adult.score(frame)
    together = sorted([*scored.answers["row"], *scored.rejects["row"].unique()])
    assert together == list(range(length))
    probabilities = scored.answers.select("probability_<=50K", "probability_>50K").to_numpy()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    # Predicted one at a time, rows get the same predictions and flags.
    alone = pl.concat(adult.score(frame[row]).answers for row in range(length))
    assert alone["flags"].to_list() == flags(scored)
    assert alone["probability_>50K"].to_list() == pytest.approx(scored.answers["probability_>50K"].to_list(), abs=1e-6)


class Constant(nn.Module):
    """Predicts the number x, so that tests see the effect of the description alone."""

    def forward(
        self, numbers: dict[str, Tensor], strings: dict[str, list[str]], images: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"value": numbers["x"].float()}


def saved(path: Path, **changes: Any) -> Path:
    """Saves a small artifact of a regression on column x, with changes of its description."""
    column = {"name": "x", "kind": "number", "missing": True, "min": 0.0, "max": 10.0, "range": [None, None]}
    spec = {
        "format": 1,
        "columns": [column | {"replace": []} | changes.pop("column", {})],
        "unused": [],
        "missing": ["", "?"],
        "target": {"name": "y", "task": "regression", "classes": [], "mean": 0.0, "scale": 1.0, "replace": {}},
        "versions": {"torch": "2.11.0"},
    }
    selftest = {"numbers": {"x": [1.0, 2.0]}, "strings": {}, "answers": {"value": changes.pop("value", [1.0, 2.0])}}
    extra = {"spec.json": json.dumps(spec | changes), "selftest.json": json.dumps(selftest)}
    with pytest.warns((FutureWarning, DeprecationWarning)):
        torch.jit.save(torch.jit.script(Constant()), path, _extra_files=extra)
    return path


def test_a_number_outside_the_valid_range_is_rejected(tmp_path: Path) -> None:
    artifact = Artifact.load(saved(tmp_path / "model.pt", column={"range": [0.0, None]}))
    scored = artifact.score(pl.DataFrame({"x": ["0", "-0.5", None, "1e6"]}))
    assert scored.rejects.rows() == [(1, "x", "outside range", "-0.5")]
    assert flags(scored) == ["", "", "x: 1000000 is far outside 0..10"]


def test_values_beyond_half_of_the_training_range_are_far_outside(tmp_path: Path) -> None:
    artifact = Artifact.load(saved(tmp_path / "model.pt"))
    scored = artifact.score(pl.DataFrame({"x": [15.0, 15.5, -5.0, -5.25]}))
    assert flags(scored) == ["", "x: 15.5 is far outside 0..10", "", "x: -5.25 is far outside 0..10"]


def test_a_replaced_number_is_not_flagged(tmp_path: Path) -> None:
    column = {"replace": [[-999.0, None], [99.0, 9.0]], "missing": False}
    artifact = Artifact.load(saved(tmp_path / "model.pt", column=column))
    assert flags(artifact.score(pl.DataFrame({"x": ["-999", "99", "-99"]}))) == [
        "x: missing",
        "",
        "x: -99 is far outside 0..10",
    ]


def test_a_replaced_level_is_not_flagged(tmp_path: Path) -> None:
    level = {"name": "job", "kind": "category", "missing": False, "levels": ["clerk"], "replace": [["Clerk", "clerk"]]}
    number = {"name": "x", "kind": "number", "missing": True, "min": 0.0, "max": 1.0, "range": [None, None]}
    path = saved(tmp_path / "model.pt", columns=[number | {"replace": []}, level])
    scored = Artifact.load(path).score(pl.DataFrame({"job": ["clerk", " Clerk", "smith"]}))
    assert flags(scored) == ["", "", 'job: unseen level "smith"']


def error_of(path: Path) -> str:
    with pytest.raises(ArtifactError) as error:
        Artifact.load(path)
    return str(error.value)


def test_no_such_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    assert error_of(path) == f"{path}: no such file. Give the model.pt of a run folder."


def test_a_folder(tmp_path: Path) -> None:
    assert error_of(tmp_path) == f"{tmp_path}: cannot be read: Is a directory. Give the model.pt of a run folder."


@pytest.mark.parametrize("content", [b"", b"age,workclass\n39,Private\n", b"\x80\x02}q\x00."])
def test_a_file_that_is_not_an_artifact(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert error_of(path) == (
        f"{path}: not an artifact of Lathe: not a TorchScript file. Give the model.pt of a run folder."
    )


def test_another_zip_and_another_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    message = f"{path}: not an artifact of Lathe: it has no spec.json. Give the model.pt of a run folder."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")
    assert error_of(path) == message
    with pytest.warns((FutureWarning, DeprecationWarning)):
        torch.jit.save(torch.jit.script(Constant()), path)
    assert error_of(path) == message
    torch.save({"weight": torch.ones(3)}, path)
    assert error_of(path) == message


@pytest.mark.parametrize("spec", ["[]", "{}", "not JSON", '{"format": null}'])
def test_another_spec(tmp_path: Path, spec: str) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/extra/spec.json", spec)
    assert error_of(path) == (
        f"{path}: not an artifact of Lathe: its spec.json has no format. Give the model.pt of a run folder."
    )


def test_a_newer_format(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", format=2)
    assert error_of(path) == (
        f"{path}: has format 2, but this version of Lathe reads formats up to 1. Use the version that wrote it, or a"
        " newer one."
    )


def test_a_truncated_artifact(adult_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    content = (adult_run / "model.pt").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert error_of(path) == f"{path}: the file is damaged: File is not a zip file. Copy or export it again."


def test_a_flipped_bit_in_a_weight(adult_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    content = bytearray((adult_run / "model.pt").read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        weight = max(
            (part for part in archive.infolist() if "/data/" in part.filename), key=lambda part: part.file_size
        )
    content[weight.header_offset + 30 + len(weight.filename) + weight.file_size // 2 + 64] ^= 1
    path.write_bytes(content)
    assert error_of(path) == (
        f"{path}: the file is damaged: Bad CRC-32 for file '{weight.filename}'. Copy or export it again."
    )


def test_a_flipped_byte_is_refused_or_harmless(adult: Artifact, rows: pl.DataFrame, tmp_path: Path) -> None:
    content = adult.path.read_bytes()
    expected = adult.score(rows.head(50)).answers
    path = tmp_path / "model.pt"
    refusals = 0
    for position in range(0, len(content), len(content) // 150):
        flipped = bytearray(content)
        flipped[position] ^= 0x41
        path.write_bytes(flipped)
        try:
            artifact = Artifact.load(path)
        except ArtifactError:
            refusals += 1
        else:
            assert artifact.score(rows.head(50)).answers.equals(expected)
    assert refusals > 75


def test_a_failed_self_test(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", value=[1.0, 2.5])
    with pytest.raises(ArtifactError) as error:
        Artifact.load(path).check()
    assert str(error.value) == (
        f"{path}: the self-test failed: value differ by 0.5 from those stored at export (torch 2.11.0, here"
        f" {torch.__version__}). Do not use its predictions; export the model again on this machine."
    )
