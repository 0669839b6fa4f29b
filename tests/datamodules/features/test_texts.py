"""Texts: tokens, equal in Python and TorchScript; vocabulary and idf are equal to those of scikit-learn."""

import functools
import io
import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from datamodules.features.texts import TOKEN, TRANSLATION, Texts, count_tokens, split, vocabulary

ngram_sizes = st.none() | st.tuples(st.integers(1, 5), st.integers(1, 5)).map(lambda sizes: (min(sizes), max(sizes)))
# Letters and blanks with similar bytes, in addition to any text.
similar_bytes = [*TRANSLATION, *"aZ09àéèÉÃ\u0301£İßſΣςΖжѠ漢あ\u200d\u2028\ufeff😀", "\0", "\n"]
characters = st.sampled_from(similar_bytes) | st.characters(codec="utf-8")
cells_of = st.lists(st.none() | st.text(characters, max_size=12), max_size=6)


def tokens(text: str, ngrams: tuple[int, int] | None = None) -> list[str]:
    return split(pl.Series([text]), ngrams)[TOKEN].to_list()


def fitted(cells: pl.Series, ngrams: tuple[int, int] | None = None) -> Texts:
    counts = count_tokens(cells, functools.partial(split, ngrams=ngrams))
    return Texts(["x"], [vocabulary(counts, 100_000)[0]], ngrams)


def scripted(texts: Texts) -> nn.Module:
    """The module as loaded from an artifact."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(texts), file)
    file.seek(0)
    module: nn.Module = torch.jit.load(file)
    return module


def rows_of(encoded: dict[str, Tensor], name: str = "x") -> list[list[int]]:
    return [
        encoded[f"tokens.{name}"][start:end].tolist()
        for start, end in itertools.pairwise(encoded[f"offsets.{name}"].tolist())
    ]


@pytest.fixture(scope="module")
def messages(data_dir: Path) -> pl.Series:
    lines = (data_dir / "sms_spam" / "sms.tsv").read_text("utf-8").split("\n")
    return pl.Series([line.split("\t", 1)[1] for line in lines if line])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("WINNER!! Call 09061701461 now_or-never", ["winner", "call", "09061701461", "now", "or", "never"]),
        ("don't", ["don", "t"]),
        ("", []),
        (" \t\n!?", []),
        ("a\0b", ["a", "b"]),
        ("£100 or\u00a0€5…“yes”—no", ["100", "or", "5", "yes", "no"]),
        ("ÀÉÎ Ÿ ŁÓDŹ ΑΘΉΝΑ МОСКВА Їжак", ["àéî", "ÿ", "łódź", "αθήνα", "москва", "їжак"]),
        ("İSTANBUL ẞ", ["İstanbul", "ẞ"]),
        ("今日は、良い。天気！", ["今日は", "良い", "天気"]),
        ("\u0301 e\u0301 great😀", ["\u0301", "e\u0301", "great😀"]),
        ("zero\u200bwidth join\u200der \ufeffmark", ["zero", "width", "join\u200der", "mark"]),
    ],
)
def test_tokens_are_lower_case_runs_of_letters_and_digits(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_ngrams_follow_their_word_and_differ_from_words() -> None:
    assert tokens("her é", (3, 4)) == ["her", "#<he", "#her", "#er>", "#<her", "#her>", "é", "#<é>"]


def test_a_very_long_token_has_ngrams_of_its_first_characters_only() -> None:
    long = "😀" * 200_000
    assert tokens(long, (3, 3)) == [long, "#<😀😀", *["#😀😀😀"] * 97]
    encoded = scripted(Texts(["x"], [["#<😀😀", "#😀😀😀"]], (3, 3)))({"x": [long]}, 1)
    assert rows_of(encoded) == [[0, 1, *[2] * 97]]


def test_replacements_of_characters_have_the_same_number_of_bytes() -> None:
    assert all(len(old.encode()) == len(new.encode()) for old, new in TRANSLATION.items())
    assert not set(TRANSLATION) & set("".join(TRANSLATION.values()).replace(" ", ""))


@settings(deadline=None, max_examples=40)
@given(learned=cells_of, cells=cells_of, ngrams=ngram_sizes)
def test_the_scripted_module_is_equal_to_the_python_module(
    learned: list[str | None], cells: list[str | None], ngrams: tuple[int, int] | None
) -> None:
    texts = fitted(pl.Series(learned + cells[::2], dtype=pl.String), ngrams)
    found, offsets = texts.encode("x", pl.Series(cells, dtype=pl.String))
    strings = {"x": [cell or "" for cell in cells]}
    for form in (texts, scripted(texts)):
        encoded = form(strings, len(cells))
        assert torch.equal(encoded["tokens.x"], found)
        assert torch.equal(encoded["offsets.x"], offsets)
    assert (found.dtype, offsets.dtype) == (torch.int32, torch.int64)
    assert offsets.shape == (len(cells) + 1,)
    expected = [[texts.ids[0].get(token, 0) for token in tokens(cell or "", ngrams)] for cell in cells]
    assert rows_of(encoded) == expected


def test_both_forms_are_equal_on_real_messages(messages: pl.Series) -> None:
    texts = fitted(messages[::2], (3, 4))
    found, offsets = texts.encode("x", messages)
    encoded = scripted(texts)({"x": messages.to_list()}, len(messages))
    assert torch.equal(encoded["tokens.x"], found)
    assert torch.equal(encoded["offsets.x"], offsets)
    assert 0 < (found == 0).sum() < len(found) / 2


def test_an_absent_column_is_an_empty_text_in_every_row() -> None:
    texts = Texts(["x", "y"], [["a", "b"], ["a"]])
    for form in (texts, scripted(texts)):
        encoded = form({"y": ["b a", ""], "z": ["", ""]}, 2)
        assert rows_of(encoded, "x") == [[], []]
        assert rows_of(encoded, "y") == [[0, 1], []]
        assert rows_of(form({"y": []}, 0), "y") == []


@pytest.mark.parametrize("text", ["free entry ", "é", "’", "Жж", "\0", "a", "\U0001f600 "])
def test_a_megabyte_of_text_is_encoded(text: str) -> None:
    whole = text * (1_000_000 // len(text.encode()))
    texts = fitted(pl.Series([whole]))
    found, _ = texts.encode("x", pl.Series([whole]))
    assert len(found) == len(tokens(whole))
    assert torch.equal(scripted(texts)({"x": [whole]}, 1)["tokens.x"], found)


def test_counts_of_parts_add_up(messages: pl.Series) -> None:
    whole = count_tokens(messages)
    parts = [count_tokens(messages[start : start + 1000]) for start in range(0, len(messages), 1000)]
    summed = parts[0]
    for part in reversed(parts[1:]):
        summed = part + summed
    assert summed.rows == whole.rows == len(messages)
    assert summed.tokens.equals(whole.tokens)


def test_counts_are_of_occurrences_and_of_rows() -> None:
    counts = count_tokens(pl.Series(["a b a", None, "b", ""]))
    assert counts.rows == 4
    assert counts.tokens.rows() == [("a", 2, 1), ("b", 2, 2)]


def test_too_many_tokens_are_reduced_to_the_most_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.features.texts.MAX_TOKENS", 2)
    counts = count_tokens(pl.Series(["c b b", "a"])) + count_tokens(pl.Series(["c c", "b"]))
    assert counts.rows == 4
    assert counts.tokens.rows() == [("b", 3, 2), ("c", 2, 1)]


def test_the_vocabulary_is_the_most_frequent_tokens_with_ties_by_name() -> None:
    counts = count_tokens(pl.Series(["b a c c c", "b a d d d", "b a"]))
    assert vocabulary(counts, 3)[0] == ["a", "b", "c"]
    assert vocabulary(counts, 3, min_rows=2)[0] == ["a", "b"]
    assert vocabulary(count_tokens(pl.Series([""])), 3) == ([], [])


def test_tf_idf_of_the_ids_is_equal_to_that_of_scikit_learn(messages: pl.Series) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    messages = messages[:2000]
    counts = count_tokens(messages)
    totals = counts.tokens["total"]
    # If the last kept token is as frequent as the first dropped one, scikit-learn may choose either.
    size = next(size for size in range(500, len(totals)) if totals[size - 1] > totals[size])
    names, idf = vocabulary(counts, size)
    each = split(messages).group_by("row", maintain_order=True).agg(TOKEN)
    tokens_of = {messages[row]: words for row, words in each.iter_rows()}
    vectorizer = TfidfVectorizer(
        sublinear_tf=True,
        tokenizer=lambda message: tokens_of.get(message, []),
        token_pattern=None,
        lowercase=False,
        max_features=size,
    )
    expected = vectorizer.fit_transform(messages.to_list())[:, [vectorizer.vocabulary_[name] for name in names]]

    found, offsets = Texts(["x"], [names]).encode("x", messages)
    rows = np.repeat(np.arange(len(messages)), np.diff(offsets.numpy()))
    occurrences = np.zeros((len(messages), size + 1))
    np.add.at(occurrences, (rows, found.numpy()), 1)
    weights = np.where(occurrences > 0, 1 + np.log(np.maximum(occurrences, 1)), 0)[:, 1:] * idf
    norms = np.linalg.norm(weights, axis=1, keepdims=True)
    assert np.abs(expected.toarray() - weights / np.where(norms > 0, norms, 1)).max() < 1e-6
