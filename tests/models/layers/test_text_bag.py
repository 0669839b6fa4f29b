"""TextBag and TextTransformer: TF-IDF as in scikit-learn, unknown words, given vectors, order of words."""

import logging
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from datamodules.schema import InputSpec, TextSpec
from models.architectures.text_transformer import TextTransformer
from models.layers.text_bag import TextBag, read_vectors, tfidf, write_vectors

SPEC = TextSpec("title", ("oil", "price", "war", "rises"), (1.5, 1.25, 2.0, 3.0))
ROWS = [[1, 2, 4], [], [3, 0, 3, 1], [0, 0], [4]]


def ragged(rows: list[list[int]], name: str = "title") -> dict[str, Tensor]:
    """A batch of rows of token ids."""
    tokens = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
    offsets = torch.tensor([0, *np.cumsum([len(row) for row in rows])])
    return {f"tokens.{name}": tokens, f"offsets.{name}": offsets}


def script(module: torch.nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted: torch.jit.ScriptModule = torch.jit.script(module)
    return scripted


def dense(rows: list[list[int]], weights: Tensor, width: int) -> Tensor:
    """Returns the weights of each row by token, (rows, width)."""
    matrix = torch.zeros(len(rows), width, dtype=weights.dtype)
    row = torch.tensor([index for index, row in enumerate(rows) for _ in row], dtype=torch.int64)
    token = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
    return matrix.index_put_((row, token), weights, accumulate=True)


def test_tfidf_weights_equal_those_of_scikit_learn_on_sms_spam(data_dir: Path) -> None:
    lines = (data_dir / "sms_spam" / "sms.tsv").read_text(encoding="utf-8").splitlines()
    texts = [re.findall(r"\w+", line.partition("\t")[2].lower()) for line in lines]
    train, rest = texts[:4000], texts[4000:]
    theirs = TfidfVectorizer(analyzer=lambda words: words, sublinear_tf=True, max_features=2000).fit(train)
    known = {word: index + 1 for word, index in theirs.vocabulary_.items()}
    rows = [[known.get(word, 0) for word in text] for text in rest]
    batch = ragged(rows)
    idf = torch.tensor([0.0, *theirs.idf_], dtype=torch.float32)
    weights = tfidf(batch["tokens.title"], batch["offsets.title"], idf)
    ours = dense(rows, weights, len(idf))
    assert any(row.count(token) > 2 for row in rows for token in row if token)
    assert not ours[:, 0].any()
    np.testing.assert_allclose(ours[:, 1:].numpy(), theirs.transform(rest).toarray(), rtol=0, atol=1e-6)


BAGS = [TextBag(SPEC, 3, "tfidf"), TextBag(SPEC, 3, "mean")]
SCRIPTED = [script(bag) for bag in BAGS]


@given(rows=st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=6))
@settings(deadline=None)
def test_a_vector_does_not_depend_on_batch_word_order_or_torchscript(rows: list[list[int]]) -> None:
    for bag, scripted in zip(BAGS, SCRIPTED, strict=True):
        together = bag(ragged(rows)).detach()
        assert together.shape == (len(rows), bag.width) == (len(rows), 3)
        assert together.any(1).tolist() == [any(row) for row in rows]
        torch.testing.assert_close(scripted(ragged(rows)), together)
        for row, vector in zip(rows, together, strict=True):
            torch.testing.assert_close(bag(ragged([row[::-1]])).detach()[0], vector)


def test_the_mean_is_over_known_words() -> None:
    bag = TextBag(SPEC, 2, "mean")
    words = bag.embedding.weight.detach()
    means = bag(ragged(ROWS)).detach()
    torch.testing.assert_close(means[0], words[[1, 2, 4]].mean(0))
    torch.testing.assert_close(means[2], words[[3, 3, 1]].mean(0))
    assert not means[[1, 3]].any()


def test_unknown_words_have_no_weight_and_no_gradient() -> None:
    for bag in BAGS:
        bag.zero_grad()
        bag(ragged(ROWS)).square().sum().backward()
        gradient = bag.embedding.weight.grad
        assert gradient is not None
        assert gradient.any(1).tolist() == [False, True, True, True, True]


def test_vectors_are_initialized_from_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vectors = torch.randn(4, 7)
    write_vectors(tmp_path, ("oil", "1e5", "null", 'rises"'), vectors)
    words, read = read_vectors(str(tmp_path))
    assert words == ["oil", "1e5", "null", 'rises"']
    assert torch.equal(read, vectors)
    spec = TextSpec("title", ("war", "oil", "1e5"), (1.0, 1.0, 1.0))
    with caplog.at_level(logging.INFO):
        bag = TextBag(spec, 3, "mean", vectors=str(tmp_path))
    assert caplog.messages == [f"title: vectors of 2 of 3 words are initialized from {tmp_path}"]
    assert bag.width == 7
    start = bag.embedding.weight.detach()
    assert torch.equal(start[2:], vectors[:2])
    assert 0 < float(start[:2].abs().max()) <= 0.1 * float(vectors.std())
    assert bag.embedding.weight.requires_grad


def test_a_folder_without_vectors_or_without_common_words_is_refused(tmp_path: Path) -> None:
    message = f"{tmp_path} has no vectors.txt: use the folder of a run of model=word2vec."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TextBag(SPEC, 3, vectors=str(tmp_path))
    write_vectors(tmp_path, ("petrol",), torch.randn(1, 7))
    message = f"vectors={tmp_path}: none of its words occurs in column 'title'; use a run on similar texts."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TextBag(SPEC, 3, vectors=str(tmp_path))


TWO = InputSpec(texts=(SPEC, TextSpec("lead", ("war", "gold"), (1.0, 1.0))))
OTHER_ROWS = [[1], [2, 1, 1], [0], [], [2, 2]]


def transformer(spec: InputSpec, **settings: Any) -> TextTransformer:
    torch.manual_seed(0)
    network = TextTransformer(spec, 2, size=8, heads=2, **settings).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # small initial weights would hide differences
    return network


@pytest.mark.parametrize("spec", [TWO, replace(TWO, numbers=("size",), categories=(("color", 4),))])
def test_transformer_outputs_do_not_depend_on_the_batch_or_torchscript(spec: InputSpec) -> None:
    rows, others, network = ROWS * 60, OTHER_ROWS * 60, transformer(spec)
    table = {"numbers": torch.randn(300, len(spec.numbers)), "codes": torch.ones(300, len(spec.categories)).int()}
    answers = network(table | ragged(rows) | ragged(others, "lead"))
    assert answers.shape == (300, 2)
    assert bool(answers.isfinite().all())
    torch.testing.assert_close(script(network)(table | ragged(rows) | ragged(others, "lead")), answers)
    for row in range(5):
        cells = {name: values[row : row + 1] for name, values in table.items()}
        alone = network(cells | ragged([rows[row]]) | ragged([others[row]], "lead"))
        torch.testing.assert_close(alone[0], answers[row])
    assert network({name: values[:0] for name, values in table.items()} | ragged([]) | ragged([], "lead")).shape == (
        0,
        2,
    )


def test_a_transformer_uses_order_column_and_the_first_words_only() -> None:
    network = transformer(TWO, max_length=3)

    def answer(title: list[int], lead: list[int]) -> Tensor:
        return network(ragged([title]) | ragged([lead], "lead")).detach()

    first = answer([1, 2, 3], [2])
    torch.testing.assert_close(answer([1, 2, 3, 4, 1], [2]), first)
    for other in (answer([2, 1, 3], [2]), answer([1, 2], [2]), answer([1, 2, 0], [2]), answer([1, 2, 3], [])):
        assert float((other - first).abs().max()) > 1e-3
    # "war" is the same word in both columns, with different column vectors.
    assert int(network.ids[network.starts[0] + 3]) == int(network.ids[network.starts[1] + 1])
    assert float((answer([3], []) - answer([], [1])).abs().max()) > 1e-3


def test_a_transformer_learns_from_word_order() -> None:
    torch.manual_seed(0)
    network = TextTransformer(InputSpec(texts=(SPEC,)), 1, size=16, layers=1, heads=2, dropout=0.0)
    rows = torch.randint(1, 5, (256, 6))
    batch = ragged(rows.tolist())
    truth = (rows.eq(1).int().argmax(1) < rows.eq(2).int().argmax(1)).float()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(batch)[:, 0], truth).backward()
        optimizer.step()
    right = (network.eval()(batch)[:, 0] > 0).eq(truth.bool()).float().mean()
    assert float(right) > 0.95


def test_words_become_unknown_only_in_training_at_the_given_rate() -> None:
    torch.manual_seed(0)
    network = transformer(InputSpec(texts=(SPEC,)), unknown_rate=0.1).train()
    batch = ragged([[4] * 20] * 500)
    tokens, mask = network.pad(batch["tokens.title"], batch["offsets.title"])
    assert bool(mask.all())
    assert 0.09 < float(tokens.eq(0).float().mean()) < 0.11
    assert bool(network.eval().pad(batch["tokens.title"], batch["offsets.title"])[0].eq(4).all())


def test_a_transformer_without_texts_or_with_uneven_heads_is_refused() -> None:
    message = (
        "text_transformer needs texts, but there are numbers: use model=mlp, linear, tabm, realmlp, resnet,"
        " ft_transformer or tree, or declare a text column with data.columns='{NAME: text}'."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TextTransformer(InputSpec(numbers=("size",)), 2)
    with pytest.raises(ValueError, match=r"^size=10: must be a multiple of heads=4\.$"):
        TextTransformer(InputSpec(texts=(SPEC,)), 2, size=10)
