"""Word2Vec: its loss, subsampling, learned vectors, written files, and the list of nearest words."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from datamodules.loading.batch_loader import Batches
from datamodules.loading.store import MemoryStore
from datamodules.schema import InputSpec, TextSpec
from models.architectures.word2vec import SCALE, Word2Vec, Word2VecModule
from models.layers.text_bag import TextBag, read_vectors, write_vectors
from scripts import words
from scripts.words import nearest
from tests.models import problems


def texts(*columns: tuple[str, ...]) -> InputSpec:
    """Text columns named a, b, ... with these words."""
    named = zip("abc", columns, strict=False)
    return InputSpec(texts=tuple(TextSpec(name, words, (1.0,) * len(words)) for name, words in named))


def ragged(rows: list[list[int]], name: str = "a") -> dict[str, Tensor]:
    lengths = torch.tensor([0, *map(len, rows)])
    tokens = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
    return {f"tokens.{name}": tokens, f"offsets.{name}": lengths.cumsum(0), "target": torch.zeros(len(rows))}


def drawn(rows: int, length: int, shares: list[float]) -> list[list[int]]:
    tokens: list[list[int]] = torch.multinomial(torch.tensor([shares] * rows), length, replacement=True).tolist()
    return tokens


def test_the_loss_is_that_of_pairs_within_the_window_and_negative_samples() -> None:
    torch.manual_seed(0)
    network = Word2Vec(texts(tuple("stuvw")), 1, size=4, window=3, negatives=2, subsample=1e9)
    for table in (network.centres, network.contexts):
        nn.init.normal_(table.weight, std=1.5 / SCALE)
    # Adjacent rows have different words, so that pairs across rows would change the loss.
    halves = drawn(40, 9, [0.1, 0.6, 0.3, 0, 0, 0]), drawn(40, 4, [0.1, 0, 0, 0.5, 0.3, 0.1])
    rows = [row for pair in zip(*halves, strict=True) for row in pair]
    network(ragged(rows))  # counts the words
    network.eval()
    with torch.no_grad():
        measured = torch.stack([network(ragged(rows)) for _ in range(300)]).mean()

    scores = SCALE**2 * network.centres.weight.detach() @ network.contexts.weight.detach().T
    flat = torch.tensor([word for row in rows for word in row])
    shares = torch.bincount(flat)[1:] ** 0.75
    noise = F.softplus(scores[:, 1:]) @ (shares / shares.sum())
    total = weights = 0.0
    for row in rows:
        known = [word for word in row if word]
        for i, centre in enumerate(known):
            for j, context in enumerate(known):
                if 0 < abs(i - j) <= 3:
                    likely = (4 - abs(i - j)) / 3  # the window of a word is 1, 2 or 3
                    total += likely * float(F.softplus(-scores[centre, context]) + 2 * noise[centre])
                    weights += likely
    assert float(measured) == pytest.approx(total / weights, rel=0.01)


def test_frequent_words_are_subsampled() -> None:
    torch.manual_seed(0)
    network = Word2Vec(texts(("often", "seldom", "rare")), 1, size=1, negatives=5, subsample=0.05)
    nn.init.zeros_(network.centres.weight)
    nn.init.ones_(network.contexts.weight)
    network(ragged(drawn(2000, 30, [0, 0.8, 0.18, 0.02]))).backward()
    # At zero all pairs have equal gradients, so gradients are proportional to the number of pairs.
    pull = network.centres.weight.grad
    assert pull is not None
    kept = torch.tensor([0, (0.8 * 0.05) ** 0.5, (0.18 * 0.05) ** 0.5, 0.02])
    torch.testing.assert_close(pull[:, 0] / pull.sum(), kept / kept.sum(), rtol=0.06, atol=0)


def test_columns_share_a_vocabulary_without_ngrams() -> None:
    network = Word2Vec(texts(("oil", "#<oi", "war"), ("peace", "war")), 1)
    assert network.words == ("oil", "war", "peace")
    batch = ragged([[1, 2, 3], [0]]) | ragged([[2], [1, 2]], "b")
    found, rows = network.sentences(batch)
    assert found.tolist() == [1, 0, 2, 0, 2, 3, 2]
    assert rows.tolist() == [0, 0, 0, 1, 3, 4, 4]


@pytest.mark.parametrize("rows", [[[]], [[0, 0], []], [[1]], [[1], [2]]])
def test_rows_without_pairs_have_zero_loss(rows: list[list[int]]) -> None:
    loss = Word2Vec(texts(("oil", "war")), 1)(ragged(rows))
    loss.backward()
    assert loss.item() == 0


WORDS = ("the", "oil", "crude", "barrel", "goal", "match", "coach")


def sentences(rows: int, seed: int) -> dict[str, Tensor]:
    """Each row has words on oil or on sport, mixed with "the"."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 3, (rows, 12), generator=generator) + 2
    tokens[rows // 2 :] += 3
    tokens[torch.rand(rows, 12, generator=generator) < 0.3] = 1
    return ragged(tokens.tolist())


def module(network: Word2Vec, **settings: Any) -> Word2VecModule:
    settings = {"monitor": "val/loss", "mode": "min"} | settings
    return Word2VecModule(network, problems.target("binary"), nn.MSELoss(), problems.ADAMW, None, **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the vectors of a short run and TensorBoard's files."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("words")
    torch.manual_seed(0)
    learned = module(Word2Vec(texts(WORDS), 1, size=8, window=3, subsample=0.1))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=8,
        logger=TensorBoardLogger(folder, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    validation = Batches(MemoryStore(sentences(50, seed=2)), 20)
    before = trainer.validate(learned, validation, verbose=False)
    trainer.fit(learned, Batches(MemoryStore(sentences(400, seed=1)), 32, shuffle=True), validation)
    state = torch.get_rng_state()
    after = [trainer.validate(learned, validation, verbose=False) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert after[0] == after[1]
    assert after[0][0]["val/loss"] < 0.8 * before[0]["val/loss"]
    assert learned.write_results(folder) == [f"vectors of words: {folder / 'vectors.txt'}"]
    return folder


def test_words_of_one_topic_have_similar_vectors(run: Path) -> None:
    written, vectors = read_vectors(str(run))
    unit = dict(zip(written, F.normalize(vectors), strict=True))
    for topic, other in ((WORDS[1:4], WORDS[4:]), (WORDS[4:], WORDS[1:4])):
        for word in topic:
            assert min(float(unit[word] @ unit[near]) for near in topic) > 0.5
            assert max(float(unit[word] @ unit[far]) for far in other) < 0.3


def test_vectors_are_written_by_frequency_for_text_bags_and_the_projector(run: Path) -> None:
    written, vectors = read_vectors(str(run))
    assert written[0] == "the"
    assert sorted(written) == sorted(WORDS)
    assert (run / "vectors.txt").read_text().startswith("7 8\nthe ")
    bag = TextBag(TextSpec("b", ("petrol", "oil"), (1.0, 1.0)), 3, vectors=str(run))
    assert torch.equal(bag.embedding.weight.detach()[2], vectors[written.index("oil")])
    config = (run / "projector_config.pbtxt").read_text()
    paths = re.findall(r'_path: "(.*)"', config)
    tensors, names = ((run / path).read_text().splitlines() for path in sorted(paths, reverse=True))
    assert names == written
    shown = torch.tensor([[float(value) for value in line.split("\t")] for line in tensors])
    torch.testing.assert_close(shown, vectors)


def test_nearest_words_are_listed_with_cosine_similarities(tmp_path: Path) -> None:
    write_vectors(tmp_path, ("oil", "war", "crude"), torch.tensor([[1.0, 0.0], [0.0, -2.0], [3.0, 4.0]]))
    assert nearest(str(tmp_path), ["Oil", "war"], 10) == (
        "oil\n  0.600  crude\n  0.000  war\nwar\n  0.000  oil\n  -0.800  crude"
    )
    assert nearest(str(tmp_path), ["crude"], 1) == "crude\n  0.600  oil"


def test_an_unknown_word_ends_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_vectors(tmp_path, ("microsoft", "war", "crude"), torch.randn(3, 2))
    monkeypatch.setattr(sys, "argv", ["words.py", "--run", str(tmp_path), "--near", "war", "microsft"])
    with pytest.raises(SystemExit) as exit_:
        words.main()
    printed = capsys.readouterr()
    assert (exit_.value.code, printed.out) == (2, "")
    assert printed.err == f"{tmp_path}: 'microsft' is not among its 3 words. Similar words: microsoft.\n"
    message = f"{tmp_path}/no has no vectors.txt: use the folder of a run of model=word2vec."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        nearest(f"{tmp_path}/no", ["war"], 3)


def test_data_without_texts_and_unsupported_settings_are_refused() -> None:
    refused = [
        (
            lambda: Word2Vec(InputSpec(numbers=("age",)), 1),
            "model=word2vec needs a text column, and there is none: set data.columns='{NAME: text}'.",
        ),
        (lambda: Word2Vec(texts(WORDS), 1, window=0), "window=0: must be above 0."),
        (
            lambda: module(Word2Vec(texts(WORDS), 1), monitor="val/accuracy"),
            "monitor: model=word2vec logs only train/loss and val/loss, not 'val/accuracy'.",
        ),
        (
            lambda: module(Word2Vec(texts(WORDS), 1), l1=0.1),
            "l1: not supported by model=word2vec: use l1=0.",
        ),
    ]
    for build, message in refused:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            build()
