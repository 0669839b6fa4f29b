"""Raw strings to level codes: the cell cleaned, looked up, and 0 where training never saw it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from serving.cells import BLANKS


class Categories(nn.Module):
    """Encodes category columns: 0 is an unknown level, then the levels of the training rows, the commonest first.

    The lookup holds the spellings of missing and the replaced values as well; each spelling of a cell is cleaned once
    a call. Missing is a level of its own where training had it, and unknown where it had not.
    """

    # TorchScript cannot tell the type of an empty list by itself.
    names: list[str]
    sizes: list[int]
    levels: list[dict[str, int]]

    def __init__(
        self,
        names: Sequence[str],
        counts: Sequence[Mapping[str, int]],
        missing: Sequence[str],
        replace: Mapping[str, Mapping[str, str | None]] | None = None,
        max_levels: int = 1000,
    ) -> None:
        """`counts`: for each column, its cleaned levels in training and their rows; "" stands for missing."""
        super().__init__()
        self.names = list(names)
        # An attribute, not a literal: TorchScript writes "\r" in code as it cannot read it back (torch 2.15).
        self.blanks: str = BLANKS
        self.levels = []
        self.sizes = []
        for name, rows in zip(names, counts, strict=True):
            kept = sorted(rows, key=lambda level: (-rows[level], level))[:max_levels]
            codes = {level: code for code, level in enumerate(kept, start=1)}
            self.sizes.append(len(kept) + 1)
            absent = codes.get("", 0)
            lookup = codes | dict.fromkeys(("", *missing), absent)
            for old, new in (replace or {}).get(name, {}).items():
                lookup[old] = absent if new is None else codes.get(new, 0)
            self.levels.append(lookup)

    def forward(self, strings: dict[str, list[str]], rows: int) -> Tensor:
        """int32 (rows, columns); a column that is absent is missing on every row."""
        columns: list[Tensor] = []
        for i, name in enumerate(self.names):
            lookup = self.levels[i]
            if name in strings:
                codes: list[int] = []
                seen: dict[str, int] = {}
                for cell in strings[name]:
                    if cell not in seen:
                        seen[cell] = lookup.get(clean(cell, self.blanks), 0)
                    codes.append(seen[cell])
                columns.append(torch.tensor(codes, dtype=torch.int32))
            else:
                columns.append(torch.full((rows,), lookup[""], dtype=torch.int32))
        if len(columns) == 0:
            return torch.zeros((rows, 0), dtype=torch.int32)
        return torch.stack(columns, 1)


def clean(cell: str, blanks: str) -> str:
    """A cell without outer blanks, and a whole number without its ".0": "12.0" and "12" are one level.

    The rules of `serving.cells.clean_text`. TorchScript strings are bytes, hence ASCII blanks and digits, spelt out: a
    no-break space counts as a blank, other Unicode spaces do not.
    """
    text = cell.replace("\u00a0", " ").strip(blanks)
    dot = text.find(".")
    if dot > 0 and dot + 1 < len(text) and text[dot + 1 :].strip("0") == "":
        whole = text[:dot]
        if whole.strip("0123456789") == "" or (whole[0] in "+-" and dot > 1 and whole[1:].strip("0123456789") == ""):
            return whole
    return text
