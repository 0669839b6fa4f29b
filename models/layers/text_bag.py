"""Token ids of a text column -> one float vector a row: learned vectors of its words, weighted by TF-IDF or evenly."""

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
"""What a run of Word2Vec leaves in its folder: a line of counts, then a line for each word, all split by blanks."""


def rows_of(offsets: Tensor) -> Tensor:
    """The row of each token: offsets int64 (rows + 1,) -> int64 (tokens,)."""
    rows: Tensor = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=offsets.device), offsets.diff())
    return rows


def shared_words(specs: Sequence[TextSpec], *, ngrams: bool = True) -> tuple[tuple[str, ...], Tensor, list[int]]:
    """One vocabulary for several text columns: its words, and how a column's tokens become its ids, from 1 on.

    Token t of column c is `ids[starts[c] + t]`; 0 stays unknown, and so are n-grams, where they are not wanted.
    """
    tokens = dict.fromkeys(token for spec in specs for token in spec.tokens if ngrams or not token.startswith("#"))
    place = {token: index for index, token in enumerate(tokens, start=1)}
    ids: list[int] = []
    starts: list[int] = []
    for spec in specs:
        starts.append(len(ids))
        ids += [0, *(place.get(token, 0) for token in spec.tokens)]
    return tuple(tokens), torch.tensor(ids), starts


def tfidf(tokens: Tensor, offsets: Tensor, idf: Tensor) -> Tensor:
    """Weights (tokens,) of the tokens of ragged rows; `idf` is float (vocabulary + 1,) with 0 for the unknown token.

    A word that is tf times in a row weighs (1 + ln tf) * idf there, over the l2 norm of the row's words: scikit-learn's
    TfidfVectorizer(sublinear_tf=True). Each of its tf tokens has an equal part of that.
    """
    row = rows_of(offsets)
    _, word, counts = torch.unique(row * len(idf) + tokens, return_inverse=True, return_counts=True)
    times: Tensor = counts.index_select(0, word).to(idf.dtype)
    weight = (1 + times.log()) * idf.index_select(0, tokens)
    squares = torch.zeros(len(offsets) - 1, dtype=idf.dtype, device=idf.device).index_add_(0, row, weight**2 / times)
    return weight / times * squares.clamp_min(1e-30).rsqrt().index_select(0, row)


def even(tokens: Tensor, offsets: Tensor) -> Tensor:
    """Weights (tokens,) that make the mean of a row's known tokens; an unknown one weighs 0."""
    row, known = rows_of(offsets), (tokens > 0).float()
    counts = torch.zeros(len(offsets) - 1, device=tokens.device).index_add_(0, row, known)
    return known / counts.clamp_min(1).index_select(0, row)


class TextBag(nn.Module):
    """A row of text as the weighted sum of its words' learned vectors; order does not matter.

    Gives float (rows, `width`); unknown words weigh nothing, and a row without known words gives zeros. With
    `vectors`, a run folder of Word2Vec, the vectors start as that run's, and `width` is theirs in place of `size`.
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
        weights = tfidf(tokens, offsets, self.idf) if self.tfidf else even(tokens, offsets)
        output: Tensor = self.embedding(tokens.long(), offsets, weights)
        return output


def load_vectors(spec: TextSpec, run: str) -> Tensor:
    """Vectors (vocabulary + 1, size) from a run folder of Word2Vec, and says how many words were found there.

    Words that were not start random and small beside the others. ValueError where the folder has no vectors.
    """
    words, vectors = read_vectors(run)
    place = {word: index for index, word in enumerate(words)}
    found = [(index, place[word]) for index, word in enumerate(spec.tokens, start=1) if word in place]
    if not found:
        raise ValueError(
            f"vectors={run}: none of its words is in the column {spec.name!r}; it is a run on other texts."
        )
    start = torch.empty(len(spec.tokens) + 1, vectors.shape[1]).uniform_(-1, 1) * 0.1 * vectors.std()
    ours, theirs = torch.tensor(found).T
    start[ours] = vectors[theirs]
    log.info("%s: vectors of %d of %d words start as in %s", spec.name, len(found), len(spec.tokens), run)
    return start


def read_vectors(run: str) -> tuple[list[str], Tensor]:
    """Words and their vectors (words, size) of a run folder of Word2Vec; InputError where it has none."""
    path = Path(run, VECTORS)
    if not path.exists():
        raise InputError(f"{run} holds no {VECTORS}: give the folder of a run of model=word2vec.")
    frame = pl.read_csv(path, separator=" ", has_header=False, skip_rows=1, quote_char=None, infer_schema=False)
    return frame[:, 0].to_list(), frame[:, 1:].cast(pl.Float32).to_torch()


def write_vectors(folder: Path, words: Sequence[str], vectors: Tensor) -> Path:
    """Writes word2vec's text format, which `read_vectors` and other programs read, whole or not at all."""
    path, unfinished = folder / VECTORS, folder / f"{VECTORS}.part"
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(f"{len(words)} {vectors.shape[1]}\n")
        frame = pl.DataFrame({"word": words}).hstack(pl.from_torch(vectors.float().cpu()))
        frame.write_csv(file, separator=" ", include_header=False, quote_style="never")
    return unfinished.rename(path)
