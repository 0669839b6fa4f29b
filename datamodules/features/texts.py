"""Encodes texts as token ids: lower-case words and numbers, optionally with their character n-grams.

A token is a maximal run of letters and digits. The rules can be implemented in TorchScript, where strings are UTF-8
bytes:

- ASCII controls, blanks, punctuation and symbols separate tokens; ASCII letters become lower case.
- Outside ASCII, the blanks, punctuation, symbols and controls of the blocks in `_SYMBOLS` separate tokens (no-break
  space, dashes, typographic quotes, bullets, currency signs, ideographic punctuation), except the two zero-width
  joiners. All other characters count as letters: ideographs, combining marks, emoji.
- Capitals of Latin-1, Latin Extended-A, Greek and Cyrillic become lower case if that is a single character. Other
  scripts and the Turkish dotted I keep their capitals. There is no Unicode normalization or case folding.

The n-grams of a token follow it, the shortest first. They are n-grams of the characters of "<token>" and start with
"#", which no word does: "her" with 3-grams is "her", "#<he", "#her", "#er>" (after arXiv 1607.04606). For tokens of
more than 98 characters, only the first characters have n-grams.
"""

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from common.torchscript import is_scripting

_SYMBOLS = (
    range(0x0080, 0x0100),  # Latin-1
    range(0x1680, 0x1681),  # the Ogham blank
    range(0x2000, 0x200C),  # general punctuation before the joiners
    range(0x200E, 0x2070),  # and after them
    range(0x20A0, 0x20D0),  # currency
    range(0x3000, 0x3040),  # ideographic punctuation
    range(0xFEFF, 0xFF66),  # byte order mark, full-width forms
)
_CAPITALS = (range(0x00C0, 0x0180), range(0x0370, 0x0530))  # Latin-1 and Extended-A; Greek and Cyrillic
_MARKED = 100
"""Maximum number of characters of a token, with "<" and ">", that have n-grams; longer tokens are rarely words."""
_SLICE = 8192
"""Number of rows whose tokens are in memory at a time."""
MAX_TOKENS = 4_000_000
"""Maximum number of distinct tokens counted per column; the rarest beyond it are dropped."""
ROW, TOKEN, TOTAL, ROWS = "row", "token", "total", "rows"
_PIECES = "pieces"


def _translation() -> dict[str, str]:
    """Replacement of each character that changes: a lower-case letter or blanks, with the same number of bytes."""
    ascii_ = {character: character.lower() if character.isalnum() else " " for character in map(chr, range(128))}
    symbols = [chr(code) for block in _SYMBOLS for code in block if unicodedata.category(chr(code))[0] in "CPSZ"]
    capitals = [chr(code) for block in _CAPITALS for code in block if len(chr(code).lower()) == 1]
    table = ascii_ | {c: " " * len(c.encode()) for c in symbols} | {c: c.lower() for c in capitals}
    return {old: new for old, new in table.items() if old != new}


TRANSLATION = _translation()


class Texts(nn.Module):
    """Encodes text columns as the ids of their tokens in order; 0 is an unknown token."""

    # TorchScript cannot infer the type of an empty list.
    names: list[str]
    ids: list[dict[str, int]]
    blocks: list[tuple[int, list[tuple[str, str]]]]

    def __init__(
        self, names: Sequence[str], tokens: Sequence[Sequence[str]], ngrams: tuple[int, int] | None = None
    ) -> None:
        """`tokens` holds the vocabulary of each column in order of the ids, which start at 1.

        `ngrams` is the minimum and maximum length of n-grams, or None for no n-grams.
        """
        super().__init__()
        self.names = list(names)
        self.ids = [{token: i for i, token in enumerate(vocabulary, 1)} for vocabulary in tokens]
        self.ngrams = ngrams
        self.shortest, self.longest = ngrams or (1, 0)
        self.marked: int = _MARKED
        # By first byte, with 0 for ASCII: most texts contain few of these bytes, and the other blocks are skipped.
        blocks: dict[int, list[tuple[str, str]]] = {}
        for old, new in TRANSLATION.items():
            blocks.setdefault(0 if old.isascii() else old.encode()[0], []).append((old, new))
        self.blocks = list(blocks.items())

    def forward(self, strings: dict[str, list[str]], rows: int) -> dict[str, Tensor]:
        """Returns for each column `tokens.NAME`, int32 (all tokens,), and `offsets.NAME`, int64 (rows + 1,): the start
        of each row, and the end of the last one. An absent column is an empty text in every row.
        """
        encoded: dict[str, Tensor] = {}
        for i, name in enumerate(self.names):
            cells = strings[name] if name in strings else [""] * rows
            if is_scripting():
                tokens, offsets = self.encode_bytes(self.ids[i], cells)
            else:
                tokens, offsets = self.encode(name, pl.Series(cells, dtype=pl.String))
            encoded["tokens." + name] = tokens
            encoded["offsets." + name] = offsets
        return encoded

    def split(self, cells: pl.Series) -> pl.DataFrame:
        """The tokens of all cells in order, with the position of their row in `cells`: columns ROW, TOKEN."""
        return split(cells, self.ngrams)

    def encode(self, name: str, cells: pl.Series) -> tuple[Tensor, Tensor]:
        """The tokens and offsets of `forward` for a column; null is an empty text."""
        ids = self.ids[self.names.index(name)]
        vocabulary, numbers = pl.Series(list(ids), dtype=pl.String), pl.Series(list(ids.values()), dtype=pl.Int32)
        tokens, counts = [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
        for part in cells.to_frame().iter_slices(_SLICE):
            found = self.split(part.to_series())
            known = found[TOKEN].replace_strict(vocabulary, numbers, default=0, return_dtype=pl.Int32)
            tokens.append(known.to_numpy())
            counts.append(np.bincount(found[ROW].to_numpy(), minlength=len(part)))
        return torch.from_numpy(np.concatenate(tokens)), torch.from_numpy(np.concatenate(counts).cumsum())

    def encode_bytes(self, ids: dict[str, int], cells: list[str]) -> tuple[Tensor, Tensor]:
        """`encode` in TorchScript only. Cells are joined into one string, so that one call processes all of them."""
        end = chr(0xFF)  # a byte that is not in UTF-8
        text = self.translate(end.join(cells))
        tokens: list[int] = []
        offsets = [0]
        seen: dict[str, list[int]] = {}
        for row in text.split(end):
            # Not split(): in TorchScript it treats some bytes of letters as blanks (torch 2.15).
            for word in row.split(" "):
                if word != "":
                    tokens.append(ids.get(word, 0))
                    if self.longest > 0:
                        if word not in seen:
                            seen[word] = self.ngram_ids(ids, word)
                        tokens.extend(seen[word])
            offsets.append(len(tokens))
        return torch.tensor(tokens, dtype=torch.int32), torch.tensor(offsets[: len(cells) + 1], dtype=torch.int64)

    def translate(self, text: str) -> str:
        for lead, pairs in self.blocks:
            if lead == 0 or chr(lead) in text:
                for old, new in pairs:
                    text = text.replace(old, new)
        return text

    def characters(self, text: str) -> list[str]:
        """`list(text)` in TorchScript only, where the items of a string are bytes."""
        found: list[str] = []
        for byte in list(text):
            if ord(byte) & 0xC0 == 0x80:  # continues a character
                found[-1] = found[-1] + byte
            else:
                found.append(byte)
        return found

    def ngram_ids(self, ids: dict[str, int], word: str) -> list[int]:
        characters = self.characters(("<" + word + ">")[: 4 * self.marked])[: self.marked]
        found: list[int] = []
        ngrams = characters
        for n in range(1, self.longest + 1):
            if n >= self.shortest:
                found.extend([ids.get("#" + ngram, 0) for ngram in ngrams])
            ngrams = [ngrams[i] + characters[i + n] for i in range(len(characters) - n)]
        return found


def split(cells: pl.Series, ngrams: tuple[int, int] | None = None) -> pl.DataFrame:
    """The tokens of all cells in order, with the position of their row: columns ROW, TOKEN. Null has no token."""
    if ngrams is None:
        return words(cells, TRANSLATION)
    return split_words(cells, TRANSLATION, lambda word: [word, *_ngrams(word, *ngrams)])


def words(cells: pl.Series, translation: Mapping[str, str]) -> pl.DataFrame:
    """Translates characters, then splits at blanks: columns ROW, TOKEN."""
    text = cells.fill_null("").str.replace_many(list(translation), list(translation.values()))
    found = pl.DataFrame({ROW: np.arange(len(cells)), TOKEN: text.str.extract_all("[^ ]+")})
    return found.explode(TOKEN, empty_as_null=False)


def split_words(cells: pl.Series, translation: Mapping[str, str], tokens: Callable[[str], list[str]]) -> pl.DataFrame:
    """Splits the words of the cells into tokens: columns ROW, TOKEN."""
    found = words(cells, translation)
    distinct = found[TOKEN].unique()
    pieces = pl.Series(_PIECES, [tokens(word) for word in distinct], dtype=pl.List(pl.String))
    joined = found.join(pl.DataFrame([distinct, pieces]), on=TOKEN, how="left", maintain_order="left")
    return joined.select(ROW, pl.col(_PIECES).alias(TOKEN)).explode(TOKEN, empty_as_null=False)


def _ngrams(word: str, shortest: int, longest: int) -> list[str]:
    marked = f"<{word}>"[:_MARKED]
    return [f"#{marked[i : i + n]}" for n in range(shortest, longest + 1) for i in range(len(marked) - n + 1)]


@dataclass
class TokenCounts:
    """The number of rows of a text column, and the occurrences (TOTAL) and rows (ROWS) of each token (TOKEN).

    Counts of two sets of rows can be added in any order, up to MAX_TOKENS distinct tokens.
    """

    rows: int
    tokens: pl.DataFrame

    def __add__(self, other: "TokenCounts") -> "TokenCounts":
        return _sum([self, other])


def count_tokens(cells: pl.Series, split: Callable[[pl.Series], pl.DataFrame] = split) -> TokenCounts:
    """Counts the tokens that `split` finds in the cells."""
    parts = []
    for part in cells.to_frame().iter_slices(_SLICE):
        each = split(part.to_series()).group_by(ROW, TOKEN).len(TOTAL)
        counts = each.group_by(TOKEN).agg(pl.col(TOTAL).cast(pl.Int64).sum(), pl.len().cast(pl.Int64).alias(ROWS))
        parts.append(TokenCounts(len(part), counts))
    return _sum(parts)


def _sum(parts: Sequence[TokenCounts]) -> TokenCounts:
    schema = {TOKEN: pl.String, TOTAL: pl.Int64, ROWS: pl.Int64}
    counts = pl.concat([pl.DataFrame(schema=schema), *(part.tokens for part in parts)])
    summed = counts.group_by(TOKEN).agg(pl.col(TOTAL, ROWS).sum())
    return TokenCounts(sum(part.rows for part in parts), _most_frequent(summed, MAX_TOKENS))


def _most_frequent(counts: pl.DataFrame, number: int) -> pl.DataFrame:
    """The most frequent tokens, ties in lexical order, so that the order of sums does not matter."""
    return counts.sort([TOTAL, TOKEN], descending=[True, False]).head(number)


def vocabulary(counts: TokenCounts, max_tokens: int, min_rows: int = 1) -> tuple[list[str], list[float]]:
    """The `max_tokens` most frequent tokens that occur in `min_rows` rows, and their inverse document frequencies,
    ln((1 + rows) / (1 + rows with the token)) + 1, as in scikit-learn's TfidfVectorizer.
    """
    kept = _most_frequent(counts.tokens.filter(pl.col(ROWS) >= min_rows), max_tokens)
    return kept[TOKEN].to_list(), [_idf(counts.rows, rows) for rows in kept[ROWS]]


def idf(counts: TokenCounts, tokens: Sequence[str]) -> list[float]:
    """The inverse document frequencies of tokens, which need not occur in any row."""
    rows = dict(counts.tokens.select(TOKEN, ROWS).iter_rows())
    return [_idf(counts.rows, rows.get(token, 0)) for token in tokens]


def _idf(rows: int, with_token: int) -> float:
    return math.log((1 + rows) / (1 + with_token)) + 1
