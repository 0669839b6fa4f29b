"""A table of rows as a LightningDataModule: from files to batches."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytorch_lightning
import torch
from torch import Tensor

from common.distributed import ProcessGroup
from common.hardware import free_memory
from datamodules.audit.audit import Finding, refuse
from datamodules.loading.batch_loader import Batches, auto_batch_size, auto_eval_batch_size
from datamodules.loading.store import CPU, Rows, Store, as_bytes, choose, draw, head
from datamodules.preparation.cache import find_or_make, key
from datamodules.preparation.pipeline import Preparation
from datamodules.preparation.prepared_data import PreparedData, check_fingerprint
from datamodules.preparation.settings import Settings, accepts_settings
from datamodules.readers.byte_streams import STANDARD_INPUT
from datamodules.readers.read import Raw, find, read_share
from datamodules.schema import Column, DataError, InputSpec, TargetSpec
from datamodules.split import SplitName

log = logging.getLogger(__name__)


class TableDataModule(pytorch_lightning.LightningDataModule):
    """Rows of a table, from files to batches.

    `setup` does all the work; features are fitted on training rows only. It sets the attributes below (see
    `PreparedData`) and `stores`, the encoded rows of each split.
    """

    inputs: InputSpec
    target: TargetSpec
    columns: list[Column]
    features: torch.nn.Module
    splits: dict[str, dict[str, Any]]
    findings: Sequence[Finding] | None = None
    quarantine: pl.DataFrame | None = None

    @accepts_settings
    def __init__(
        self,
        path: str | Sequence[str],
        target: str,
        *,
        audit: Literal["on", "strict"] = "on",
        sampling: Literal["all", "balanced"] = "all",
        batch_size: int | Literal["auto"] = "auto",
        eval_batch_size: int | Literal["auto"] = "auto",
        store: Literal["auto", "memory", "device", "disk"] = "auto",
        memory_limit: str | int | None = None,
        cache: str | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        """`path` is a file, several files, or a glob; `settings` are those of `Settings`, and None gives their default.

        `seed` sets the order of the batches; the split has its own. Raises DataError for invalid settings.
        """
        super().__init__()
        given = {name: value for name, value in settings.items() if value is not None}
        self.settings = Settings(path, target, **given)
        for setting, size in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if size != "auto" and size < 1:
                raise DataError(f"data.{setting}={size}: must be 1 or more")
        self.audit = audit
        self.sampling = sampling
        self.wanted_batch_size = batch_size
        self.wanted_eval_batch_size = eval_batch_size
        self.wanted_store = store
        self.memory_limit = None if memory_limit is None else as_bytes("data.memory_limit", memory_limit)
        self.cache = cache
        self.seed = seed
        self.stores: dict[str, Store] = {}

    @property
    def batch_size(self) -> int:
        """Rows per training batch; "auto" depends on the number of training rows, so that an epoch has enough steps."""
        wanted = self.wanted_batch_size
        return auto_batch_size(self.splits["train"]["rows"]) if wanted == "auto" else wanted

    @property
    def eval_batch_size(self) -> int:
        """Rows per evaluation batch; "auto" gives fewer for tables with many columns, to limit memory."""
        wanted, columns = self.wanted_eval_batch_size, len(self.inputs.numbers) + len(self.inputs.categories)
        return auto_eval_batch_size(columns) if wanted == "auto" else wanted

    @property
    def missing(self) -> Sequence[str]:
        """The spellings of missing cells."""
        return self.settings.missing

    def setup(self, stage: str | None = None) -> None:
        """Reads and encodes the rows, once, or takes them from the cache. Raises DataError for unusable data."""
        if self.stores:
            return
        limit = free_memory() // 2 // ProcessGroup().local if self.memory_limit is None else self.memory_limit
        if self.cache is None or self.settings.path == STANDARD_INPUT:
            if ProcessGroup().world > 1:
                raise DataError("data.cache=null: several processes need a cache folder that all of them can access")
            self._temporary = tempfile.TemporaryDirectory(prefix="lathe-")  # deleted with this object
            folder = Path(self._temporary.name)
            self._prepare(folder, limit)
        else:
            folder = Path(self.cache) / key(asdict(self.settings), self.files())
            if find_or_make(folder, lambda unfinished: self._prepare(unfinished, limit)):
                log.info("data: already prepared, taken from %s", folder)
        self._open(folder, limit)

    def read(self, path: str | Sequence[str], rank: int, world: int) -> Iterator[tuple[int, Raw]]:
        """The chunks of raw rows that one of `world` processes prepares, each with its number among all chunks."""
        separator, names, invalid_utf8 = self.settings.separator, self.settings.names, self.settings.invalid_utf8
        replace_invalid = invalid_utf8 == "replace"
        return read_share(path, rank, world, separator=separator, names=names, replace_invalid=replace_invalid)

    def files(self) -> list[str]:
        """All files that rows are read from."""
        paths = (self.settings.path, self.settings.val_path, self.settings.test_path)
        return [file for path in paths if path is not None for file in find(path)]

    def _prepare(self, folder: Path, limit: int) -> None:
        # Torch, the keys of all rows and the parts being encoded need most of the rest.
        preparation = Preparation(self.settings, self.read, folder, limit // 16)
        try:
            preparation.run()
        finally:
            self.quarantine = preparation.quarantine

    def _open(self, folder: Path, limit: int) -> None:
        self.prepared = prepared = PreparedData(folder)
        self.columns, self.inputs, self.target = prepared.columns, prepared.inputs, prepared.target
        self.features, self.splits = prepared.features, prepared.splits
        self.findings, self.quarantine = prepared.findings, prepared.quarantine
        for note in prepared.notes:
            log.info("%s", note)
        if self.sampling == "balanced" and self.target.task == "regression":
            raise DataError(f"data.sampling=balanced: '{self.target.name}' is a regression target, without classes")
        if self.audit == "strict":
            refuse(self.findings)
        kind, reason = choose(self.wanted_store, prepared.bytes, limit, self._device())
        log.info("store: %s (%s)", kind, reason)
        for split in self.splits:
            disk = prepared.store(split)
            self.stores[split] = disk if kind == "disk" else disk.read(self._device() if kind == "device" else CPU)

    def train_dataloader(self) -> Batches:
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        balanced = self.sampling == "balanced"
        return self._batches("train", self.batch_size, shuffle=not overfit, balanced=balanced, seed=self.seed)

    def val_dataloader(self) -> Batches:
        return self._batches("val", self.eval_batch_size)

    def test_dataloader(self) -> Batches:
        return self._batches("test", self.eval_batch_size)

    def _batches(self, split: SplitName, batch_size: int, **settings: Any) -> Batches:
        return Batches(self.stores[split], batch_size, device=self._device(), **settings)

    def _device(self) -> torch.device:
        """The device of the network; the CPU without a trainer."""
        return CPU if self.trainer is None else self.trainer.strategy.root_device

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint records of the data that its weights were fitted to."""
        rows = {split: described["rows"] for split, described in self.splits.items()}
        return {"prepared": self.prepared.fingerprint, "rows": rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises DataError if the checkpoint was made with other data."""
        check_fingerprint(state_dict, self.state_dict())

    def head(self, split: SplitName, rows: int) -> Rows:
        """The first encoded rows of a split, on the CPU."""
        return head(self.stores[split], rows)

    def sample(self, split: SplitName, rows: int) -> Rows:
        """A uniform sample of the encoded rows of a split, on the CPU."""
        return draw(self.stores[split], rows)

    def frame(self, split: SplitName) -> pl.DataFrame:
        """The first cleaned rows of a split, at most `datamodules.preparation.encode.HEAD`."""
        return self.prepared.frame(split)

    def row_locations(self, split: SplitName) -> pl.DataFrame:
        """Source file and line (FILE, LINE) of each row of a split, in the order of its store."""
        return self.prepared.row_locations(split)

    def raw(self, split: SplitName, rows: int) -> tuple[dict[str, Tensor], dict[str, list[str]], dict[str, Tensor]]:
        """The first rows of a split as inputs of the artifact: numbers, strings and images by column."""
        return self.prepared.raw(self.frame(split).head(rows), self.head(split, rows) if self.inputs.images else {})

    def describe(self) -> dict[str, Any]:
        """The serving schema, see `PreparedData`."""
        return self.prepared.serving_schema
