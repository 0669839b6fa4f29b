"""Word2Vec: vectors of words from the words around them, learned on the texts of the training rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from datamodules.schema import InputSpec, TargetSpec
from models.layers.text_bag import rows_of, shared_words, write_vectors
from models.training.lightning_module import Batch, SupervisedModule

NOISE = 256
"""Words drawn as noise for a batch. They serve all its pairs, weighted down, so that a matrix product scores them."""
PART = 1024
"""Words that are held against the noise at a time, few enough for a processor's cache."""
SCALE = 10.0
"""A vector is so many times its parameters: it has to grow long, at the learning rate that suits other networks."""
PROJECTED = 5000
"""Words that the projector is given: more than that it draws slowly."""


class Word2Vec(nn.Module):
    """Skip-gram with negative sampling and sub-sampling of frequent words (Mikolov et al., arXiv 1310.4546).

    Each row of each text column is a sentence; the columns have one vocabulary of `words` together. A word is paired
    with the words at most 1 to `window` (drawn) beside it, after unknown words are taken out and of each word of share
    f in the texts all but sqrt(subsample / f). A pair counts as much as `negatives` words drawn by count^0.75.

    Takes a batch, gives the mean loss of its pairs; in training it counts the words that it sees.
    """

    module_class: ClassVar[type[SupervisedModule]]
    unsupported: ClassVar[Mapping[str, str]] = {
        "several_processes": "Word2Vec counts words in one process",
        "ensemble": "the vectors of Word2Vec cannot be averaged",
    }

    ids: Tensor
    counts: Tensor

    def __init__(
        self,
        spec: InputSpec,
        outputs: int,
        *,
        size: int = 100,
        window: int = 10,
        negatives: int = 5,
        subsample: float = 1e-3,
    ) -> None:
        super().__init__()
        if not spec.texts:
            raise ValueError(
                "model=word2vec learns from texts, and no column is one. data.columns='{NAME: text}' makes it one."
            )
        for name, value in {"size": size, "window": window, "negatives": negatives, "subsample": subsample}.items():
            if value <= 0:
                raise ValueError(f"{name}={value}: must be above 0.")
        self.window = window
        self.negatives = negatives
        self.subsample = subsample
        self.names = [text.name for text in spec.texts]
        self.words, ids, self.starts = shared_words(spec.texts, ngrams=False)
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("counts", torch.zeros(len(self.words) + 1))
        self.centres = nn.Embedding(len(self.words) + 1, size)
        self.contexts = nn.Embedding(len(self.words) + 1, size)
        nn.init.uniform_(self.centres.weight, -0.5 / size / SCALE, 0.5 / size / SCALE)
        nn.init.zeros_(self.contexts.weight)

    def forward(self, batch: Batch) -> Tensor:
        words, rows = self.sentences(batch)
        if self.training:
            self.counts += torch.bincount(words, minlength=len(self.counts))
        counts = self.counts.clamp_min(1)  # in the first epoch a word may be drawn before it was seen
        counts[0] = 0
        keep = (self.subsample * counts.sum() / counts).sqrt()
        kept = (words > 0) & (torch.rand(len(words), device=words.device) < keep[words])
        words, rows = words[kept], rows[kept]
        centres, contexts = SCALE * self.centres(words), SCALE * self.contexts(words)

        reach = torch.randint(1, self.window + 1, (len(words),), device=words.device)
        pairs = torch.zeros(len(words), device=words.device)
        loss = torch.zeros((), device=words.device)
        for distance in range(1, min(self.window + 1, len(words))):
            left, right = slice(None, -distance), slice(distance, None)
            together = rows[left] == rows[right]
            for centre, context in ((left, right), (right, left)):
                paired = (together & (reach[centre] >= distance)).float()
                pairs[centre] += paired
                loss = loss - (F.logsigmoid((centres[centre] * contexts[context]).sum(1)) * paired).sum()
        noise = SCALE * self.contexts(torch.multinomial(counts**0.75, NOISE, replacement=True))
        for part, weight in zip(torch.split(centres, PART), torch.split(pairs, PART), strict=True):
            loss = loss + self.negatives / NOISE * (F.softplus(part @ noise.T).sum(1) * weight).sum()
        return loss / pairs.sum().clamp_min(1)

    def sentences(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The words of all columns, one behind the other, 0 for unknown, and of each the number of its sentence."""
        words, rows = [], []
        for index, (name, start) in enumerate(zip(self.names, self.starts, strict=True)):
            offsets = batch[f"offsets.{name}"]
            words.append(self.ids[batch[f"tokens.{name}"] + start])
            rows.append(rows_of(offsets) + index * len(offsets))
        return torch.cat(words), torch.cat(rows)

    def vectors(self) -> Tensor:
        """The vectors of `words`, (words, size): as centre and as context together, as GloVe has them (2014)."""
        return SCALE * (self.centres.weight + self.contexts.weight).detach()[1:]


class Word2VecModule(SupervisedModule):
    """Trains Word2Vec as other networks are trained. The target plays no part: the loss is all that is measured.

    Each measurement draws the same pairs and the same noise, so that epochs can be compared.
    """

    answers_rows = False
    network: Word2Vec

    def __init__(self, network: Word2Vec, target: TargetSpec, loss: nn.Module, *args: Any, **settings: Any) -> None:
        super().__init__(network, target, _Given(), *args, **settings)
        if self.monitor not in ("train/loss", "val/loss"):
            raise InputError(f"monitor: model=word2vec logs train/loss and val/loss alone, not {self.monitor!r}.")
        if self.l1 > 0:
            raise InputError("l1: model=word2vec has vectors, and no weights to keep small: leave l1 at 0.")

    def _update_metrics(self, batch: Batch) -> None:
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.eval_loss_mean.rows)
            self.eval_loss_mean.add(self.network(batch), len(batch["target"]))

    def _log_metrics(self, split: str) -> None:
        self.guard.check_losses(split, self.eval_loss_mean)
        self._log({f"{split}/loss": self.eval_loss_mean.total / self.eval_loss_mean.rows})

    def write_results(self, folder: Path) -> list[str]:
        """Writes the word vectors, most frequent word first; TensorBoard's projector shows the first PROJECTED.

        `vectors` of models.layers.text_bag.TextBag and scripts/words.py read the file from this folder.
        """
        order = self.network.counts[1:].argsort(descending=True, stable=True).tolist()
        words = [self.network.words[index] for index in order]
        vectors = self.network.vectors()[order]
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_embedding(vectors[:PROJECTED], words[:PROJECTED], tag="words")
        return [f"vectors of words: {write_vectors(folder, words, vectors)}"]


Word2Vec.module_class = Word2VecModule


class _Given(nn.Module):
    """The loss of a network that gives its loss."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return output
