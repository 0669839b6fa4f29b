"""The third pass: cleaned rows -> encoded parts on disk."""

import logging
import time
from functools import reduce
from itertools import accumulate, chain
from operator import or_
from pathlib import Path

import numpy as np
import polars as pl
import torch

from common.distributed import ProcessGroup
from datamodules.features import Features
from datamodules.loading.store import Rows, save_part, size_of, take
from datamodules.preparation.chunks import Chunk, Chunks, as_strings, in_parallel
from datamodules.preparation.prepared_data import PARTS, ROW_LOCATIONS
from datamodules.preparation.target import encode_target
from datamodules.readers.read import FILE, LINE
from datamodules.schema import TargetSpec
from datamodules.split import SPLITS

log = logging.getLogger(__name__)

HEAD = 8192
"""Number of cleaned rows of each split that are kept, for parity checks and the distribution of predictions."""


def encode_chunks(
    chunks: Chunks, features: Features, target: TargetSpec, split_codes: dict[int, np.ndarray], folder: Path
) -> dict[str, list[tuple[str, int, int]]]:
    """Writes the parts and the first rows of each split; returns the file, rows and bytes of each part by split.

    `split_codes` holds the split of each row, by chunk. Each process encodes its own chunks.
    """
    group = ProcessGroup()
    parts_folder = folder / PARTS
    parts_folder.mkdir(exist_ok=True)
    heads: dict[str, dict[int, pl.DataFrame]] = {name: {} for name in SPLITS}
    rows_before: dict[str, dict[int, int]] = {}
    for code, name in enumerate(SPLITS):
        counts = [int((codes == code).sum()) for codes in split_codes.values()]
        rows_before[name] = dict(zip(split_codes, accumulate(counts, initial=0), strict=False))

    def encode(chunk: Chunk) -> list[tuple[int, str, str, int, int]]:
        parts = []
        codes = split_codes[chunk.number]
        chunk = chunk.filter(codes >= 0)
        codes = codes[codes >= 0]
        encoded: Rows = features.encode(chunk.frame, chunk.images)
        encoded["target"] = encode_target(chunk.frame[target.name], target)
        for code, name in enumerate(SPLITS):
            index = np.flatnonzero(codes == code)
            if not len(index):
                continue
            rows = take(encoded, torch.from_numpy(index))
            file = f"{name}-{chunk.number:06}.pt"
            save_part(parts_folder / file, rows)
            chunk.frame[index, [FILE, LINE]].write_parquet((parts_folder / file).with_suffix(ROW_LOCATIONS))
            parts.append((chunk.number, name, file, len(index), size_of(rows)))
            if rows_before[name][chunk.number] < HEAD:
                heads[name][chunk.number] = as_strings(chunk.frame[index[:HEAD]])
        return parts

    started = time.perf_counter()
    parts = list(chain.from_iterable(in_parallel(encode, chunks)))
    log.info("encoded: %s rows in %.3f s", f"{sum(part[3] for part in parts):,}", time.perf_counter() - started)
    for name in SPLITS:
        first = reduce(or_, group.gather(heads[name]))
        if group.rank == 0:
            head = pl.concat([first[number] for number in sorted(first)]).head(HEAD)
            head.write_parquet(folder / f"{name}.parquet")
    all_parts = sorted(chain(*group.gather(parts)))
    return {name: [part[2:] for part in all_parts if part[1] == name] for name in SPLITS}
