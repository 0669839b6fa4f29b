"""Encodes raw strings as level codes: cells are cleaned and looked up; levels unknown in training get 0."""

from collections.abc import Mapping, Sequence

import polars as pl
import torch
from torch import Tensor, nn

from common.cells import BLANKS, factorize
from common.torchscript import is_scripting


class Categories(nn.Module):
    """Encodes category columns: 0 is an unknown level, followed by the training levels, the most frequent first.

    A column with more than `max_levels` levels has `hash_buckets` additional codes, which its rare and unseen levels
    share by a hash.

    The lookup also contains the spellings of missing and the replaced values; each spelling of a cell is cleaned once
    per call. Missing is a level if training rows have it, otherwise it is unknown.
    """

    # TorchScript cannot infer the type of an empty list.
    names: list[str]
    sizes: list[int]
    levels: list[dict[str, int]]
    buckets: list[int]

    def __init__(
        self,
        names: Sequence[str],
        counts: Sequence[Mapping[str, int]],
        missing: Sequence[str],
        replace: Mapping[str, Mapping[str, str | None]] | None = None,
        max_levels: int = 1000,
        hash_buckets: int = 0,
    ) -> None:
        """`counts` holds the cleaned training levels of each column and their numbers of rows; "" is missing."""
        super().__init__()
        self.names = list(names)
        # An attribute, not a literal: TorchScript saves "\r" in code in a form that it cannot load (torch 2.15).
        self.blanks: str = BLANKS
        self.levels = []
        self.sizes = []
        self.buckets = []
        for name, rows in zip(names, counts, strict=True):
            kept = sorted(rows, key=lambda level: (-rows[level], level))[:max_levels]
            codes = {level: code for code, level in enumerate(kept, start=1)}
            self.buckets.append(hash_buckets if len(kept) < len(rows) else 0)
            self.sizes.append(len(kept) + 1 + self.buckets[-1])
            absent = codes.get("", 0)
            lookup = codes | dict.fromkeys(("", *missing), absent)
            for old, new in (replace or {}).get(name, {}).items():
                lookup[old] = absent if new is None else codes.get(new, self.bucket(new, -1))
            self.levels.append(lookup)

    def forward(self, strings: dict[str, list[str]], rows: int) -> Tensor:
        """int32 (rows, columns); an absent column is missing in every row."""
        columns: list[Tensor] = []
        for i, name in enumerate(self.names):
            if name in strings:
                columns.append(self.look_up(i, strings[name]))
            else:
                columns.append(torch.full((rows,), self.levels[i][""], dtype=torch.int32))
        if len(columns) == 0:
            return torch.zeros((rows, 0), dtype=torch.int32)
        return torch.stack(columns, 1)

    def look_up(self, column: int, cells: list[str]) -> Tensor:
        """Codes of the cells of a column, int32 (cells,)."""
        lookup = self.levels[column]
        codes: list[int] = []
        seen: dict[str, int] = {}
        for cell in cells:
            if cell not in seen:
                level = clean(cell, self.blanks)
                seen[cell] = lookup[level] if level in lookup else self.bucket(level, column)
            codes.append(seen[cell])
        return torch.tensor(codes, dtype=torch.int32)

    def bucket(self, level: str, column: int) -> int:
        """The code of a level that is not in the lookup."""
        buckets = self.buckets[column]
        return self.sizes[column] - buckets + fnv1a(level) % buckets if buckets > 0 else 0

    def encode(self, name: str, cells: pl.Series) -> Tensor:
        """The output of `forward` for a column, int32 (cells,), with one lookup per spelling; null is missing."""
        distinct, index = factorize(cells)
        codes = self.look_up(self.names.index(name), [*distinct.to_list(), ""])
        index = index.cast(pl.Int32).fill_null(len(distinct))
        return codes.index_select(0, torch.from_numpy(index.to_numpy(writable=True)))


def fnv1a(text: str) -> int:
    """The 32-bit FNV-1a hash of the UTF-8 bytes (http://www.isthe.com/chongo/tech/comp/fnv/)."""
    value = 2166136261
    if is_scripting():
        for byte in text:  # TorchScript strings are bytes
            value = ((value ^ (ord(byte) & 255)) * 16777619) & 4294967295
    else:
        for code in text.encode():
            value = ((value ^ code) * 16777619) & 4294967295
    return value


def clean(cell: str, blanks: str) -> str:
    """Strips outer blanks and the ".0" of whole numbers, so that "12.0" and "12" are one level.

    The rules are those of `common.cells.clean_text`. TorchScript strings are bytes, so blanks and digits are listed
    explicitly: ASCII and the no-break space, but no other Unicode spaces.
    """
    text = cell.replace("\u00a0", " ").strip(blanks)
    dot = text.find(".")
    if dot > 0 and dot + 1 < len(text) and text[dot + 1 :].strip("0") == "":
        whole = text[:dot]
        if whole.strip("0123456789") == "" or (whole[0] in "+-" and dot > 1 and whole[1:].strip("0123456789") == ""):
            return whole
    return text
