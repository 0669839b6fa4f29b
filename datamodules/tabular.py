"""A table of rows as a LightningDataModule: from files to batches."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytorch_lightning
import torch
from torch import Tensor

from common import cells
from common.distributed import ProcessGroup
from common.hardware import free_memory
from common.torchscript import quiet
from datamodules.audit.audit import Finding, refuse
from datamodules.features import as_tensor
from datamodules.features.numbers import Scaling
from datamodules.features.wordpiece import read_vocabulary
from datamodules.loading.batch_loader import Batches
from datamodules.loading.store import CPU, DiskStore, Rows, Store, as_bytes, choose, draw, take
from datamodules.preparation.cache import find_or_make, key
from datamodules.preparation.clean import as_range, as_rules
from datamodules.preparation.pipeline import FEATURES, METADATA, PARTS, PLACES, QUARANTINE, Preparation
from datamodules.preparation.settings import Settings
from datamodules.readers.read import LINE, STANDARD_INPUT, Raw, find, read_share
from datamodules.schema import Column, DataError, InputSpec, Kind, TargetSpec, input_spec, target_spec
from datamodules.split import Split

log = logging.getLogger(__name__)

BATCH_SIZES = {2_800: 32, 4_500: 64, 6_400: 128, 32_000: 256, 108_000: 512}
"""For fewer training rows than the key (arXiv 2410.24210); above them 1024."""
EVALUATED_CELLS, MANY_COLUMNS = 2**20, 128
"""Cells of a batch in measuring, for tables of so many columns or more; others have 8,192 rows."""
FITTED = ("columns", "inputs", "target", "described", "splits")
"""What is known of prepared data that weights depend on."""
SplitName = Literal["train", "val", "test"]


class TableDataModule(pytorch_lightning.LightningDataModule):
    """Rows of a table, from files to batches. `setup` does all the work; facts are fitted on training rows only.

    After `setup`: `columns`, `inputs`, `target`, `features`, `quarantine` (the rows set aside), `findings` of the
    audit, `splits` (rows and target of each) and `stores`, the encoded rows of each split.
    """

    features: torch.nn.Module
    """Scripted: `datamodules.features.Features` as the artefact takes it."""
    inputs: InputSpec
    target: TargetSpec
    columns: list[Column]
    findings: Sequence[Finding] | None = None
    splits: dict[str, dict[str, Any]]
    quarantine: pl.DataFrame | None = None

    def __init__(
        self,
        path: str | Sequence[str],
        target: str,
        val_path: str | Sequence[str] | None = None,
        test_path: str | Sequence[str] | None = None,
        task: Literal["auto", "binary", "multiclass", "regression"] = "auto",
        columns: Mapping[str, Kind] | None = None,
        names: Sequence[str] | None = None,
        separator: str | None = None,
        invalid_utf8: Literal["refuse", "replace"] = "refuse",
        missing: Sequence[str] = cells.MISSING,
        replace: Mapping[str, Sequence[tuple[str | float | None, str | float | None]]] | None = None,
        ranges: Mapping[str, tuple[float | None, float | None]] | None = None,
        duplicates: Literal["keep", "drop"] = "keep",
        max_bad_fraction: float = 0.05,
        split: Split | None = None,
        audit: Literal["on", "strict"] = "on",
        numbers: Scaling = "quantile",
        max_levels: int = 1000,
        hash_buckets: int = 0,
        max_tokens: int = 20_000,
        char_ngrams: tuple[int, int] | None = None,
        wordpiece: str | None = None,
        image_size: Literal["auto"] | int | tuple[int, int] = "auto",
        sampling: Literal["all", "balanced"] = "all",
        batch_size: int | Literal["auto"] = "auto",
        eval_batch_size: int | Literal["auto"] = "auto",
        store: Literal["auto", "memory", "device", "disk"] = "auto",
        memory_limit: str | int | None = None,
        cache: str | None = None,
        seed: int = 0,
    ) -> None:
        """`path`: a file, several, or a glob. `seed`: the order of the batches; the split has a seed of its own.

        Raises DataError for settings that no table could be read with.
        """
        super().__init__()
        self.settings = Settings(
            path=path,
            target=target,
            val_path=val_path,
            test_path=test_path,
            task=task,
            columns=dict(columns or {}),
            names=names,
            separator=separator,
            invalid_utf8=invalid_utf8,
            missing=tuple(missing),
            replace={name: as_rules(name, pairs, missing) for name, pairs in (replace or {}).items()},
            ranges={name: as_range(name, bounds) for name, bounds in (ranges or {}).items()},
            duplicates=duplicates,
            max_bad_fraction=max_bad_fraction,
            split=split or Split(),
            numbers=numbers,
            max_levels=max_levels,
            hash_buckets=hash_buckets,
            max_tokens=max_tokens,
            char_ngrams=char_ngrams,
            wordpiece=None if wordpiece is None else read_vocabulary(wordpiece),
            image_size=image_size,
        )
        for setting, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value != "auto" and value < 1:
                raise DataError(f"data.{setting}={value}: must be 1 or more")
        self.audit = audit
        self.sampling = sampling
        self.wanted_batch_size = batch_size
        self.wanted_eval_batch_size = eval_batch_size
        self.wanted_store = store
        self.memory_limit = None if memory_limit is None else as_bytes("data.memory_limit", memory_limit)
        self.cache = cache
        self.seed = seed
        self.stores: dict[str, Store] = {}
        self._parts: dict[str, list[Path]] = {}

    @property
    def batch_size(self) -> int:
        """Training rows of a batch; "auto" goes by the rows there are, so that an epoch has steps enough."""
        if self.wanted_batch_size != "auto":
            return self.wanted_batch_size
        return batch_size_for(self.splits["train"]["rows"])

    @property
    def eval_batch_size(self) -> int:
        """Rows of a batch in measuring; "auto" takes fewer of a table of many columns: of each cell a network makes
        dozens of numbers."""
        if self.wanted_eval_batch_size != "auto":
            return self.wanted_eval_batch_size
        return EVALUATED_CELLS // max(len(self.inputs.numbers) + len(self.inputs.categories), MANY_COLUMNS)

    @property
    def missing(self) -> tuple[str, ...]:
        """The spellings of missing cells."""
        return self.settings.missing

    def read(self, path: str | Sequence[str], rank: int, world: int) -> Iterator[tuple[int, Raw]]:
        """The chunks of raw rows that are the share of one of `world` processes, with their numbers among all."""
        settings = self.settings
        return read_share(
            path,
            rank,
            world,
            separator=settings.separator,
            names=settings.names,
            replace_invalid=settings.invalid_utf8 == "replace",
        )

    def setup(self, stage: str | None = None) -> None:
        """Everything from files to encoded rows, once; taken from the cache where it is there. Raises DataError where
        the data cannot be used.
        """
        if self.stores:
            return
        limit = free_memory() // 2 // ProcessGroup().local if self.memory_limit is None else self.memory_limit
        if self.cache is None or self.settings.path == STANDARD_INPUT:
            if ProcessGroup().world > 1:
                raise DataError("data.cache=null: several processes prepare the data in a folder that all of them see")
            self._temporary = tempfile.TemporaryDirectory(prefix="lathe-")  # as long as this object is there
            self._folder = Path(self._temporary.name)
            self._prepare(self._folder, limit)
        else:
            self._folder = Path(self.cache) / key(asdict(self.settings), self.files())
            if find_or_make(self._folder, lambda folder: self._prepare(folder, limit)):
                log.info("data: prepared before, taken from %s", self._folder)
        self._open(limit)

    def files(self) -> list[str]:
        """All files that the rows come from."""
        paths = (self.settings.path, self.settings.val_path, self.settings.test_path)
        return [file for path in paths if path is not None for file in find(path)]

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: what the weights were fitted to."""
        return {"prepared": self.prepared, "rows": {split: facts["rows"] for split, facts in self.splits.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises DataError where a checkpoint is of other data."""
        own = self.state_dict()
        if state_dict != own:
            then, now = (
                ", ".join(f"{rows:,} {split}" for split, rows in state["rows"].items()) for state in (state_dict, own)
            )
            raise DataError(
                f"resume: the run began with other data, or other splits of them (then {then} rows, now {now}). Its"
                " weights mean nothing here, and rows that it has learned from may be tested: leave the data and their"
                " settings as they were, or start anew."
            )

    def _prepare(self, folder: Path, limit: int) -> None:
        # Torch, the keys of all rows and the parts in the making need most of the rest.
        preparation = Preparation(self.settings, self.read, folder, limit // 16)
        try:
            preparation.run()
        finally:
            self.quarantine = preparation.quarantine

    def _open(self, limit: int) -> None:
        folder = self._folder
        facts = json.loads((folder / METADATA).read_text())
        self.columns = [Column(**column) for column in facts["columns"]]
        self.inputs = input_spec(facts["inputs"])
        self.target = target_spec(facts["target"])
        self.serving_schema: dict[str, Any] = facts["described"]
        self.splits = facts["splits"]
        self.prepared = _digest([facts[name] for name in FITTED], folder, facts["parts"])
        self.findings = [Finding(**finding) for finding in facts["findings"]]
        for note in facts["notes"]:
            log.info("%s", note)
        self.quarantine = pl.read_parquet(folder / QUARANTINE)
        if self.sampling == "balanced" and self.target.task == "regression":
            raise DataError(f"data.sampling=balanced: only classes can be balanced, and '{self.target.name}' has none")
        if self.audit == "strict":
            refuse(self.findings)
        with quiet():
            self.features = torch.jit.load(folder / FEATURES)
        size = sum(part[2] for parts in facts["parts"].values() for part in parts)
        kind, why = choose(self.wanted_store, size, limit, self._device())
        log.info("store: %s (%s)", kind, why)
        for split, parts in facts["parts"].items():
            self._parts[split] = [folder / PARTS / name for name, _, _ in parts]
            disk = DiskStore(self._parts[split], [rows for _, rows, _ in parts], sum(size for _, _, size in parts))
            place = self._device() if kind == "device" else CPU
            self.stores[split] = disk if kind == "disk" else disk.read(place)

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
        """Where the network is; the CPU while no trainer is known."""
        return CPU if self.trainer is None else self.trainer.strategy.root_device

    def head(self, split: SplitName, rows: int) -> Rows:
        """The first encoded rows of a split, on the CPU."""
        store = self.stores[split]
        parts, found = [], 0
        for part, length in enumerate(store.lengths):
            if found >= rows:
                break
            parts.append(part)
            found += length
        held, index = store.window(parts)
        return {name: values.cpu() for name, values in take(held, index[:rows]).items()}

    def sample(self, split: SplitName, rows: int) -> Rows:
        """A uniform sample of the encoded rows of a split, on the CPU: its first ones may be alike."""
        return draw(self.stores[split], rows)

    def frame(self, split: SplitName) -> pl.DataFrame:
        """The first cleaned rows of a split, `datamodules.preparation.pipeline.HEAD` at most."""
        return pl.read_parquet(self._folder / f"{split}.parquet")

    def row_locations(self, split: SplitName) -> pl.DataFrame:
        """File and line (FILE, LINE) of each row of a split, in the order of its store."""
        return pl.concat([pl.read_parquet(file.with_suffix(PLACES)) for file in self._parts[split]])

    def raw(self, split: SplitName, rows: int) -> tuple[dict[str, Tensor], dict[str, list[str]], dict[str, Tensor]]:
        """The first rows of a split as the artefact takes them: numbers, strings and images by column; at most
        `datamodules.preparation.pipeline.HEAD`.
        """
        frame = self.frame(split).head(rows)
        kinds = {column["name"]: column["kind"] for column in self.serving_schema["columns"]}
        pixels = self.head(split, rows) if self.inputs.images else {}
        return (
            {name: as_tensor(frame[name]) for name, kind in kinds.items() if kind in ("number", "date")},
            {name: frame[name].fill_null("").to_list() for name, kind in kinds.items() if kind in ("category", "text")},
            {image.name: pixels[f"images.{image.name}"] for image in self.inputs.images},
        )

    def describe(self) -> dict[str, Any]:
        """What serving must know: "columns", in order, for checks and flags; the names of "unused" ones; "target"; and
        "reference", for drift.
        """
        return self.serving_schema


def _digest(facts: Sequence[Any], folder: Path, parts: Mapping[str, Sequence[Any]]) -> str:
    """Of what was fitted, and of the lines that are the rows of each split."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for split in sorted(parts):
        for name, *_ in parts[split]:
            lines = pl.read_parquet((folder / PARTS / name).with_suffix(PLACES), columns=[LINE])[LINE]
            digest.update(lines.to_numpy().tobytes())
        digest.update(split.encode())
    return digest.hexdigest()


def batch_size_for(rows: int) -> int:
    """The batch size that suits so many training rows."""
    return next((size for limit, size in BATCH_SIZES.items() if rows < limit), 1024)
