"""Raw rows -> a folder of encoded parts: read and clean, split, gather statistics, fit, encode; three walks in all."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import reduce
from itertools import accumulate, chain
from operator import add, or_
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from common.cells import MANY, clean_text, is_low_cardinality
from common.distributed import ProcessGroup
from common.torchscript import quiet
from datamodules.audit.audit import audit
from datamodules.features import Features
from datamodules.loading.store import Rows, save_part, size_of, take
from datamodules.preparation import statistics
from datamodules.preparation.chunks import Chunk, Chunks, as_strings, in_parallel
from datamodules.preparation.clean import Cleaned, Images, check_target, clean, clean_target, refuse_if_too_many
from datamodules.preparation.fit_features import Fit
from datamodules.preparation.image_columns import Pixels
from datamodules.preparation.infer_schema import check_names, infer_columns, infer_task
from datamodules.preparation.row_keys import Keys, first_copies
from datamodules.preparation.settings import Settings
from datamodules.preparation.statistics import ROW, Sample, Statistics
from datamodules.preparation.target import describe_splits, describe_target, encode_target
from datamodules.readers.read import BAD, FILE, LINE, Raw, concat
from datamodules.schema import COPY, FEATURE_KINDS, Column, DataError, Kind, TargetSpec, Task, count
from datamodules.split import SPLITS

log = logging.getLogger(__name__)

HEAD = 8192
"""Raw rows of each split that are kept, for parity and for the spread of the answers."""
LOOK = 100_000
"""Rows that the kinds of the columns are inferred from."""
SHIFT = 17
"""A row's number is that of its chunk, shifted, and its place there: known before the chunks before it are read."""
SPLIT = "lathe.split"
PLACES = ".parquet"
"""Ending of the file beside a part that has file and line of its rows."""
METADATA, FEATURES, QUARANTINE, PARTS = "facts.json", "features.pt", "quarantine.parquet", "parts"

Reader = Callable[[Any, int, int], Iterator[tuple[int, Raw]]]
"""A path, a process and the number of processes -> the chunks of raw rows that are its share, each with its number
among all.
"""


class Preparation:
    """`folder`: where the result goes; `memory`: bytes that cleaned rows may take before they are kept on disk.

    Several processes (torch.distributed) each read, clean and encode a share of the chunks; what they learn is the
    same as one process would.
    """

    quarantine = pl.DataFrame(schema=BAD)

    def __init__(self, settings: Settings, read: Reader, folder: Path, memory: int) -> None:
        self.settings = settings
        self.read = read
        self.folder = folder
        self.ranks = ProcessGroup()
        self.chunks = Chunks(folder / f"chunks-{self.ranks.rank}", memory)
        self.sample = Sample()
        self.pixels = Pixels(settings.image_size)
        self.notes: list[str] = []
        self.codes: dict[str, pl.Categorical] = {}
        """Of columns of text with few different cells, whose every spelling is then looked at once a chunk."""

    def run(self) -> None:
        """Raises DataError where the data cannot be used."""
        chunks = self._numbered(self.ranks.rank, self.ranks.world)
        if self.ranks.world == 1:
            looked = self._look(chunks)
            chunks = chain(looked, chunks)
        else:
            self._look(self._numbered(0, 1))
        keys = self._clean(chunks)
        split = self._split(keys)
        keys = replace(keys, copy=keys.copy.clear())  # 160 MB of 20 million rows
        pieces = keys.pieces(split)
        target = describe_target(self.settings.target, self.task, keys.target, split)
        sample = self._finish_sample(pieces)
        column = self.settings.split.column
        findings = audit(
            sample.drop(ROW, SPLIT).with_columns(self._replaced(sample)),
            sample[SPLIT],
            self.columns,
            target.name,
            target.task,
            split_by=self.settings.split.by,
            split_column=None if column is None else sample[column],
        )
        fit = Fit(
            self._features(),
            self.settings,
            self._gather(pieces),
            sample.filter(pl.col(SPLIT) == 0),
            self.pixels.shapes,
        )
        features, inputs = fit.features()
        parts = self._encode(features, target, pieces)
        if self.ranks.rank == 0:
            unused = [column.name for column in self.columns if column not in self._features()]
            facts = {
                "columns": [asdict(column) for column in self.columns],
                "inputs": asdict(inputs),
                "target": asdict(target),
                "described": fit.describe(target, [name for name in unused if name != target.name]),
                "splits": describe_splits(keys.target, split, target),
                "parts": parts,
                "notes": self.notes,
                "findings": [asdict(finding) for finding in findings],
            }
            (self.folder / METADATA).write_text(json.dumps(facts))
            with quiet():
                torch.jit.save(torch.jit.script(features.eval()), self.folder / FEATURES)
            self.quarantine.write_parquet(self.folder / QUARANTINE)
        shutil.rmtree(self.chunks.folder, ignore_errors=True)
        self.ranks.wait()

    def _numbered(self, rank: int, world: int) -> Iterator[tuple[int, int, Raw]]:
        """File code, number and rows of each chunk of this process among `world`."""
        for file, path in enumerate((self.settings.path, self.settings.val_path, self.settings.test_path)):
            if path is not None:
                for number, raw in self.read(path, rank, world):
                    yield file, (file << 28) + number, raw

    def _look(self, chunks: Iterator[tuple[int, int, Raw]]) -> list[tuple[int, int, Raw]]:
        """Infers the columns and the task from the first rows; returns the chunks that were read for it."""
        looked: list[tuple[int, int, Raw]] = []
        found: tuple[list[Column], Task, str, list[str]] | None = None
        if self.ranks.rank == 0:
            for item in chunks:
                looked.append(item)
                if sum(len(raw.frame) for _, _, raw in looked) >= LOOK:
                    break
            pixels: dict[str, Kind] = dict.fromkeys(looked[0][2].images, "image") if looked else {}
            frame = concat([raw.frame for _, _, raw in looked])
            coded = [name for name in frame.columns if is_low_cardinality(frame[name]) and name not in (FILE, LINE)]
            found = *self._infer(frame, pixels), coded
        found = self.ranks.gather(found)[0]
        assert found is not None
        self.columns, self.task, reason, coded = found
        self.codes = {name: pl.Categorical(pl.Categories.random()) for name in coded}
        self.notes.append(f"task: {self.task} ({reason})")
        if looked:
            first = next(raw for _, _, raw in looked if len(raw.frame))
            self.pixels.look(first, [column.name for column in self.columns if column.kind == "image"])
        self.pixels.shapes = self.ranks.gather(self.pixels.shapes)[0]
        return looked

    def _infer(self, frame: pl.DataFrame, pixels: Mapping[str, Kind]) -> tuple[list[Column], Task, str]:
        settings = self.settings
        overrides = {**pixels, **settings.columns}
        columns = infer_columns(frame, target=settings.target, overrides=overrides, missing=settings.missing)
        names = [column.name for column in columns]
        if settings.split.column is not None:
            check_names("data.split.column", [settings.split.column], names)
        labels = clean_target(frame[settings.target], settings.missing, settings.replace.get(settings.target, {}))
        if labels.null_count() == len(labels):
            raise DataError(
                f"data.target={settings.target}: no row has a value. Cells that count as missing are"
                f" {', '.join(map(repr, settings.missing))} (data.missing)."
            )
        task, reason = infer_task(labels, settings.task)
        if settings.split.by in ("group", "column"):
            why = "names the group of a row" if settings.split.by == "group" else "says which rows train"
            columns = [
                replace(column, kind="drop", reason=why) if column.name == settings.split.column else column
                for column in columns
            ]
        features = [
            column.name for column in columns if column.kind in FEATURE_KINDS and column.name != settings.target
        ]
        if not features:
            kinds = ", ".join(f"{column.name} ({column.kind})" for column in columns)
            raise DataError(f"no column is left to learn from: {kinds}. Set one with data.columns='{{NAME: category}}'")
        if settings.columns.get(settings.target) == "drop":
            raise DataError(f"data.columns: {settings.target} is data.target, and cannot be dropped")
        check_names("data.ranges", settings.ranges, names)
        check_names("data.replace", settings.replace, names)
        for column in columns:
            what = f"{column.name} is taken for {column.kind} ({column.reason})"
            if column.name in settings.ranges and (column.kind != "number" or column.name == settings.target):
                raise DataError(f"data.ranges: {what}; a range is for a number that is learnt from")
            if (
                column.name in settings.replace
                and column.kind not in ("number", "category")
                and column.name != settings.target
            ):
                raise DataError(f"data.replace: {what}; values are replaced in numbers, categories and the target")
        return columns, task, reason

    def _clean(self, chunks: Iterator[tuple[int, int, Raw]]) -> Keys:
        """The first walk: cleans each chunk and keeps it; returns the keys of all rows of all processes."""
        settings = self.settings
        quarantines = [self.quarantine]
        own: list[Keys] = []
        rows = 0
        for file, number, raw, images, cleaned in in_parallel(self._clean_piece, self.pixels.pieces(chunks)):
            rows += len(raw.frame) + len(raw.bad)
            quarantines.append(cleaned.quarantine)
            if not len(cleaned.frame):
                continue
            kept = torch.from_numpy(cleaned.kept.to_numpy().copy())
            pixels = {name: image.pixels if kept.all() else image.pixels[kept] for name, image in images.items()}
            self.chunks.append(Chunk(number, cleaned.frame, pixels))
            self.sample.add(cleaned.frame, number << SHIFT)
            target = cleaned.frame[settings.target]
            column = raw.frame[settings.split.column].filter(cleaned.kept) if settings.split.column else None
            own.append(
                Keys(
                    [number],
                    [len(target)],
                    target if self.task == "regression" else target.cast(pl.Categorical),
                    cleaned.frame[COPY],
                    column,
                    np.full(len(target), file, dtype=np.int8),
                )
            )
        self.quarantine = pl.concat(chain(*self.ranks.gather(quarantines)))
        keys = [key for keys in self.ranks.gather(own) for key in keys]
        kept_rows = sum(key.lengths[0] for key in keys)
        refuse_if_too_many(self.quarantine, kept_rows, sum(self.ranks.gather(rows)), settings.max_bad_fraction)
        return Keys.join(sorted(keys, key=lambda key: key.numbers))

    def _clean_piece(self, piece: tuple[int, int, Raw]) -> tuple[int, int, Raw, dict[str, Images], Cleaned]:
        settings = self.settings
        file, number, raw = piece
        lacking = [column.name for column in self.columns if column.name not in raw.frame.columns]
        if lacking:
            setting = ("path", "val_path", "test_path")[file]
            raise DataError(f"data.{setting}: the rows have no column {lacking[0]!r}, but those of data.path have")
        images = self.pixels.decode(raw)
        frame = self._coded(raw.frame)
        labels = clean_target(frame[settings.target], settings.missing, settings.replace.get(settings.target, {}))
        cleaned = clean(
            frame,
            self.columns,
            labels,
            self.task,
            bad=raw.bad,
            missing=settings.missing,
            replace=settings.replace,
            ranges=settings.ranges,
            images=images,
        )
        return file, number, raw, images, cleaned

    def _coded(self, frame: pl.DataFrame) -> pl.DataFrame:
        """With columns of few different cells as Categorical, unless they have become many."""
        return frame.with_columns(
            frame[name].cast(codes)
            for name, codes in self.codes.items()
            if frame.schema[name] == pl.String and len(codes.categories.to_series()) < MANY
        )

    def _split(self, keys: Keys) -> np.ndarray:
        """int8 (rows,): 0 train, 1 validation, 2 test, -1 left out."""
        settings = self.settings
        check_target(keys.target, self.task, settings.replace.get(settings.target, {}))
        first = first_copies(keys.copy.to_numpy())
        split: np.ndarray = settings.split.assign(
            keys.target,
            self.task,
            column=keys.column,
            first_copy=first,
            files=keys.file,
            missing=settings.missing,
        )
        if first is None:
            return split
        is_copy = first != np.arange(len(first))
        copies = int(is_copy.sum())
        if settings.duplicates == "drop":
            split[is_copy] = -1
            self.notes.append(f"{count(copies, 'row')} were exact copies of others and are left out")
        else:
            side = "kept" if settings.split.by == "time" else "kept, on one side of the split"
            self.notes.append(f"{count(copies, 'row')} with an exact copy before: {side}")
        return split

    def _finish_sample(self, pieces: dict[int, np.ndarray]) -> pl.DataFrame:
        """The sample of all processes, with the split of each row as SPLIT."""
        own = self.sample.ranked
        self.sample = Sample()
        for ranked in self.ranks.gather(own):
            if len(ranked):  # a process may have had no chunk
                self.sample.merge(ranked)
        sample = self.sample.frame
        codes = [
            pieces[number][rows[ROW].to_numpy() - (number << SHIFT)]
            for (number,), rows in sample.group_by(pl.col(ROW) // (1 << SHIFT), maintain_order=True)
        ]
        return sample.with_columns(pl.Series(SPLIT, np.concatenate(codes)))

    def _gather(self, pieces: dict[int, np.ndarray]) -> Statistics:
        """The second walk: the statistics of the training rows of all processes."""
        split_texts = self.settings.split_texts()

        def gather(chunk: Chunk) -> Statistics:
            return statistics.gather(
                chunk.filter(pieces[chunk.number] == 0),
                self._features(),
                missing=self.settings.missing,
                number_rules=self.settings.number_rules(self._features()),
                text_rules=self.settings.text_rules(self._features()),
                split_texts=split_texts,
            )

        own = in_parallel(gather, self.chunks)
        found = [reduce(add, own)] if len(self.chunks) else []  # a process may have had no chunk
        return reduce(add, chain(*self.ranks.gather(found)))

    def _encode(
        self, features: Features, target: TargetSpec, pieces: dict[int, np.ndarray]
    ) -> dict[str, list[tuple[str, int, int]]]:
        """The third walk: writes parts and heads; returns for each split the file, rows and bytes of each part."""
        folder = self.folder / PARTS
        folder.mkdir(exist_ok=True)
        heads: dict[str, dict[int, pl.DataFrame]] = {name: {} for name in SPLITS}
        counts = {name: [int((piece == code).sum()) for piece in pieces.values()] for code, name in enumerate(SPLITS)}
        before = {name: dict(zip(pieces, accumulate(counts[name], initial=0), strict=False)) for name in SPLITS}

        def encode(chunk: Chunk) -> list[tuple[int, str, str, int, int]]:
            parts = []
            split = pieces[chunk.number]
            chunk = chunk.filter(split >= 0)
            split = split[split >= 0]
            encoded: Rows = features.encode(chunk.frame, chunk.images)
            encoded["target"] = encode_target(chunk.frame[target.name], target)
            for code, name in enumerate(SPLITS):
                index = np.flatnonzero(split == code)
                if not len(index):
                    continue
                rows = take(encoded, torch.from_numpy(index))
                file = f"{name}-{chunk.number:06}.pt"
                save_part(folder / file, rows)
                chunk.frame[index, [FILE, LINE]].write_parquet((folder / file).with_suffix(PLACES))
                parts.append((chunk.number, name, file, len(index), size_of(rows)))
                if before[name][chunk.number] < HEAD:
                    heads[name][chunk.number] = as_strings(chunk.frame[index[:HEAD]])
            return parts

        started = time.perf_counter()
        parts = list(chain.from_iterable(in_parallel(encode, self.chunks)))
        log.info("encoded: %s rows in %.3f s", f"{sum(part[3] for part in parts):,}", time.perf_counter() - started)
        for name in SPLITS:
            first = reduce(or_, self.ranks.gather(heads[name]))
            if self.ranks.rank == 0:
                head = pl.concat([first[number] for number in sorted(first)]).head(HEAD)
                head.write_parquet(self.folder / f"{name}.parquet")
        everywhere = sorted(chain(*self.ranks.gather(parts)))
        return {name: [part[2:] for part in everywhere if part[1] == name] for name in SPLITS}

    def _replaced(self, sample: pl.DataFrame) -> list[pl.Series]:
        """The columns with replaced values, as the features replace them."""
        numbers, texts = self.settings.number_rules(self._features()), self.settings.text_rules(self._features())
        clean = {name: clean_text(sample[name], self.settings.missing) for name in texts}
        return [
            *(sample[name].replace(rules) for name, rules in numbers.items()),
            *(cells.replace(texts[name]) for name, cells in clean.items()),
        ]

    def _features(self) -> list[Column]:
        """The columns that a network gets."""
        target = self.settings.target
        return [column for column in self.columns if column.kind in FEATURE_KINDS and column.name != target]
