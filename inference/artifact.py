"""The artefact in use: opened and checked, raw rows in, answers with flags out, and the rows it cannot answer."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from common.cells import as_date, as_number, as_text, between, clean_text
from common.errors import ArtifactError
from common.image_decoder import decode_column
from common.torchscript import quiet

FORMAT = 1
"""Version of `spec.json`, written and understood; raised when an old reader could misread a new file."""
TOLERANCE = 1e-5
"""Largest difference of an answer, at export and in the self-test: of a probability, or in deviations of the target."""
FAR = 0.5
"""A number is far when it lies outside the training range by more than this part of its spread."""

ROW = "row"
REJECTS = pl.Schema({ROW: pl.Int64, "column": pl.String, "rule": pl.String, "value": pl.String})


@dataclass(frozen=True)
class Scored:
    """Every row of a frame is in `answers` or, with a reason for each bad cell, in `rejects`.

    `answers`: `row`, its position in the frame; `label` and `probability_<class>`, or `value`; `flags`, what was
    unusual and still answered. `rejects`: `row`, `column`, `rule`, `value`.
    """

    answers: pl.DataFrame
    rejects: pl.DataFrame


class Artifact:
    """A `model.pt`, opened: docs/architecture.md says what is in it."""

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
        """Opens an artefact on the CPU. Raises ArtifactError where it is absent, damaged, foreign or too new."""
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
        """Runs the self-test; raises ArtifactError where an answer is not the one the artefact was written with."""
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
                f"{self.path}: the self-test failed: {name} differ by {difference:.2g} from those it was written with"
                f" (torch {self.spec['versions']['torch']}, here {torch.__version__}). Do not use its answers; export"
                " it again here."
            )

    def answer(
        self, numbers: Mapping[str, Tensor], strings: Mapping[str, Sequence[str]], images: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The artefact itself, on columns as it takes them."""
        with torch.inference_mode():
            answers: dict[str, Tensor] = self.module(numbers, strings, images)
        return answers

    def unlike(self, columns: Sequence[str]) -> tuple[list[str], list[str]]:
        """Of these columns, those that the artefact wants and are absent, and those that training did not have."""
        known = {*self.columns, *self.spec["unused"], self.spec["target"]["name"]}
        return [name for name in self.columns if name not in columns], [name for name in columns if name not in known]

    def score(self, frame: pl.DataFrame, root: Path | None = None) -> Scored:
        """Answers raw rows: cells of any type, as they were read. Columns that are absent are missing on every row,
        columns that the artefact does not know are ignored. `root`: the folder of images, which no path may leave;
        without one paths are taken as they are.
        """
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
    """The images of the self-test, uint8 (rows, C, H, W): waves of other lengths in each row and channel."""
    channels, height, width = shape
    row, channel = torch.arange(rows).view(-1, 1, 1, 1), torch.arange(channels).view(-1, 1, 1)
    down, across = torch.arange(height).view(-1, 1), torch.arange(width)
    return (((row + 3) * down + (row + 5 * channel + 7) * across) % 256).to(torch.uint8)


def _replaced(cells: pl.Series, column: Mapping[str, Any]) -> pl.Series:
    """The cells as the artefact will take them: it replaces them itself."""
    return cells.replace(dict(column["replace"]))


def _rejects(cells: pl.Series, bad: pl.Series, column: str, rule: str | pl.Series) -> pl.DataFrame:
    """`rule`: the one that all bad cells break, or that of each cell."""
    rows = bad.arg_true()
    why = rule if isinstance(rule, str) else rule.gather(rows)
    return pl.DataFrame(
        {ROW: rows, "column": column, "rule": why, "value": as_text(cells.gather(rows))}, schema=REJECTS
    )


def _unusual_numbers(values: pl.Series, column: Mapping[str, Any]) -> pl.Series:
    """A note a row: a value missing that never was in training, or far from the training values; null elsewhere."""
    low, high = column["min"], column["max"]
    reach = FAR * (high - low)
    unusual = values.unique()
    unusual = unusual.filter(unusual.is_null() | ~between(unusual, low - reach, high + reach))
    bounds = "..".join(_shown(pl.Series([low, high]), column))
    return _noted(values, unusual, _shown(unusual, column) + f" is far outside {bounds}", column)


def _shown(values: pl.Series, column: Mapping[str, Any]) -> pl.Series:
    if column["kind"] != "date":
        return as_text(values)
    return (values * 1e6).cast(pl.Int64).cast(pl.Datetime("us")).dt.strftime("%Y-%m-%d %H:%M:%S")


def _unusual_texts(texts: pl.Series, column: Mapping[str, Any], missing: Sequence[str]) -> pl.Series:
    """A note a row: a cell missing that never was in training, or a level that training had not; null elsewhere."""
    unusual = texts.unique()
    levels = _replaced(clean_text(unusual, missing), column)
    unseen = ~levels.is_in(column["levels"]).fill_null(False)
    return _noted(texts, unusual.filter(unseen), 'unseen level "' + levels.filter(unseen) + '"', column)


def _noted(cells: pl.Series, unusual: pl.Series, notes: pl.Series, column: Mapping[str, Any]) -> pl.Series:
    """The note of each unusual cell on the rows that have it; a null note means missing."""
    if not column["missing"]:
        notes = notes.fill_null("missing")
    notes = f"{column['name']}: " + notes
    return cells.replace_strict(unusual, notes, default=None, return_dtype=pl.String)


def _read_description(path: Path, content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """`spec.json` and `selftest.json`, once every part of the file has its checksum."""
    if not content.startswith(b"PK"):
        raise _foreign(path, "it is no TorchScript file")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # Reading compares checksums, which torch does not: it would not see a flipped bit in a weight.
            extra = {name.partition("/extra/")[2]: archive.read(name) for name in archive.namelist()}
    except Exception as error:  # what zipfile raises depends on the byte that is wrong
        raise ArtifactError(f"{path}: the file is damaged: {error}. Copy or export it again.") from error
    if "spec.json" not in extra:
        raise _foreign(path, "it has no spec.json")
    try:
        spec: dict[str, Any] = json.loads(extra["spec.json"])
        version = int(spec["format"])
    except (ValueError, TypeError, KeyError) as error:
        raise _foreign(path, "its spec.json names no format") from error
    if version > FORMAT:
        raise ArtifactError(
            f"{path}: its format is {version}, and this Lathe reads up to {FORMAT}. Use the Lathe that wrote it, or a"
            " newer one."
        )
    return spec, json.loads(extra["selftest.json"])


def _foreign(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{path}: not an artefact of Lathe: {why}. Give the model.pt of a run folder.")
