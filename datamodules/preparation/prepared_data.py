"""A folder of prepared data: its files, and a reader of what `pipeline.Preparation` wrote there."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from common.torchscript import quiet
from datamodules.audit.audit import Finding
from datamodules.features import as_tensor
from datamodules.loading.store import DiskStore, Rows
from datamodules.readers.read import LINE
from datamodules.schema import Column, DataError, input_spec, target_spec
from datamodules.split import SplitName

METADATA, FEATURES, QUARANTINE, PARTS = "facts.json", "features.pt", "quarantine.parquet", "parts"
ROW_LOCATIONS = ".parquet"
"""Suffix of the file next to a part with the source file and line of each row."""
FITTED = ("columns", "inputs", "target", "described", "splits")
"""Keys of the metadata that weights depend on."""


class PreparedData:
    """The content of a folder of prepared data.

    `columns`, `inputs` and `target` describe the table; `splits` has the rows and the target of each split;
    `serving_schema` is what serving needs: "columns", in order, for checks and flags; the names of "unused" columns;
    "target"; and "reference", for drift. `features` is the scripted `datamodules.features.Features`, `quarantine` the
    rejected rows, `findings` those of the audit, and `notes` are lines for the log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        metadata = json.loads((folder / METADATA).read_text())
        self.columns = [Column(**column) for column in metadata["columns"]]
        self.inputs = input_spec(metadata["inputs"])
        self.target = target_spec(metadata["target"])
        self.serving_schema: dict[str, Any] = metadata["described"]
        self.splits: dict[str, dict[str, Any]] = metadata["splits"]
        self.parts: dict[str, list[tuple[str, int, int]]] = metadata["parts"]
        """File, rows and bytes of each part of each split."""
        self.notes: list[str] = metadata["notes"]
        self.findings = [Finding(**finding) for finding in metadata["findings"]]
        self.quarantine = pl.read_parquet(folder / QUARANTINE)
        with quiet():
            self.features: torch.nn.Module = torch.jit.load(folder / FEATURES)
        self.fingerprint = self._fingerprint([metadata[name] for name in FITTED])
        """Hash of what was fitted and of the lines in each split; weights are valid for data with an equal one."""

    @property
    def bytes(self) -> int:
        """Size of all encoded rows."""
        return sum(size for parts in self.parts.values() for _, _, size in parts)

    def store(self, split: str) -> DiskStore:
        """The encoded rows of a split."""
        parts = self.parts[split]
        files = [self.folder / PARTS / name for name, _, _ in parts]
        return DiskStore(files, [rows for _, rows, _ in parts], sum(size for _, _, size in parts))

    def frame(self, split: SplitName) -> pl.DataFrame:
        """The first cleaned rows of a split, at most `datamodules.preparation.encode.HEAD`."""
        return pl.read_parquet(self.folder / f"{split}.parquet")

    def row_locations(self, split: SplitName) -> pl.DataFrame:
        """Source file and line (FILE, LINE) of each row of a split, in the order of its store."""
        return pl.concat([pl.read_parquet(file.with_suffix(ROW_LOCATIONS)) for file in self.store(split).files])

    def raw(self, frame: pl.DataFrame, encoded: Rows) -> tuple[dict[str, Tensor], dict[str, list[str]], Rows]:
        """The inputs of `features` for cleaned rows: numbers, strings and images by column.

        `encoded` holds the same rows encoded, whose images are used.
        """
        kinds = {column["name"]: column["kind"] for column in self.serving_schema["columns"]}
        return (
            {name: as_tensor(frame[name]) for name, kind in kinds.items() if kind in ("number", "date")},
            {name: frame[name].fill_null("").to_list() for name, kind in kinds.items() if kind in ("category", "text")},
            {image.name: encoded[f"images.{image.name}"] for image in self.inputs.images},
        )

    def _fingerprint(self, fitted: list[Any]) -> str:
        digest = hashlib.sha256(json.dumps(fitted, sort_keys=True).encode())
        for split in sorted(self.parts):
            for file in self.store(split).files:
                lines = pl.read_parquet(file.with_suffix(ROW_LOCATIONS), columns=[LINE])[LINE]
                digest.update(lines.to_numpy().tobytes())
            digest.update(split.encode())
        return digest.hexdigest()


def check_fingerprint(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises DataError if a checkpoint was made with other data: `then` and `now` are states of a TableDataModule."""
    if then == now:
        return
    before, present = (", ".join(f"{rows:,} {split}" for split, rows in state["rows"].items()) for state in (then, now))
    raise DataError(
        f"resume: the run started with other data or splits (then {before} rows, now {present}). Its weights do not fit"
        " these data, and may have been trained on rows that are now test rows: restore the data and their settings, or"
        " start a new run."
    )
