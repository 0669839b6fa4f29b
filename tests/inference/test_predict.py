"""`Artifact.predict`: pandas and Polars frames of raw rows get the same predictions, in the library of the input."""

import subprocess
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from common.errors import InputError
from inference.artifact import Artifact, Predictions
from inference.frames import from_pandas
from tests.conftest import ROOT
from tests.inference.test_artifact import saved

pandas: Any = pytest.importorskip("pandas")


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """Predicts x; numbers below 0 are rejected."""
    return Artifact.load(saved(tmp_path / "model.pt", column={"range": [0.0, None]}))


def rows(frame: Any) -> list[dict[str, Any]]:
    """The rows of a frame of either library."""
    found: list[dict[str, Any]] = frame.to_dicts() if isinstance(frame, pl.DataFrame) else frame.to_dict("records")
    return found


@pytest.mark.parametrize("library", [pl, pandas])
def test_rows_are_predicted_flagged_or_rejected(artifact: Artifact, library: Any) -> None:
    result = artifact.predict(library.DataFrame({"other": ["a", "b", "c", "d"], "x": ["1", "1e3", "?", "-2"]}))
    assert isinstance(result, Predictions)
    for frame in (result.predictions, result.flags, result.rejected):
        assert isinstance(frame, library.DataFrame)
    predictions = rows(result.predictions)
    assert [row["row"] for row in predictions] == [0, 1, 2]
    assert [row["value"] for row in predictions] == pytest.approx([1.0, 1000.0, float("nan")], nan_ok=True)
    assert rows(result.flags) == [{"row": 1, "flags": "x: 1000 is far outside 0..10"}]
    assert rows(result.rejected) == [{"row": 3, "column": "x", "rule": "outside range", "value": "-2"}]


def test_classes_have_labels_and_probabilities(adult: Artifact, rows: pl.DataFrame) -> None:
    result = adult.predict(pandas.DataFrame(rows.head(200).to_dict(as_series=False)))
    expected = adult.score(rows.head(200)).answers.drop("flags")
    assert list(result.predictions.columns) == ["row", "label", "probability_<=50K", "probability_>50K"]
    assert pl.DataFrame(result.predictions.to_dict("list")).equals(expected)
    assert len(result.rejected) == 0


def test_the_index_of_a_pandas_frame_does_not_matter(artifact: Artifact) -> None:
    result = artifact.predict(pandas.DataFrame({"x": [1.0, -1.0, 3.0]}, index=["c", "a", "b"]))
    assert result.predictions["row"].tolist() == [0, 2]
    assert result.rejected["row"].tolist() == [1]


@pytest.mark.parametrize(
    ("cells", "dtype", "expected"),
    [
        ([1.5, float("nan")], "float32", [1.5, None]),
        ([1, 2], "int16", [1, 2]),
        ([True, False], "bool", [True, False]),
        ([1, None], "Int64", [1, None]),
        ([True, None], "boolean", [True, None]),
        (["a", None], "str", ["a", None]),
        (["a", None], "string", ["a", None]),
        (["a", None, "a"], "category", ["a", None, "a"]),
        ([3, 4], "category", [3, 4]),
        ([None, None], "object", [None, None]),
        ([1, 2.5, None], "object", [1.0, 2.5, None]),
        ([1, "thirty", None], "object", ["1", "thirty", None]),
        ([Decimal("1.5")], "object", [Decimal("1.5")]),
        ([date(2020, 1, 2), None], "object", [date(2020, 1, 2), None]),
        ([np.float64(2.5), None], "object", [2.5, None]),
        ([Path("a.png")], "object", ["a.png"]),
    ],
)
def test_pandas_columns_keep_their_values(cells: list[Any], dtype: str, expected: list[Any]) -> None:
    converted = from_pandas(pandas.DataFrame({"x": pandas.Series(cells, dtype=dtype)}), ["x", "absent"])
    assert converted.columns == ["x"]
    assert converted["x"].to_list() == expected


@pytest.mark.parametrize("unit", ["s", "ns"])
def test_pandas_times_become_utc(unit: str) -> None:
    times = pandas.Series(["2020-01-02 12:00", None]).astype(f"datetime64[{unit}]")
    frame = pandas.DataFrame({"naive": times, "zone": times.dt.tz_localize("Europe/Berlin"), "gap": times - times[0]})
    converted = from_pandas(frame, ["naive", "zone", "gap"])
    assert [str(cell) for cell in converted["naive"]] == ["2020-01-02 12:00:00", "None"]
    assert [str(cell) for cell in converted["zone"]] == ["2020-01-02 11:00:00", "None"]
    assert [str(cell) for cell in converted["gap"]] == ["0:00:00", "None"]


def test_frames_that_cannot_be_used(artifact: Artifact) -> None:
    with pytest.raises(InputError) as error:
        artifact.predict(pandas.DataFrame({"y": [1], "z": [2]}))
    assert str(error.value) == f"frame: has no column of {artifact.path}. Expected x; found y, z."
    with pytest.raises(InputError) as error:
        artifact.predict(pandas.DataFrame([[1, 2]], columns=["x", "x"]))
    assert str(error.value) == "frame: has 2 columns named 'x'. Rename or drop all but one."
    with pytest.raises(TypeError) as wrong:
        artifact.predict([1, 2])
    assert str(wrong.value) == "predict: needs a pandas or Polars DataFrame, not list."


def test_pandas_is_not_imported() -> None:
    program = "import sys, inference.artifact; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
