"""Raw rows -> a folder of encoded parts, in three passes: read and clean, gather statistics, encode."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from common.cells import MANY, clean_text
from common.distributed import ProcessGroup
from common.torchscript import quiet
from datamodules.audit.audit import Finding, audit
from datamodules.preparation.chunks import Chunk, Chunks, in_parallel
from datamodules.preparation.clean import Cleaned, DecodedImages, check_target, clean, clean_target, refuse_if_too_many
from datamodules.preparation.encode import encode_chunks
from datamodules.preparation.fit_features import FeatureFit
from datamodules.preparation.image_columns import ImageColumns
from datamodules.preparation.infer_schema import Schema, infer_schema
from datamodules.preparation.prepared_data import FEATURES, METADATA, QUARANTINE
from datamodules.preparation.row_keys import Keys, first_copies
from datamodules.preparation.settings import Settings
from datamodules.preparation.statistics import ROW, Sample, gather_statistics
from datamodules.preparation.target import describe_splits, describe_target
from datamodules.readers.read import BAD, Raw, concat
from datamodules.schema import COPY, Column, DataError, count, feature_columns

SCHEMA_ROWS = 100_000
"""Number of rows that the schema is inferred from."""
SHIFT = 17
"""A row's number is (chunk number << SHIFT) + position in the chunk, so it does not depend on earlier chunks."""
SPLIT = "lathe.split"

NumberedChunk = tuple[int, int, Raw]
"""Code of the file (0: path, 1: val_path, 2: test_path), number of the chunk among those of all files, and its rows."""
Reader = Callable[[Any, int, int], Iterator[tuple[int, Raw]]]
"""(path, rank, world size) -> the chunks of raw rows of this process, each with its number among all chunks."""


class Preparation:
    """Prepares the rows that `read` yields in `folder`; cleaned rows beyond `memory` bytes are kept on disk.

    Each of several processes (torch.distributed) reads, cleans and encodes a share of the chunks; the result is the
    same as with one process.
    """

    quarantine = pl.DataFrame(schema=BAD)
    schema: Schema
    columns: list[Column]
    features: list[Column]
    """The columns that are inputs of the network."""

    def __init__(self, settings: Settings, read: Reader, folder: Path, memory: int) -> None:
        self.settings = settings
        self.read = read
        self.folder = folder
        self.group = ProcessGroup()
        self.chunks = Chunks(folder / f"chunks-{self.group.rank}", memory)
        self.sample = Sample()
        self.images = ImageColumns(settings.image_size)
        self.notes: list[str] = []
        self.categories: dict[str, pl.Categorical] = {}
        """Types of text columns with few distinct cells, each of which is then read once per chunk."""

    def run(self) -> None:
        """Writes the folder. Raises DataError if the data cannot be used."""
        chunks = self._numbered(self.group.rank, self.group.world)
        if self.group.world == 1:
            first_chunks = self._infer_schema(chunks)
            chunks = chain(first_chunks, chunks)
        else:
            self._infer_schema(self._numbered(0, 1))
        keys = self._clean(chunks)
        split = self._split(keys)
        keys = replace(keys, copy=keys.copy.clear())  # frees 160 MB for 20 million rows
        split_codes = keys.by_chunk(split)
        target = describe_target(self.settings.target, self.schema.task, keys.target, split)
        sample = self._sample_of_all(split_codes)
        findings = self._audit(sample)
        fit = FeatureFit(
            self.features,
            self.settings,
            gather_statistics(self.chunks, self.features, self.settings, split_codes),
            sample.filter(pl.col(SPLIT) == 0),
            self.images.shapes,
        )
        features, inputs = fit.features()
        parts = encode_chunks(self.chunks, features, target, split_codes, self.folder)
        if self.group.rank == 0:
            unused = [each.name for each in self.columns if each not in self.features and each.name != target.name]
            metadata = {
                "columns": [asdict(column) for column in self.columns],
                "inputs": asdict(inputs),
                "target": asdict(target),
                "described": fit.describe(target, unused),
                "splits": describe_splits(keys.target, split, target),
                "parts": parts,
                "notes": self.notes,
                "findings": [asdict(finding) for finding in findings],
            }
            (self.folder / METADATA).write_text(json.dumps(metadata))
            with quiet():
                torch.jit.save(torch.jit.script(features.eval()), self.folder / FEATURES)
            self.quarantine.write_parquet(self.folder / QUARANTINE)
        shutil.rmtree(self.chunks.folder, ignore_errors=True)
        self.group.wait()

    def _numbered(self, rank: int, world: int) -> Iterator[NumberedChunk]:
        """The chunks of this process among `world`."""
        for file, path in enumerate((self.settings.path, self.settings.val_path, self.settings.test_path)):
            if path is not None:
                for number, raw in self.read(path, rank, world):
                    yield file, (file << 28) + number, raw

    def _infer_schema(self, chunks: Iterator[NumberedChunk]) -> list[NumberedChunk]:
        """Infers the schema and the image shapes from the first rows; returns the chunks that were read for it."""
        first_chunks: list[NumberedChunk] = []
        inferred: Schema | None = None
        if self.group.rank == 0:
            for item in chunks:
                first_chunks.append(item)
                if sum(len(raw.frame) for _, _, raw in first_chunks) >= SCHEMA_ROWS:
                    break
            images = first_chunks[0][2].images if first_chunks else {}
            inferred = infer_schema(concat([raw.frame for _, _, raw in first_chunks]), self.settings, images)
        schema = self.group.gather(inferred)[0]
        assert schema is not None
        self.schema, self.columns = schema, schema.columns
        self.features = feature_columns(self.columns, self.settings.target)
        self.categories = {name: pl.Categorical(pl.Categories.random()) for name in schema.low_cardinality}
        self.notes.append(f"task: {schema.task} ({schema.reason})")
        if first_chunks:
            first = next(raw for _, _, raw in first_chunks if len(raw.frame))
            self.images.infer_shapes(first, [column.name for column in self.columns if column.kind == "image"])
        self.images.shapes = self.group.gather(self.images.shapes)[0]
        return first_chunks

    def _clean(self, chunks: Iterator[NumberedChunk]) -> Keys:
        """The first pass: cleans each chunk and keeps it; returns the keys of all rows of all processes."""
        settings = self.settings
        quarantines = [self.quarantine]
        own: list[Keys] = []
        rows = 0
        for file, number, raw, images, cleaned in in_parallel(self._clean_piece, self.images.pieces(chunks)):
            rows += len(raw.frame) + len(raw.bad)
            quarantines.append(cleaned.quarantine)
            if not len(cleaned.frame):
                continue
            kept = torch.from_numpy(cleaned.kept.to_numpy().copy())
            pixels = {name: image.pixels if kept.all() else image.pixels[kept] for name, image in images.items()}
            self.chunks.append(Chunk(number, cleaned.frame, pixels))
            self.sample.add(cleaned.frame, number << SHIFT)
            target = cleaned.frame[settings.target]
            target = target if self.schema.task == "regression" else target.cast(pl.Categorical)
            column = raw.frame[settings.split.column].filter(cleaned.kept) if settings.split.column else None
            files = np.full(len(target), file, dtype=np.int8)
            own.append(Keys([number], [len(target)], target, cleaned.frame[COPY], column, files))
        self.quarantine = pl.concat(chain(*self.group.gather(quarantines)))
        keys = [key for keys in self.group.gather(own) for key in keys]
        kept_rows = sum(key.lengths[0] for key in keys)
        refuse_if_too_many(self.quarantine, kept_rows, sum(self.group.gather(rows)), settings.max_bad_fraction)
        return Keys.join(sorted(keys, key=lambda key: key.numbers))

    def _clean_piece(self, piece: NumberedChunk) -> tuple[int, int, Raw, dict[str, DecodedImages], Cleaned]:
        settings = self.settings
        file, number, raw = piece
        absent = [column.name for column in self.columns if column.name not in raw.frame.columns]
        if absent:
            setting = ("path", "val_path", "test_path")[file]
            raise DataError(f"data.{setting}: the rows have no column {absent[0]!r}, which those of data.path have")
        images = self.images.decode(raw)
        frame = self._as_categorical(raw.frame)
        cleaned = clean(
            frame,
            self.columns,
            clean_target(frame[settings.target], settings.missing, settings.target_rules),
            self.schema.task,
            bad=raw.bad,
            missing=settings.missing,
            replace=settings.rules,
            ranges=settings.ranges,
            images=images,
        )
        return file, number, raw, images, cleaned

    def _as_categorical(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Casts text columns with few distinct cells to Categorical, unless they have many by now."""
        return frame.with_columns(
            frame[name].cast(kind)
            for name, kind in self.categories.items()
            if frame.schema[name] == pl.String and len(kind.categories.to_series()) < MANY
        )

    def _split(self, keys: Keys) -> np.ndarray:
        """int8 (rows,): 0 train, 1 validation, 2 test, -1 left out."""
        settings = self.settings
        check_target(keys.target, self.schema.task, settings.target_rules)
        first = first_copies(keys.copy.to_numpy())
        given: dict[str, Any] = {"column": keys.column, "first_copy": first, "files": keys.file}
        split: np.ndarray = settings.split.assign(keys.target, self.schema.task, missing=settings.missing, **given)
        if first is None:
            return split
        is_copy = first != np.arange(len(first))
        copies = int(is_copy.sum())
        if settings.duplicates == "drop":
            split[is_copy] = -1
            self.notes.append(f"{count(copies, 'row')} were exact copies of others and are left out")
        else:
            kept = "kept" if settings.split.by == "time" else "kept, in the same split as the first copy"
            self.notes.append(f"{count(copies, 'row')} with an earlier exact copy: {kept}")
        return split

    def _sample_of_all(self, split_codes: dict[int, np.ndarray]) -> pl.DataFrame:
        """The sample of all processes, with the split of each row as SPLIT."""
        sample = Sample.merged(self.group.gather(self.sample.ranked)).frame
        codes = [
            split_codes[number][rows[ROW].to_numpy() - (number << SHIFT)]
            for (number,), rows in sample.group_by(pl.col(ROW) // (1 << SHIFT), maintain_order=True)
        ]
        return sample.with_columns(pl.Series(SPLIT, np.concatenate(codes)))

    def _audit(self, sample: pl.DataFrame) -> list[Finding]:
        numbers, texts = self.settings.number_rules(self.features), self.settings.text_rules(self.features)
        clean_texts = {name: clean_text(sample[name], self.settings.missing) for name in texts}
        replaced = [
            *(sample[name].replace(rules) for name, rules in numbers.items()),
            *(cells.replace(texts[name]) for name, cells in clean_texts.items()),
        ]
        column = self.settings.split.column
        return audit(
            sample.drop(ROW, SPLIT).with_columns(replaced),
            sample[SPLIT],
            self.columns,
            self.settings.target,
            self.schema.task,
            split_by=self.settings.split.by,
            split_column=None if column is None else sample[column],
        )
