"""Raw strings to level codes: the cell cleaned, looked up, and 0 where training never saw it."""

from collections.abc import Mapping, Sequence

import polars as pl
import torch
from torch import Tensor, nn

from common.cells import BLANKS, factorize
from common.torchscript import is_scripting


class Categories(nn.Module):
    """Encodes category columns: 0 is an unknown level, then the levels of the training rows, the commonest first.

    A column of more than `max_levels` levels has `hash_buckets` codes more: its rare and its unseen levels share them
    by a hash, so that they are told apart a little.

    The lookup holds the spellings of missing and the replaced values as well; each spelling of a cell is cleaned once
    a call. Missing is a level of its own where training had it, and unknown where it had not.
    """

    # TorchScript cannot tell the type of an empty list by itself.
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
        """`counts`: for each column, its cleaned levels in training and their rows; "" stands for missing."""
        super().__init__()
        self.names = list(names)
        # An attribute, not a literal: TorchScript writes "\r" in code as it cannot read it back (torch 2.15).
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
        """int32 (rows, columns); a column that is absent is missing on every row."""
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
        """int32 (cells,)"""
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
        """The code of a level that has none of its own."""
        buckets = self.buckets[column]
        return self.sizes[column] - buckets + fnv1a(level) % buckets if buckets > 0 else 0

    def encode(self, name: str, cells: pl.Series) -> Tensor:
        """int32 (cells,): the codes that `forward` gives these, looked up once for each spelling; null is missing."""
        different, places = factorize(cells)
        codes = self.look_up(self.names.index(name), [*different.to_list(), ""])
        places = places.cast(pl.Int32).fill_null(len(different))
        return codes.index_select(0, torch.from_numpy(places.to_numpy(writable=True)))


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
    """A cell without outer blanks, and a whole number without its ".0": "12.0" and "12" are one level.

    The rules of `common.cells.clean_text`. TorchScript strings are bytes, hence ASCII blanks and digits, spelt out: a
    no-break space counts as a blank, other Unicode spaces do not.
    """
    text = cell.replace("\u00a0", " ").strip(blanks)
    dot = text.find(".")
    if dot > 0 and dot + 1 < len(text) and text[dot + 1 :].strip("0") == "":
        whole = text[:dot]
        if whole.strip("0123456789") == "" or (whole[0] in "+-" and dot > 1 and whole[1:].strip("0123456789") == ""):
            return whole
    return text
