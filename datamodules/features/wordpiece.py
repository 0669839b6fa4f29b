"""Encodes texts as token ids of a pretrained encoder: BERT's basic tokenizer, then WordPiece with its vocabulary.

Reproduces transformers' BertTokenizer (arXiv 1810.04805), in Python and in TorchScript:

- Controls are removed. Blanks separate words. Punctuation characters and ideographs are words of one character.
- With an uncased vocabulary, characters are decomposed (NFD), marks are removed, and capitals become lower case.
- A word is split into the longest token that it starts with, then the longest "##" token that the rest starts with,
  and so on. Words that cannot be split in this way, or are longer than 100 characters, are unknown.

Names of special tokens, such as "[SEP]", are treated as text. Marks and punctuation that were added to Unicode since
2016 may be letters in the tables of transformers.
"""

import functools
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from common.torchscript import is_scripting
from datamodules.features.texts import Texts, split_words
from datamodules.schema import DataError

VOCABULARY, TOKENIZER, CONFIG = "vocab.txt", "tokenizer.json", "tokenizer_config.json"
FAMILIES = ("Bert", "DistilBert", "Electra", "MPNet", "MobileBert", "ConvBert", "SqueezeBert")
"""Model families with this tokenizer."""
_IDEOGRAPHS = (
    range(0x3400, 0x4DC0),
    range(0x4E00, 0xA000),
    range(0x20000, 0x2A6E0),
    range(0x2A700, 0x2B740),
    range(0x2B740, 0x2B820),
    range(0x2B920, 0x2CEB0),  # this start is that of transformers
)
_COMPATIBLE = (range(0xF900, 0xFB00), range(0x2F800, 0x2FA20))
"""Compatibility ideographs, which are decomposed to others."""
_PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_OTHERS = (range(0x3400), range(0x4DC0, 0x4E00), range(0xA000, 0xD800), range(0xFB00, 0x20000), range(0xE0000, 0xE1000))
"""Other blocks with assigned characters."""
_LONGEST_WORD = 100


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary and the options of a tokenizer."""

    tokens: tuple[str, ...]
    """In order of the ids, which start at 0."""
    unknown: str
    lower: bool
    strip_accents: bool
    ideographs: bool
    """Whether each ideograph is a word."""


def read_vocabulary(folder: str) -> Vocabulary:
    """Reads the vocabulary of an encoder's folder as saved by transformers. Raises DataError for other tokenizers."""
    setting, root = f"data.wordpiece={folder}", Path(folder)
    supported = (
        f"Give the folder of an encoder with WordPiece tokens in {VOCABULARY} or {TOKENIZER}, such as"
        " BERT, DistilBERT, ELECTRA, MPNet or MiniLM, not one with BPE or SentencePiece (GPT, RoBERTa, T5)."
    )
    if not root.is_dir():
        raise DataError(f"{setting}: no such folder")
    try:
        config = json.loads((root / CONFIG).read_text("utf-8")) if (root / CONFIG).exists() else {}
        if (root / VOCABULARY).exists():
            tokens = (root / VOCABULARY).read_text("utf-8").removesuffix("\n").split("\n")
        elif (root / TOKENIZER).exists():
            tokens = _from_json(json.loads((root / TOKENIZER).read_text("utf-8"))["model"])
        else:
            raise DataError(f"{setting}: contains neither {VOCABULARY} nor {TOKENIZER}. {supported}")
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError) as error:
        raise DataError(f"{setting}: its tokenizer cannot be read: {type(error).__name__}: {error}") from error
    kind = str(config.get("tokenizer_class") or "BertTokenizer")
    generic = kind in ("PreTrainedTokenizerFast", "TokenizersBackend")
    family = kind.removesuffix("Fast").removesuffix("Tokenizer")
    if not tokens or (family not in FAMILIES and not (generic and (root / TOKENIZER).exists())):
        raise DataError(f"{setting}: its tokenizer ({kind}) is not that of BERT. {supported}")
    unknown = config.get("unk_token") or "[UNK]"
    unknown = unknown["content"] if isinstance(unknown, dict) else unknown
    if unknown not in tokens:
        raise DataError(f"{setting}: its vocabulary lacks the unknown token {unknown!r}")
    lower = bool(config.get("do_lower_case", True))
    strip = config.get("strip_accents")
    return Vocabulary(
        tuple(tokens),
        unknown,
        lower,
        lower if strip is None else bool(strip),
        bool(config.get("tokenize_chinese_chars", True)),
    )


def _from_json(model: dict[str, Any]) -> list[str]:
    """The tokens of the model in tokenizer.json; empty if it is not WordPiece."""
    if model.get("type") != "WordPiece" or model.get("continuing_subword_prefix", "##") != "##":
        return []
    vocabulary: dict[str, int] = model["vocab"]
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    return ordered if [vocabulary[token] for token in ordered] == list(range(len(ordered))) else []


class WordPiece(Texts):
    """Encodes text columns as WordPiece token ids in order: 0 is unknown, i + 1 is token i of the vocabulary."""

    # TorchScript reads annotations of this class only, not of its base class.
    names: list[str]
    ids: list[dict[str, int]]
    blocks: list[tuple[int, list[tuple[str, str]]]]
    spans: list[tuple[str, str, bool]]

    def __init__(self, names: Sequence[str], vocabulary: Vocabulary) -> None:
        super().__init__(names, [vocabulary.tokens] * len(names))
        for ids in self.ids:
            del ids[vocabulary.unknown]
        self.unknown = vocabulary.unknown
        self.longest_token = max(map(len, vocabulary.tokens))
        self.longest_word: int = _LONGEST_WORD
        self.becomes = _becomes(vocabulary.lower, vocabulary.strip_accents, vocabulary.ideographs)
        self.spans = [(chr(block[0]), chr(block[-1]), False) for block in _PRIVATE]
        if vocabulary.ideographs:
            self.spans += [(chr(block[0]), chr(block[-1]), True) for block in _IDEOGRAPHS]
        # ASCII replacements of equal length are applied to the whole text, the others word by word.
        self.blocks = [(0, [(old, new) for old, new in self.becomes.items() if old.isascii() and len(new) == 1])]

    def split(self, cells: pl.Series) -> pl.DataFrame:
        ((_, pairs),) = self.blocks
        return split_words(cells, dict(pairs), lambda word: self.pieces(self.ids[0], word))

    def encode_bytes(self, ids: dict[str, int], cells: list[str]) -> tuple[Tensor, Tensor]:
        end = chr(0xFF)  # a byte that is not in UTF-8
        tokens: list[int] = []
        offsets = [0]
        seen: dict[str, list[int]] = {}
        for row in self.translate(end.join(cells)).split(end):
            for word in row.split(" "):
                if word != "":
                    if word not in seen:
                        seen[word] = [ids.get(piece, 0) for piece in self.pieces(ids, word)]
                    # In TorchScript each extend() copies the whole list (torch 2.15).
                    for token in seen[word]:
                        tokens.append(token)  # noqa: PERF402
            offsets.append(len(tokens))
        return torch.tensor(tokens, dtype=torch.int32), torch.tensor(offsets[: len(cells) + 1], dtype=torch.int64)

    def pieces(self, known: dict[str, int], run: str) -> list[str]:
        """The tokens of a text without ASCII blanks."""
        found: list[str] = []
        for word in "".join([self.become(character) for character in self.items(run)]).split(" "):
            if word != "":
                for piece in self.match(known, self.items(word)):
                    found.append(piece)  # noqa: PERF402
        return found

    def items(self, text: str) -> list[str]:
        if is_scripting():
            return self.characters(text)
        return list(text)

    def become(self, character: str) -> str:
        if character in self.becomes:
            return self.becomes[character]
        for first, last, word in self.spans:
            if first <= character and character <= last:
                return " " + character + " " if word else ""
        return character

    def match(self, known: dict[str, int], characters: list[str]) -> list[str]:
        if len(characters) > self.longest_word:
            return [self.unknown]
        found: list[str] = []
        start = 0
        while start < len(characters):
            end = min(len(characters), start + self.longest_token)
            piece = ""
            while end > start:
                piece = ("##" if start > 0 else "") + "".join(characters[start:end])
                if piece in known:
                    break
                end -= 1
            if end == start:
                return [self.unknown]
            found.append(piece)
            start = end
        return found


@functools.cache
def _becomes(lower: bool, strip_accents: bool, ideographs: bool) -> dict[str, str]:
    """Replacement of each character that changes, outside the large blocks; blanks separate words.

    A character may become several words, or nothing.
    """
    table = {}
    for block in (*_OTHERS, *_COMPATIBLE):
        apart = ideographs and block in _COMPATIBLE
        for character in map(chr, block):
            new = _separated(_normalized(character, lower, strip_accents))
            table[character] = f" {new} " if apart else new
    return {old: new for old, new in table.items() if old != new}


def _normalized(character: str, lower: bool, strip_accents: bool) -> str:
    """The character without accents and in lower case, as chosen; empty for controls."""
    if character in "\t\n\r":
        return " "
    if unicodedata.category(character) in ("Cc", "Cf", "Co") or character == "\ufffd":
        return ""
    if strip_accents:
        parts = unicodedata.normalize("NFD", character)
        character = "".join(part for part in parts if unicodedata.category(part) != "Mn")
    return "".join(part.lower() for part in character) if lower else character


def _separated(text: str) -> str:
    """Replaces blanks by " " and adds " " around punctuation, including all ASCII symbols."""
    parts = []
    for part in text:
        kind = unicodedata.category(part)[0]
        symbol = part.isascii() and part.isprintable() and not part.isalnum() and part != " "
        parts.append(" " if kind == "Z" else f" {part} " if kind == "P" or symbol else part)
    return "".join(parts)
