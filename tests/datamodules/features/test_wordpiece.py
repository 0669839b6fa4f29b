"""WordPiece: tokens are equal to those of transformers, in Python and TorchScript; supported folders."""

import io
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from datamodules.features.texts import count_tokens, idf
from datamodules.features.wordpiece import WordPiece, read_vocabulary
from datamodules.schema import DataError
from datamodules.tabular import TableDataModule
from tests.encoders import SPECIAL, transformers, vocabulary, write_tokenizer

# Words and pieces of words, accents, capitals, punctuation, ideographs, Hangul, Greek.
TOKENS = (
    *SPECIAL,
    *"aboze!.,'#=;今日オβσ",
    *(f"##{piece}" for piece in "aboze今βσς"),
    *("win", "##ner", "##ne", "caf", "##fe", "##é", "É", "Win", "한국", "ᄒ", "##ᅡ", "##ᆫ", "free", "##dom", "😀", "ı"),
)
SUPPORTED = (
    " Give the folder of an encoder with WordPiece tokens in vocab.txt or tokenizer.json, such as BERT, DistilBERT,"
    " ELECTRA, MPNet or MiniLM, not one with BPE or SentencePiece (GPT, RoBERTa, T5)."
)
characters = st.sampled_from([*"abÉé \0\r\u00a0’今한ΣßİÅ≠豈#"])
texts = st.text(characters | st.characters(codec="utf-8"), max_size=12)
FORMS = {
    "uncased": {},
    "cased": {"do_lower_case": False},
    "accents kept": {"strip_accents": False},
    "accents alone": {"do_lower_case": False, "strip_accents": True},
    "no ideographs": {"tokenize_chinese_chars": False},
}


def scripted(words: WordPiece) -> nn.Module:
    """The module as loaded from an artifact."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(words), file)
    file.seek(0)
    module: nn.Module = torch.jit.load(file)
    return module


def encoded(module: nn.Module, cells: list[str]) -> list[list[int]]:
    batch = module({"x": cells}, len(cells))
    found = batch["tokens.x"].tolist()
    return [found[start:end] for start, end in itertools.pairwise(batch["offsets.x"].tolist())]


def theirs(folder: Path) -> Callable[[Iterable[str]], list[list[int]]]:
    """Encodes with transformers, where names of special tokens such as "[SEP]" are text."""
    tokenizer = transformers().BertTokenizer.from_pretrained(folder, local_files_only=True)

    def encode(cells: Iterable[str]) -> list[list[int]]:
        ids = tokenizer(list(cells), add_special_tokens=False, split_special_tokens=True).input_ids
        # The ids of Lathe start at 1, and 0 is unknown.
        return [[0 if token == tokenizer.unk_token_id else token + 1 for token in row] for row in ids]

    return encode


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """The Python module, the scripted module, and transformers."""
    folder = write_tokenizer(tmp_path_factory.mktemp("encoder"), TOKENS, **FORMS[request.param])
    words = WordPiece(["x"], read_vocabulary(str(folder)))
    return words, scripted(words), theirs(folder)


@settings(deadline=None, max_examples=30)
@given(cells=st.lists(texts, min_size=1, max_size=4))
def test_any_text_has_the_tokens_of_transformers(form: tuple[Any, ...], cells: list[str]) -> None:
    training, artifact, reference = form
    alone = [f"a{character}b" for character in sorted(set("".join(cells)))]
    assume(encoded(training, alone) == reference(alone) if alone else True)  # see the next test
    expected = reference(cells)
    assert encoded(training, cells) == expected
    assert encoded(artifact, cells) == expected


def test_only_recent_marks_and_punctuation_differ_from_transformers(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, TOKENS)
    each = [chr(code) for code in (*range(0x3400), *range(0xA000, 0xB000), *range(0xF900, 0x10000))]
    mine, reference = WordPiece(["x"], read_vocabulary(str(folder))), theirs(folder)
    inside = [f"a{character}b" for character in each]
    pairs = zip(each, encoded(mine, inside), reference(inside), strict=True)
    different = [character for character, ours, other in pairs if ours != other]
    assert len(different) < 150
    # Unassigned characters are capitals in later versions of Unicode.
    assert {unicodedata.category(character)[0] for character in different} <= {"M", "P", "C", "S"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Winner, FREEDOM!", ["win", "##ner", ",", "free", "##dom", "!"]),
        ("win\u00a0win\twin\r\nwin", ["win"] * 4),
        ("CAFÉ cafe\u0301", ["caf", "##e", "caf", "##e"]),
        ("[SEP] [UNK]", [None] * 6),
        ("今日オ", ["今", "日", "オ"]),
        ("한", ["ᄒ", "##ᅡ", "##ᆫ"]),
        ("a\0b\u200da", ["a", "##b", "##a"]),
        ("winx free", [None, "free"]),
        ("a" * 100, ["a", *["##a"] * 99]),
        ("a" * 101, [None]),
        ("a≠b", ["a", "=", "b"]),
        (" \u2028\ufffd\n", []),
        ("", []),
    ],
)
def test_tokens_are_the_longest_pieces(tmp_path: Path, text: str, expected: list[str | None]) -> None:
    words = WordPiece(["x"], read_vocabulary(str(write_tokenizer(tmp_path, TOKENS))))
    ids = [0 if token is None else TOKENS.index(token) + 1 for token in expected]
    assert encoded(words, [text]) == encoded(scripted(words), [text]) == [ids]


@pytest.mark.parametrize("data", ["sms_spam/sms.tsv", "ag_news/ag_news_test.csv"])
@pytest.mark.parametrize("lower", [True, False])
def test_real_texts_have_the_tokens_of_transformers(tmp_path: Path, data_dir: Path, data: str, lower: bool) -> None:
    cells = (data_dir / data).read_text("utf-8").split("\n")[:700]
    folder = write_tokenizer(tmp_path, vocabulary(cells[::2]), do_lower_case=lower)
    words = WordPiece(["x"], read_vocabulary(str(folder)))
    expected = theirs(folder)(cells)
    assert encoded(words, cells) == expected
    assert encoded(scripted(words), cells) == expected
    assert sum(map(len, expected)) > 11_000


@pytest.mark.parametrize("text", ["win ", "今", "é", "😀", "a.", "\0"])
def test_a_long_text_is_encoded(tmp_path: Path, text: str) -> None:
    words = WordPiece(["x"], read_vocabulary(str(write_tokenizer(tmp_path, TOKENS))))
    whole = text * (200_000 // len(text.encode()))
    assert encoded(scripted(words), [whole]) == encoded(words, [whole])


def test_counts_and_idf_are_those_of_pieces(tmp_path: Path) -> None:
    words = WordPiece(["x"], read_vocabulary(str(write_tokenizer(tmp_path, TOKENS))))
    counts = count_tokens(pl.Series(["winner win", None, "??"]), words.split)
    assert counts.rows == 3
    assert dict(counts.tokens.select("token", "total").iter_rows()) == {"win": 2, "##ner": 1, "[UNK]": 2}
    weights = dict(zip(TOKENS, idf(counts, TOKENS), strict=True))
    assert weights["win"] == pytest.approx(1 + torch.log(torch.tensor(4 / 2)).item())
    assert weights["free"] == pytest.approx(1 + torch.log(torch.tensor(4.0)).item())


def test_a_table_is_encoded_with_the_tokens_of_the_folder_and_cached_by_their_content(tmp_path: Path) -> None:
    words = [f"winner {'free' if row % 2 else 'b'}{'!' * row}" for row in range(40)]
    pl.DataFrame({"y": ["yes", "no"] * 20, "words": words}).write_csv(tmp_path / "rows.csv")

    def prepared(folder: Path) -> TableDataModule:
        settings: dict[str, Any] = {"columns": {"words": "text"}, "cache": str(tmp_path / "cache")}
        datamodule = TableDataModule(str(tmp_path / "rows.csv"), "y", wordpiece=str(folder), **settings)
        datamodule.setup()
        return datamodule

    first = prepared(write_tokenizer(tmp_path / "first", TOKENS))
    (text,) = first.inputs.texts
    assert text.tokens == TOKENS
    known = {TOKENS[token - 1] for token in first.head("train", 10)["tokens.words"].tolist()}
    assert known == {"win", "##ner", "free", "b", "!"}
    _, strings, _ = first.raw("val", 5)
    scripted_batch = first.features({}, strings, {})
    assert torch.equal(scripted_batch["tokens.words"], first.head("val", 5)["tokens.words"])
    prepared(write_tokenizer(tmp_path / "copy", TOKENS))
    cached = {folder for folder in (tmp_path / "cache").iterdir() if folder.is_dir()}
    assert len(cached) == 1
    write_tokenizer(tmp_path / "first", [*TOKENS, "winner"])
    (changed,) = prepared(tmp_path / "first").inputs.texts
    assert changed.tokens[-1] == "winner"


def test_a_folder_that_transformers_writes_has_the_same_tokens(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "old", TOKENS, do_lower_case=False)
    tokenizer = transformers().BertTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.save_pretrained(tmp_path / "new")
    (tmp_path / "new" / "vocab.txt").unlink(missing_ok=True)
    assert read_vocabulary(str(tmp_path / "new")) == read_vocabulary(str(folder))


def test_folders_of_other_encoders_are_refused(tmp_path: Path) -> None:
    absent, empty, roberta, word = (tmp_path / name for name in ("absent", "empty", "roberta", "word"))
    empty.mkdir()
    roberta.mkdir()
    (roberta / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}}}))
    write_tokenizer(word, TOKENS, tokenizer_class="BertJapaneseTokenizer")
    broken = write_tokenizer(tmp_path / "broken", TOKENS)
    (broken / "tokenizer_config.json").write_text("{")
    unknown = write_tokenizer(tmp_path / "unknown", TOKENS, unk_token={"content": "<unk>"})
    messages = {
        absent: ": no such folder",
        empty: f": contains neither vocab.txt nor tokenizer.json.{SUPPORTED}",
        roberta: f": its tokenizer (BertTokenizer) is not that of BERT.{SUPPORTED}",
        word: f": its tokenizer (BertJapaneseTokenizer) is not that of BERT.{SUPPORTED}",
        broken: (
            ": its tokenizer cannot be read: JSONDecodeError: Expecting property name enclosed in double quotes:"
            " line 1 column 2 (char 1)"
        ),
        unknown: ": its vocabulary lacks the unknown token '<unk>'",
    }
    for folder, message in messages.items():
        with pytest.raises(DataError, match=f"^{re.escape(f'data.wordpiece={folder}{message}')}$"):
            read_vocabulary(str(folder))


def test_ngrams_and_pieces_are_mutually_exclusive(tmp_path: Path) -> None:
    folder = str(write_tokenizer(tmp_path, TOKENS))
    message = "data.char_ngrams: data.wordpiece has its own way to split words; remove one of the two"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        TableDataModule("rows.csv", "y", wordpiece=folder, char_ngrams=(3, 5))
