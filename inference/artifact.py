"""Inference with an artifact: loads and checks it, predicts for raw rows, flags unusual and rejects invalid rows."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import polars as pl
import torch
from torch import Tensor

from common.cells import as_date, as_number, as_text, between, clean_text
from common.errors import ArtifactError, InputError
from common.image_decoder import decode_column
from common.torchscript import quiet
from inference.frames import from_pandas, is_pandas, to_pandas

FORMAT = 1
"""Version of `spec.json` that is written and read. It increases when old code could misread a new file."""
TOLERANCE = 1e-5
"""Maximum difference of predictions at export and in the self-test: of probabilities, or of values in standard
deviations of the target."""
FAR = 0.5
"""A number is flagged as far outside the training range beyond this fraction of the range."""

ROW = "row"
REJECTS = pl.Schema({ROW: pl.Int64, "column": pl.String, "rule": pl.String, "value": pl.String})

Frame = TypeVar("Frame")
"""A pandas or Polars DataFrame."""


@dataclass(frozen=True)
class Predictions(Generic[Frame]):
    """Result of `Artifact.predict`, as frames of the library of the input. `row` is the position in the input, from 0.

    Each input row is either in `predictions` or in `rejected`.
    """

    predictions: Frame
    """`row`; `label` and one `probability_<class>` per class for classification, `value` for regression."""
    flags: Frame
    """`row` and `flags` of the predicted rows with something unusual, such as an unseen category."""
    rejected: Frame
    """`row`, `column`, `rule` and `value` of each invalid cell."""


@dataclass(frozen=True)
class Scored:
    """Result of `Artifact.score`. Each row is either in `answers` or, with each invalid cell, in `rejects`.

    `answers`: `row`, the position in the frame; `label` and `probability_<class>`, or `value`; `flags`, unusual values.
    `rejects`: `row`, `column`, `rule`, `value`.
    """

    answers: pl.DataFrame
    rejects: pl.DataFrame


class Artifact:
    """A loaded `model.pt`; docs/architecture.md describes its content."""

    def __init__(self, path: Path, module: torch.jit.ScriptModule, spec: dict[str, Any], selftest: dict[str, Any]):
        self.path = path
        self.module = module
        self.spec = spec
        self.selftest = selftest
        self.columns: list[str] = [column["name"] for column in spec["columns"]]
        self.missing: list[str] = spec["missing"]
        self.classes: list[str] = spec["target"]["classes"]

    @classmethod
    def load(cls, path: str | Path) -> "Artifact":
        """Loads an artifact on the CPU. Raises ArtifactError if the file is missing, damaged or too new."""
        path = Path(path)
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise ArtifactError(f"{path}: no such file. Give the model.pt of a run folder.") from error
        except OSError as error:
            raise ArtifactError(
                f"{path}: cannot be read: {error.strerror}. Give the model.pt of a run folder."
            ) from error
        spec, selftest = _read_description(path, content)
        try:
            with quiet():
                module = torch.jit.load(io.BytesIO(content), map_location="cpu")
        except RuntimeError as error:
            versions = f"written by torch {spec['versions']['torch']}, read by {torch.__version__}"
            reason = str(error).strip().splitlines()[0]
            raise ArtifactError(f"{path}: torch cannot load it ({versions}): {reason}") from error
        return cls(path, module.eval(), spec, selftest)

    def check(self) -> None:
        """Runs the self-test. Raises ArtifactError if predictions differ from those stored at export."""
        numbers = {
            name: torch.tensor([torch.nan if x is None else x for x in column], dtype=torch.float64)
            for name, column in self.selftest["numbers"].items()
        }
        rows = len(self.selftest["answers"]["label" if self.classes else "value"])
        images = {
            column["name"]: pattern(rows, column["shape"])
            for column in self.spec["columns"]
            if column["kind"] == "image"
        }
        answers = self.answer(numbers, self.selftest["strings"], images)
        name, unit = ("probabilities", 1.0) if self.classes else ("value", self.spec["target"]["scale"])
        expected = torch.tensor(self.selftest["answers"][name])
        difference = float((answers[name] - expected).abs().max() / unit)
        if not difference <= TOLERANCE:  # NaN fails too
            raise ArtifactError(
                f"{self.path}: the self-test failed: {name} differ by {difference:.2g} from those stored at export"
                f" (torch {self.spec['versions']['torch']}, here {torch.__version__}). Do not use its predictions;"
                " export the model again on this machine."
            )

    def answer(
        self, numbers: Mapping[str, Tensor], strings: Mapping[str, Sequence[str]], images: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Runs the TorchScript module on parsed columns; see `trainer.export.export.Pipeline`."""
        with torch.inference_mode():
            answers: dict[str, Tensor] = self.module(numbers, strings, images)
        return answers

    def compare_columns(self, columns: Sequence[str]) -> tuple[list[str], list[str]]:
        """Returns the columns of the artifact that are not in `columns`, and those in `columns` unknown in training."""
        known = {*self.columns, *self.spec["unused"], self.spec["target"]["name"]}
        return [name for name in self.columns if name not in columns], [name for name in columns if name not in known]

    def predict(self, frame: Frame, root: Path | None = None) -> Predictions[Frame]:
        """Predicts for the raw rows of a pandas or Polars DataFrame, without preprocessing. Cells may have any type.

        A missing column counts as missing values, and unknown columns are ignored. `root`: folder of image files, which
        paths must not leave; without it, paths are used unchanged. Raises InputError if `frame` has none of the columns
        of the artifact, and TypeError if it is not a DataFrame.
        """
        of_pandas = is_pandas(frame)
        if not of_pandas and not isinstance(frame, pl.DataFrame):
            raise TypeError(f"predict: needs a pandas or Polars DataFrame, not {type(frame).__name__}.")
        raw = from_pandas(frame, self.columns) if of_pandas else cast(pl.DataFrame, frame)
        if not set(self.columns) & set(raw.columns):
            names = ", ".join(map(str, cast(pl.DataFrame, frame).columns))
            raise InputError(f"frame: has no column of {self.path}. Expected {', '.join(self.columns)}; found {names}.")
        scored = self.score(raw, root)
        parts = (
            scored.answers.drop("flags"),
            scored.answers.select(ROW, "flags").filter(pl.col("flags") != ""),
            scored.rejects,
        )
        predictions, flags, rejected = (cast(Frame, to_pandas(part) if of_pandas else part) for part in parts)
        return Predictions(predictions, flags, rejected)

    def score(self, frame: pl.DataFrame, root: Path | None = None) -> Scored:
        """Predicts for raw rows, with cells of any type, as they were read. See `predict` for the arguments."""
        values: dict[str, pl.Series] = {}
        texts: dict[str, pl.Series] = {}
        images: dict[str, Tensor] = {}
        notes: list[pl.Series] = []
        rejects = [pl.DataFrame(schema=REJECTS)]
        for column in self.spec["columns"]:
            name = column["name"]
            cells = frame[name] if name in frame.columns else pl.repeat(None, len(frame), dtype=pl.String, eager=True)
            if column["kind"] == "text":
                texts[name] = as_text(cells).fill_null("")
            elif column["kind"] == "image":
                images[name], reasons = decode_column(cells, root, partial(self.module.features.images.fit, name))
                rejects.append(_rejects(cells, reasons.is_not_null(), name, reasons))
            elif column["kind"] == "date":
                values[name], bad = as_date(cells, self.missing, column["day_first"])
                rejects.append(_rejects(cells, bad, name, "not a date"))
                notes.append(_unusual_numbers(values[name], column))
            elif column["kind"] == "number":
                values[name], bad = as_number(cells, self.missing)
                meant = _replaced(values[name], column)
                outside = ~between(meant, *column["range"])
                rejects += [_rejects(cells, bad, name, "not a number"), _rejects(cells, outside, name, "outside range")]
                notes.append(_unusual_numbers(meant, column))
            else:
                texts[name] = as_text(cells).fill_null("")
                notes.append(_unusual_texts(texts[name], column, self.missing))

        rejected = pl.concat(rejects).sort(ROW, maintain_order=True)
        rows = pl.Series(ROW, range(len(frame)), pl.Int64)
        rows = rows.filter(~rows.is_in(rejected[ROW].implode()))
        answers = self.answer(
            {
                name: torch.from_numpy(series.gather(rows).fill_null(float("nan")).to_numpy(writable=True))
                for name, series in values.items()
            },
            {name: series.gather(rows).to_list() for name, series in texts.items()},
            {name: pixels[rows.to_torch()] for name, pixels in images.items()},
        )
        notes = notes or [pl.repeat(None, len(frame), dtype=pl.String, eager=True)]
        flags = pl.select(flags=pl.concat_str(notes, separator="; ", ignore_nulls=True)).to_series().gather(rows)
        return Scored(pl.DataFrame([rows, *self._answer_columns(answers), flags]), rejected)

    def _answer_columns(self, answers: Mapping[str, Tensor]) -> list[pl.Series]:
        if not self.classes:
            return [pl.Series("value", answers["value"].double().numpy())]
        names = pl.Series("label", self.classes, pl.String)
        return [
            names.gather(pl.Series(answers["label"].numpy())),
            *(
                pl.Series(f"probability_{name}", column.contiguous().numpy())
                for name, column in zip(self.classes, answers["probabilities"].unbind(1), strict=True)
            ),
        ]


def pattern(rows: int, shape: Sequence[int]) -> Tensor:
    """Images of the self-test, uint8 (rows, C, H, W): each row and channel has its own pattern."""
    channels, height, width = shape
    row, channel = torch.arange(rows).view(-1, 1, 1, 1), torch.arange(channels).view(-1, 1, 1)
    down, across = torch.arange(height).view(-1, 1), torch.arange(width)
    return (((row + 3) * down + (row + 5 * channel + 7) * across) % 256).to(torch.uint8)


def _replaced(cells: pl.Series, column: Mapping[str, Any]) -> pl.Series:
    """Applies data.replace, as the artifact itself does."""
    return cells.replace(dict(column["replace"]))


def _rejects(cells: pl.Series, bad: pl.Series, column: str, rule: str | pl.Series) -> pl.DataFrame:
    """Rows of `rejects`. `rule`: the violated rule, one for all bad cells or one per cell."""
    rows = bad.arg_true()
    why = rule if isinstance(rule, str) else rule.gather(rows)
    return pl.DataFrame(
        {ROW: rows, "column": column, "rule": why, "value": as_text(cells.gather(rows))}, schema=REJECTS
    )


def _unusual_numbers(values: pl.Series, column: Mapping[str, Any]) -> pl.Series:
    """One note per row: a missing value, if training had none, or a value far outside the training range; else null."""
    low, high = column["min"], column["max"]
    margin = FAR * (high - low)
    unusual = values.unique()
    unusual = unusual.filter(unusual.is_null() | ~between(unusual, low - margin, high + margin))
    bounds = "..".join(_shown(pl.Series([low, high]), column))
    return _noted(values, unusual, _shown(unusual, column) + f" is far outside {bounds}", column)


def _shown(values: pl.Series, column: Mapping[str, Any]) -> pl.Series:
    if column["kind"] != "date":
        return as_text(values)
    return (values * 1e6).cast(pl.Int64).cast(pl.Datetime("us")).dt.strftime("%Y-%m-%d %H:%M:%S")


def _unusual_texts(texts: pl.Series, column: Mapping[str, Any], missing: Sequence[str]) -> pl.Series:
    """One note per row: a missing cell, if training had none, or a level that was not in training; else null."""
    unusual = texts.unique()
    levels = _replaced(clean_text(unusual, missing), column)
    unseen = ~levels.is_in(column["levels"]).fill_null(False)
    return _noted(texts, unusual.filter(unseen), 'unseen level "' + levels.filter(unseen) + '"', column)


def _noted(cells: pl.Series, unusual: pl.Series, notes: pl.Series, column: Mapping[str, Any]) -> pl.Series:
    """Maps cells to the notes of the unusual cells. A null note means a missing cell."""
    if not column["missing"]:
        notes = notes.fill_null("missing")
    notes = f"{column['name']}: " + notes
    return cells.replace_strict(unusual, notes, default=None, return_dtype=pl.String)


def _read_description(path: Path, content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns `spec.json` and `selftest.json` after comparing the checksums of all parts of the file."""
    if not content.startswith(b"PK"):
        raise _not_an_artifact(path, "not a TorchScript file")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # Reading compares checksums. torch does not, and would miss a flipped bit in a weight.
            extra = {name.partition("/extra/")[2]: archive.read(name) for name in archive.namelist()}
    except Exception as error:  # the exception of zipfile depends on the damaged byte
        raise ArtifactError(f"{path}: the file is damaged: {error}. Copy or export it again.") from error
    if "spec.json" not in extra:
        raise _not_an_artifact(path, "it has no spec.json")
    try:
        spec: dict[str, Any] = json.loads(extra["spec.json"])
        version = int(spec["format"])
    except (ValueError, TypeError, KeyError) as error:
        raise _not_an_artifact(path, "its spec.json has no format") from error
    if version > FORMAT:
        raise ArtifactError(
            f"{path}: has format {version}, but this version of Lathe reads formats up to {FORMAT}. Use the version"
            " that wrote it, or a newer one."
        )
    return spec, json.loads(extra["selftest.json"])


def _not_an_artifact(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{path}: not an artifact of Lathe: {why}. Give the model.pt of a run folder.")
