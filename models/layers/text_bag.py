"""Bag of words: token ids of a text column -> weighted sum of learned word vectors per row."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl
import torch
from torch import Tensor, nn

from common.errors import InputError
from datamodules.schema import TextSpec

log = logging.getLogger(__name__)

VECTORS = "vectors.txt"
"""File of word vectors in the folder of a Word2Vec run, in word2vec's text format."""


def rows_of(offsets: Tensor) -> Tensor:
    """Returns the row of each token: offsets int64 (rows + 1,) -> int64 (tokens,)."""
    rows: Tensor = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=offsets.device), offsets.diff())
    return rows


def shared_words(specs: Sequence[TextSpec], *, ngrams: bool = True) -> tuple[tuple[str, ...], Tensor, list[int]]:
    """Merges the vocabularies of several text columns; returns the words, `ids` and `starts`.

    Token t of column c has the id `ids[starts[c] + t]`, from 1 on; 0 is unknown. Without `ngrams`, n-grams are unknown.
    """
    tokens = dict.fromkeys(token for spec in specs for token in spec.tokens if ngrams or not token.startswith("#"))
    index_of = {token: index for index, token in enumerate(tokens, start=1)}
    ids: list[int] = []
    starts: list[int] = []
    for spec in specs:
        starts.append(len(ids))
        ids += [0, *(index_of.get(token, 0) for token in spec.tokens)]
    return tuple(tokens), torch.tensor(ids), starts


def tfidf(tokens: Tensor, offsets: Tensor, idf: Tensor) -> Tensor:
    """Returns weights (tokens,) of the tokens of ragged rows; `idf` (vocabulary + 1,) is 0 for the unknown token.

    A word that occurs tf times in a row has the weight (1 + ln tf) * idf, divided by the L2 norm of the row, as in
    scikit-learn's TfidfVectorizer(sublinear_tf=True). Its tf tokens share this weight equally.
    """
    row = rows_of(offsets)
    _, word, counts = torch.unique(row * len(idf) + tokens, return_inverse=True, return_counts=True)
    times: Tensor = counts.index_select(0, word).to(idf.dtype)
    weight = (1 + times.log()) * idf.index_select(0, tokens)
    squares = torch.zeros(len(offsets) - 1, dtype=idf.dtype, device=idf.device).index_add_(0, row, weight**2 / times)
    return weight / times * squares.clamp_min(1e-30).rsqrt().index_select(0, row)


def mean_weights(tokens: Tensor, offsets: Tensor) -> Tensor:
    """Returns weights (tokens,) for the mean over the known tokens of each row; unknown tokens have weight 0."""
    row, known = rows_of(offsets), (tokens > 0).float()
    counts = torch.zeros(len(offsets) - 1, device=tokens.device).index_add_(0, row, known)
    return known / counts.clamp_min(1).index_select(0, row)


class TextBag(nn.Module):
    """Weighted sum of the learned vectors of the words of a text; the order of words does not matter.

    Returns float (rows, `width`). Unknown words have weight 0; a row without known words gives zeros. `vectors`: run
    folder of Word2Vec whose vectors are the initial ones; `width` is then their size instead of `size`.
    """

    idf: Tensor

    def __init__(
        self,
        spec: TextSpec,
        size: int,
        weighting: Literal["tfidf", "mean"] = "tfidf",
        vectors: str | None = None,
    ) -> None:
        super().__init__()
        if weighting not in ("tfidf", "mean"):
            raise ValueError(f"weighting={weighting!r}: choose tfidf or mean.")
        self.tokens = f"tokens.{spec.name}"
        self.offsets = f"offsets.{spec.name}"
        self.tfidf = weighting == "tfidf"
        # Not persistent: it follows from the data, not from training.
        self.register_buffer("idf", torch.tensor((0.0, *spec.idf)), persistent=False)
        if vectors is None:
            start = torch.empty(len(spec.tokens) + 1, size).uniform_(-1, 1) / size**0.5
        else:
            start = load_vectors(spec, vectors)
        self.width = start.shape[1]
        self.embedding = nn.EmbeddingBag.from_pretrained(start, freeze=False, mode="sum", include_last_offset=True)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        tokens, offsets = batch[self.tokens], batch[self.offsets]
        weights = tfidf(tokens, offsets, self.idf) if self.tfidf else mean_weights(tokens, offsets)
        output: Tensor = self.embedding(tokens.long(), offsets, weights)
        return output


def load_vectors(spec: TextSpec, run: str) -> Tensor:
    """Returns vectors (vocabulary + 1, size) from a run folder of Word2Vec, and logs how many words it has.

    Words that it does not have get small random vectors. Raises InputError if the folder has no vectors, and ValueError
    if it has none of the words.
    """
    words, vectors = read_vectors(run)
    index_of = {word: index for index, word in enumerate(words)}
    found = [(index, index_of[word]) for index, word in enumerate(spec.tokens, start=1) if word in index_of]
    if not found:
        raise ValueError(
            f"vectors={run}: none of its words occurs in column {spec.name!r}; use a run on similar texts."
        )
    start = torch.empty(len(spec.tokens) + 1, vectors.shape[1]).uniform_(-1, 1) * 0.1 * vectors.std()
    ours, theirs = torch.tensor(found).T
    start[ours] = vectors[theirs]
    log.info("%s: vectors of %d of %d words are initialized from %s", spec.name, len(found), len(spec.tokens), run)
    return start


def read_vectors(run: str) -> tuple[list[str], Tensor]:
    """Returns words and vectors (words, size) from a run folder of Word2Vec; raises InputError if it has none."""
    path = Path(run, VECTORS)
    if not path.exists():
        raise InputError(f"{run} has no {VECTORS}: use the folder of a run of model=word2vec.")
    frame = pl.read_csv(path, separator=" ", has_header=False, skip_rows=1, quote_char=None, infer_schema=False)
    return frame[:, 0].to_list(), frame[:, 1:].cast(pl.Float32).to_torch()


def write_vectors(folder: Path, words: Sequence[str], vectors: Tensor) -> Path:
    """Writes vectors atomically in word2vec's text format, which `read_vectors` and other programs read."""
    path, unfinished = folder / VECTORS, folder / f"{VECTORS}.part"
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(f"{len(words)} {vectors.shape[1]}\n")
        frame = pl.DataFrame({"word": words}).hstack(pl.from_torch(vectors.float().cpu()))
        frame.write_csv(file, separator=" ", include_header=False, quote_style="never")
    return unfinished.rename(path)
