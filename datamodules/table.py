"""A table of rows as a LightningDataModule: read, clean, split, fit the features, encode once, cut batches."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import polars as pl
import pytorch_lightning
import torch
from torch import Tensor

from datamodules.clean import (
    COPY,
    OWN,
    as_range,
    as_rules,
    check_target,
    clean,
    clean_target,
    number_rules,
    refuse_if_too_many,
    text_rules,
)
from datamodules.features import Categories, Features, Numbers
from datamodules.features.numbers import Scaling, bin_edges, quantiles
from datamodules.infer import check_names, infer_columns, infer_task
from datamodules.loader import Batches
from datamodules.read import Raw, read
from datamodules.schema import Column, DataError, InputSpec, Kind, TargetSpec, Task
from datamodules.split import SPLITS, SplitBy, split_rows
from serving import cells

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
ORDER, ROW = OWN + "order", OWN + "row"
BINS = 48
"""Bins at most of a number for networks that bend its scale."""
KNOTS = 49
"""Quantiles of a number in the reference for drift."""


class TableDataModule(pytorch_lightning.LightningDataModule):
    """Rows of a table, from files to batches. `setup` does all the work; facts are fitted on training rows only.

    After `setup`: `columns`, `inputs`, `target`, `features`, `quarantine` (the rows set aside) and `rows`, the encoded
    tensors of each split.
    """

    features: Features
    inputs: InputSpec
    target: TargetSpec
    columns: list[Column]
    quarantine: pl.DataFrame | None = None

    def __init__(
        self,
        path: str | Sequence[str],
        target: str,
        task: Literal["auto", "binary", "multiclass", "regression"] = "auto",
        columns: Mapping[str, Kind] | None = None,
        names: Sequence[str] | None = None,
        separator: str | None = None,
        missing: Sequence[str] = cells.MISSING,
        replace: Mapping[str, Sequence[tuple[str | float | None, str | float | None]]] | None = None,
        ranges: Mapping[str, tuple[float | None, float | None]] | None = None,
        duplicates: Literal["keep", "drop"] = "keep",
        max_bad_fraction: float = 0.05,
        split_by: SplitBy = "stratified",
        split_column: str | None = None,
        split_fractions: Sequence[float] = (0.64, 0.16, 0.20),
        split_seed: int = 0,
        numbers: Scaling = "quantile",
        max_levels: int = 1000,
        batch_size: int = 256,
        eval_batch_size: int = 8192,
        seed: int = 0,
    ) -> None:
        """`path`: a file, several, or a glob. `seed`: the order of the batches; the split has a seed of its own.

        Raises DataError for settings that no table could be read with.
        """
        super().__init__()
        self.path = path
        self.target_name = target
        self.task = task
        self.overrides = dict(columns or {})
        self.names = names
        self.separator = separator
        self.missing = tuple(missing)
        self.replace = {name: as_rules(name, pairs, missing) for name, pairs in (replace or {}).items()}
        self.ranges = {name: as_range(name, bounds) for name, bounds in (ranges or {}).items()}
        self.duplicates = duplicates
        self.max_bad_fraction = max_bad_fraction
        self.split_by = split_by
        self.split_column = split_column
        self.split_fractions = tuple(split_fractions)
        self.split_seed = split_seed
        self.scaling = numbers
        self.max_levels = max_levels
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.frames: dict[str, pl.DataFrame] = {}
        self.rows: dict[str, dict[str, Tensor]] = {}
        self._check_settings()

    def read(self) -> Raw:
        """The raw rows, and those that could not be read as rows of the table."""
        return read(self.path, separator=self.separator, names=self.names)

    def setup(self, stage: str | None = None) -> None:
        """Everything from files to encoded tensors, once. Raises DataError where the data cannot be used."""
        if self.rows:
            return
        raw = self.read()
        self.columns = infer_columns(raw.frame, target=self.target_name, overrides=self.overrides, missing=self.missing)
        labels = clean_target(raw.frame[self.target_name], self.missing, self.replace.get(self.target_name, {}))
        task, reason = infer_task(labels, self.task)
        log.info("task: %s (%s)", task, reason)
        if self.split_by == "column":
            self.columns = [
                Column(column.name, "drop", "says which rows train") if column.name == self.split_column else column
                for column in self.columns
            ]
        if not self._of_kind("number") and not self._of_kind("category"):
            kinds = ", ".join(f"{column.name} ({column.kind})" for column in self.columns)
            raise DataError(f"no column is left to learn from: {kinds}. Set one with data.columns='{{NAME: category}}'")
        frame = raw.frame
        if self.split_column is not None:
            check_names("data.split_column", [self.split_column], [column.name for column in self.columns])
            frame = frame.with_columns(frame[self.split_column].alias(ORDER))
        cleaned = clean(
            frame,
            self.columns,
            labels,
            task,
            bad=raw.bad,
            missing=self.missing,
            replace=self.replace,
            ranges=self.ranges,
            duplicates=self.duplicates,
        )
        self.quarantine = cleaned.quarantine
        refuse_if_too_many(cleaned, self.max_bad_fraction)
        check_target(cleaned.frame[self.target_name], task, self.replace.get(self.target_name, {}))
        self._split(cleaned.frame, task)
        self._fit_target(task)
        self._fit_features()
        self.rows = {split: self._encode(frame) for split, frame in self.frames.items()}

    def train_dataloader(self) -> Batches:
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        return Batches(self.rows["train"], self.batch_size, shuffle=not overfit, seed=self.seed)

    def val_dataloader(self) -> Batches:
        return Batches(self.rows["val"], self.eval_batch_size)

    def test_dataloader(self) -> Batches:
        return Batches(self.rows["test"], self.eval_batch_size)

    def raw(self, split: Split, rows: int) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """The first rows of a split as the artefact takes them: numbers and strings by column."""
        return raw_columns(self.frames[split].head(rows), self._of_kind("number"), self._of_kind("category"))

    def describe(self) -> dict[str, Any]:
        """What serving must know: "columns", in order, for checks and flags; the names of "unused" ones; "target"; and
        "reference", for drift.
        """
        train = self.frames["train"]
        columns: dict[str, dict[str, Any]] = {}
        reference: dict[str, dict[str, Any]] = {"numbers": {}, "categories": {}}
        probabilities = torch.linspace(0, 1, KNOTS, dtype=torch.float64)
        for name in self._of_kind("number"):
            rules = self._number_rules().get(name, {})
            present = train[name].replace(rules).drop_nulls()
            # A column may have values in other splits alone.
            values = torch.from_numpy(present.to_numpy(writable=True)) if len(present) else torch.zeros(1).double()
            columns[name] = {
                "kind": "number",
                "missing": len(present) < len(train),
                "min": float(values.min()),
                "max": float(values.max()),
                "range": list(self.ranges.get(name, (None, None))),
                "replace": [list(rule) for rule in rules.items()],
            }
            knots = quantiles(values.unsqueeze(1), probabilities)[0].tolist()
            reference["numbers"][name] = {"knots": knots, "missing": 1 - len(present) / len(train)}
        for name, counts in zip(self._of_kind("category"), self._level_counts(), strict=True):
            absent = counts.pop("", 0)
            columns[name] = {
                "kind": "category",
                "missing": absent > 0,
                "levels": list(counts),
                "replace": [list(rule) for rule in self._text_rules().get(name, {}).items()],
            }
            reference["categories"][name] = {"levels": counts, "missing": absent / len(train)}
        target = {
            "name": self.target.name,
            "task": self.target.task,
            "classes": list(self.target.classes),
            "mean": self.target.mean,
            "scale": self.target.scale,
            "replace": text_rules(self.replace.get(self.target_name, {})),
        }
        ordered = [{"name": column.name} | columns[column.name] for column in self.columns if column.name in columns]
        unused = [column.name for column in self.columns if column.name not in {*columns, self.target_name}]
        return {"columns": ordered, "unused": unused, "target": target, "reference": reference}

    def _check_settings(self) -> None:
        if self.separator is not None and len(self.separator.encode()) != 1:
            raise DataError(f"data.separator={self.separator!r}: must be one character; a tab is found without it")
        if len(self.split_fractions) != 3 or min(self.split_fractions) <= 0:
            raise DataError(
                f"data.split_fractions={list(self.split_fractions)}: must be three shares above 0: train, val, test"
            )
        needless = self.split_column is not None and self.split_by not in ("time", "column")
        if needless or (self.split_column is None and self.split_by == "column"):
            raise DataError(
                f"data.split_by={self.split_by} with data.split_column={self.split_column}: the column orders the rows"
                " with data.split_by=time, or says train, val or test with data.split_by=column"
            )
        if not 0 <= self.max_bad_fraction <= 1:
            raise DataError(f"data.max_bad_fraction={self.max_bad_fraction}: must be from 0 to 1")
        for setting in ("batch_size", "eval_batch_size", "max_levels"):
            if getattr(self, setting) < 1:
                raise DataError(f"data.{setting}={getattr(self, setting)}: must be 1 or more")

    def _of_kind(self, kind: Kind) -> list[str]:
        return [column.name for column in self.columns if column.kind == kind and column.name != self.target_name]

    def _split(self, frame: pl.DataFrame, task: Task) -> None:
        by: SplitBy = "random" if task == "regression" and self.split_by == "stratified" else self.split_by
        split = split_rows(
            frame[self.target_name],
            by=by,
            fractions=self.split_fractions,
            seed=self.split_seed,
            column=frame[ORDER].alias(self.split_column or ORDER) if ORDER in frame.columns else None,
            first_copy=frame.with_row_index(ROW).select(pl.col(ROW).first().over(COPY)).to_series(),
        )
        self.frames = {name: frame.filter(pl.Series(split == code)) for code, name in enumerate(SPLITS)}

    def _fit_target(self, task: Task) -> None:
        values = self.frames["train"][self.target_name]
        if task == "regression":
            mean, deviation = float(values.to_numpy().mean()), float(values.to_numpy().std())
            self.target = TargetSpec(self.target_name, task, mean=mean, scale=deviation if deviation > 0 else 1.0)
            return
        everywhere = pl.concat([frame[self.target_name] for frame in self.frames.values()])
        classes = sorted(everywhere.unique().to_list(), key=_natural)
        counts = dict(values.value_counts().iter_rows())
        self.target = TargetSpec(self.target_name, task, tuple(classes), tuple(counts.get(name, 0) for name in classes))

    def _fit_features(self) -> None:
        numbers = self._of_kind("number")
        train = self.frames["train"]
        values, _ = raw_columns(train, numbers, [])
        stacked = torch.stack(list(values.values()), 1) if numbers else torch.zeros(len(train), 0, dtype=torch.float64)
        categories = self._of_kind("category")
        self.features = Features(
            Numbers(numbers, stacked, self.scaling, self._number_rules()),
            Categories(categories, self._level_counts(), self.missing, self._text_rules(), self.max_levels),
        )
        encoded = self.features.numbers(values, len(train)).double().unbind(1)
        self.inputs = InputSpec(
            numbers=tuple(numbers),
            indicators=tuple(numbers[index] for index in self.features.numbers.indicated.tolist()),
            categories=tuple(zip(categories, self.features.categories.sizes, strict=True)),
            edges=tuple(bin_edges(column, BINS) for column in encoded[: len(numbers)]),
        )

    def _level_counts(self) -> list[dict[str, int]]:
        """For each category column, its cleaned levels and their training rows, the commonest first; "" is missing."""
        counts = []
        replace = self._text_rules()
        for name in self._of_kind("category"):
            text = cells.clean_text(self.frames["train"][name], self.missing)
            if name in replace:
                text = text.replace(replace[name])
            table = text.fill_null("").value_counts(sort=True)
            counts.append(dict(table.iter_rows()))
        return counts

    def _number_rules(self) -> dict[str, dict[float, float | None]]:
        numbers = self._of_kind("number")
        return {name: number_rules(name, rules) for name, rules in self.replace.items() if name in numbers}

    def _text_rules(self) -> dict[str, dict[str, str | None]]:
        categories = self._of_kind("category")
        return {name: text_rules(rules) for name, rules in self.replace.items() if name in categories}

    def _encode(self, frame: pl.DataFrame) -> dict[str, Tensor]:
        numbers, strings = raw_columns(frame, self._of_kind("number"), self._of_kind("category"))
        batch: dict[str, Tensor] = self.features(numbers, strings)
        values = frame[self.target_name]
        if self.target.task == "regression":
            standardised = (values.to_numpy() - self.target.mean) / self.target.scale
            batch["target"] = torch.from_numpy(standardised).float()
        else:
            codes = values.replace_strict(
                list(self.target.classes), range(len(self.target.classes)), return_dtype=pl.Int64
            )
            batch["target"] = torch.from_numpy(codes.to_numpy().copy())
        return batch


def raw_columns(
    frame: pl.DataFrame, numbers: Sequence[str], strings: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Columns of a cleaned frame as the features take them: float64 with NaN, and strings with "" for missing."""
    values = {
        name: torch.from_numpy(frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy().copy())
        for name in numbers
    }
    return values, {name: frame[name].fill_null("").to_list() for name in strings}


def _natural(name: str) -> tuple[bool, float, str]:
    """Classes that are numbers in their order, then the others by name."""
    try:
        return (False, float(name), name)
    except ValueError:
        return (True, 0.0, name)
