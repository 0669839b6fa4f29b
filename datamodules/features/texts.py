"""Texts to token ids: lower-cased words and numbers, and character n-grams of them where they are wanted.

A token is a maximal run of letters and digits. The rules are such that TorchScript can keep them, whose strings are
bytes of UTF-8:

- ASCII controls, blanks, punctuation and symbols part tokens; ASCII letters are lower-cased.
- Beyond ASCII the blanks, punctuation, symbols and controls of the blocks in `_SYMBOLS` part tokens (no-break space,
  dashes, typographic quotes, bullets, currency signs, ideographic punctuation), but for the two zero-width joiners.
  Every other character counts as a letter: ideographs, combining marks, emoji.
- The capitals of Latin-1, Latin Extended-A, Greek and Cyrillic become the one small letter that they have. Other
  scripts keep their capitals, and so does the Turkish dotted I. Nothing is normalised, composed or folded.

The n-grams of a token follow it: the shortest first, of the token between "<" and ">", cut on characters, with "#" in
front, which no word has: "her" with 3-grams is "her", "#<he", "#her", "#er>" (after arXiv 1607.04606). Of a token of
more than 98 characters only the first ones have n-grams.
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
    range(0x2000, 0x200C),  # general punctuation, before the joiners
    range(0x200E, 0x2070),  # and behind them
    range(0x20A0, 0x20D0),  # currency
    range(0x3000, 0x3040),  # ideographic punctuation
    range(0xFEFF, 0xFF66),  # byte order mark, full-width forms
)
_CAPITALS = (range(0x00C0, 0x0180), range(0x0370, 0x0530))  # Latin-1 and Extended-A; Greek and Cyrillic
_MARKED = 100
"""Characters of a token, its marks counted, that n-grams are taken of: what is longer is seldom a word."""
_SLICE = 8192
"""Rows whose tokens are in memory at a time."""
MOST_TOKENS = 4_000_000
"""Different tokens of a column that are counted at a time; of more, the rare ones are forgotten."""
ROW, TOKEN, TOTAL, ROWS = "row", "token", "total", "rows"
_PIECES = "pieces"


def _translation() -> dict[str, str]:
    """What becomes of each character that does not stay: a small letter or a blank, of as many bytes."""
    ascii_ = {character: character.lower() if character.isalnum() else " " for character in map(chr, range(128))}
    symbols = [chr(code) for block in _SYMBOLS for code in block if unicodedata.category(chr(code))[0] in "CPSZ"]
    capitals = [chr(code) for block in _CAPITALS for code in block if len(chr(code).lower()) == 1]
    table = ascii_ | {c: " " * len(c.encode()) for c in symbols} | {c: c.lower() for c in capitals}
    return {old: new for old, new in table.items() if old != new}


TRANSLATION = _translation()


class Texts(nn.Module):
    """Encodes text columns as the ids of their tokens, in order: 0 is an unknown token."""

    # TorchScript cannot tell the type of an empty list by itself.
    names: list[str]
    ids: list[dict[str, int]]
    blocks: list[tuple[int, list[tuple[str, str]]]]

    def __init__(
        self, names: Sequence[str], tokens: Sequence[Sequence[str]], ngrams: tuple[int, int] | None = None
    ) -> None:
        """`tokens`: the vocabulary of each column, in the order of the ids from 1 on; `ngrams`: the fewest and the
        most characters of n-grams, none if None.
        """
        super().__init__()
        self.names = list(names)
        self.ids = [{token: i for i, token in enumerate(vocabulary, 1)} for vocabulary in tokens]
        self.ngrams = ngrams
        self.shortest, self.longest = ngrams or (1, 0)
        self.marked: int = _MARKED
        # By their first byte, ASCII under 0: most texts have few of them, and the others are passed over.
        blocks: dict[int, list[tuple[str, str]]] = {}
        for old, new in TRANSLATION.items():
            blocks.setdefault(0 if old.isascii() else old.encode()[0], []).append((old, new))
        self.blocks = list(blocks.items())

    def forward(self, strings: dict[str, list[str]], rows: int) -> dict[str, Tensor]:
        """For each column `tokens.NAME`, int32 (all tokens,), and `offsets.NAME`, int64 (rows + 1,): where each row
        begins, and the last one ends. A column that is absent is an empty text on every row.
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
        """Every token of the cells in order, with the number of its row in `cells`: columns ROW, TOKEN."""
        return split(cells, self.ngrams)

    def encode(self, name: str, cells: pl.Series) -> tuple[Tensor, Tensor]:
        """The tokens and offsets that `forward` gives of a column of these cells; null is an empty text."""
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
        """`encode` in TorchScript, and only there. All cells are one string, as one call then serves all of them."""
        end = chr(0xFF)  # a byte that is in no UTF-8
        text = self.translate(end.join(cells))
        tokens: list[int] = []
        offsets = [0]
        seen: dict[str, list[int]] = {}
        for row in text.split(end):
            # Not split(): in TorchScript it takes single bytes of letters for blanks (torch 2.15).
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
        """`list` in TorchScript, where the items of a string are bytes; and only there."""
        found: list[str] = []
        for byte in list(text):
            if ord(byte) & 0xC0 == 0x80:  # goes on with a character
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
    """Every token of the cells in order, with the number of its row in `cells`: columns ROW, TOKEN. Null has none."""
    if ngrams is None:
        return words(cells, TRANSLATION)
    return split_words(cells, TRANSLATION, lambda word: [word, *_ngrams(word, *ngrams)])


def words(cells: pl.Series, translation: Mapping[str, str]) -> pl.DataFrame:
    """What blanks part once the characters are translated, as ROW, TOKEN."""
    text = cells.fill_null("").str.replace_many(list(translation), list(translation.values()))
    found = pl.DataFrame({ROW: np.arange(len(cells)), TOKEN: text.str.extract_all("[^ ]+")})
    return found.explode(TOKEN, empty_as_null=False)


def split_words(cells: pl.Series, translation: Mapping[str, str], tokens: Callable[[str], list[str]]) -> pl.DataFrame:
    """The tokens of each of these words, as ROW, TOKEN."""
    found = words(cells, translation)
    different = found[TOKEN].unique()
    pieces = pl.Series(_PIECES, [tokens(word) for word in different], dtype=pl.List(pl.String))
    joined = found.join(pl.DataFrame([different, pieces]), on=TOKEN, how="left", maintain_order="left")
    return joined.select(ROW, pl.col(_PIECES).alias(TOKEN)).explode(TOKEN, empty_as_null=False)


def _ngrams(word: str, shortest: int, longest: int) -> list[str]:
    marked = f"<{word}>"[:_MARKED]
    return [f"#{marked[i : i + n]}" for n in range(shortest, longest + 1) for i in range(len(marked) - n + 1)]


@dataclass
class TokenCounts:
    """Of a text column the rows, and for each token (TOKEN) how often it occurs (TOTAL) and in how many rows (ROWS).

    Those of two sets of rows add up to those of both, in any order, up to MOST_TOKENS different tokens.
    """

    rows: int
    tokens: pl.DataFrame

    def __add__(self, other: "TokenCounts") -> "TokenCounts":
        return _sum([self, other])


def count_tokens(cells: pl.Series, split: Callable[[pl.Series], pl.DataFrame] = split) -> TokenCounts:
    """The counts of some rows' tokens, as `split` finds them."""
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
    return TokenCounts(sum(part.rows for part in parts), _commonest(summed, MOST_TOKENS))


def _commonest(counts: pl.DataFrame, most: int) -> pl.DataFrame:
    """Equals by their characters, so that no order of sums changes it."""
    return counts.sort([TOTAL, TOKEN], descending=[True, False]).head(most)


def vocabulary(counts: TokenCounts, max_tokens: int, min_rows: int = 1) -> tuple[list[str], list[float]]:
    """The `max_tokens` commonest of the tokens that are in `min_rows` rows, and for each the inverse document
    frequency, ln((1 + rows) / (1 + rows with the token)) + 1: as scikit-learn's TfidfVectorizer chooses and weighs.
    """
    kept = _commonest(counts.tokens.filter(pl.col(ROWS) >= min_rows), max_tokens)
    return kept[TOKEN].to_list(), [_idf(counts.rows, rows) for rows in kept[ROWS]]


def idf(counts: TokenCounts, tokens: Sequence[str]) -> list[float]:
    """The inverse document frequency of each of these tokens; no row need have it."""
    rows = dict(counts.tokens.select(TOKEN, ROWS).iter_rows())
    return [_idf(counts.rows, rows.get(token, 0)) for token in tokens]


def _idf(rows: int, with_token: int) -> float:
    return math.log((1 + rows) / (1 + with_token)) + 1
