"""Word2Vec: word vectors learned from the contexts of words in the texts of the training rows."""

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
"""Number of negative samples per batch, shared by all pairs so that one matrix product scores them."""
CHUNK_SIZE = 1024
"""Number of words scored against the negative samples at a time, small enough for a CPU cache."""
SCALE = 10.0
"""Ratio of vectors to parameters, so that vectors become long enough at the usual learning rates."""
MAX_PROJECTED = 5000
"""Maximum number of words for TensorBoard's projector, which is slow with more."""


class _NetworkLoss(nn.Module):
    """The loss of a network whose output is its loss."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return output


class Word2VecModule(SupervisedModule):
    """Trains Word2Vec. Does not use the target; logs only the loss.

    Each evaluation draws the same pairs and negative samples, so that epochs are comparable.
    """

    answers_rows = False
    network: "Word2Vec"

    def __init__(self, network: "Word2Vec", target: TargetSpec, loss: nn.Module, *args: Any, **settings: Any) -> None:
        super().__init__(network, target, _NetworkLoss(), *args, **settings)
        if self.monitor not in ("train/loss", "val/loss"):
            raise InputError(f"monitor: model=word2vec logs only train/loss and val/loss, not {self.monitor!r}.")
        if self.l1 > 0:
            raise InputError("l1: not supported by model=word2vec: use l1=0.")

    def _update_metrics(self, batch: Batch) -> None:
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.eval_loss_mean.rows)
            self.eval_loss_mean.add(self.network(batch), len(batch["target"]))

    def _log_metrics(self, split: str) -> None:
        self.guard.check_losses(split, self.eval_loss_mean)
        self._log({f"{split}/loss": self.eval_loss_mean.total / self.eval_loss_mean.rows})

    def write_results(self, folder: Path) -> list[str]:
        """Writes the word vectors, most frequent word first; TensorBoard's projector shows the first MAX_PROJECTED.

        `vectors` of models.layers.text_bag.TextBag and scripts/words.py read the file from this folder.
        """
        order = self.network.counts[1:].argsort(descending=True, stable=True).tolist()
        words = [self.network.words[index] for index in order]
        vectors = self.network.vectors()[order]
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_embedding(vectors[:MAX_PROJECTED], words[:MAX_PROJECTED], tag="words")
        return [f"vectors of words: {write_vectors(folder, words, vectors)}"]


class Word2Vec(nn.Module):
    """Skip-gram with negative sampling and subsampling of frequent words (Mikolov et al., arXiv 1310.4546).

    Each row of each text column is a sentence; the columns share the vocabulary `words`. First, unknown words are
    removed and a word with relative frequency f is kept with probability sqrt(subsample / f). A word is then paired
    with its neighbors up to a random distance from 1 to `window`. Each pair has the weight of `negatives` negative
    samples, drawn with probability proportional to count^0.75.

    Batch -> mean loss of its pairs, a scalar. Counts words in training.
    """

    module_class: ClassVar = Word2VecModule
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
            raise ValueError("model=word2vec needs a text column, and there is none: set data.columns='{NAME: text}'.")
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
        counts = self.counts.clamp_min(1)  # in the first epoch a word may be sampled before it is counted
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
            same_row = rows[left] == rows[right]
            for centre, context in ((left, right), (right, left)):
                paired = (same_row & (reach[centre] >= distance)).float()
                pairs[centre] += paired
                loss = loss - (F.logsigmoid((centres[centre] * contexts[context]).sum(1)) * paired).sum()
        noise = SCALE * self.contexts(torch.multinomial(counts**0.75, NOISE, replacement=True))
        for chunk, weight in zip(torch.split(centres, CHUNK_SIZE), torch.split(pairs, CHUNK_SIZE), strict=True):
            loss = loss + self.negatives / NOISE * (F.softplus(chunk @ noise.T).sum(1) * weight).sum()
        return loss / pairs.sum().clamp_min(1)

    def sentences(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the words of all columns, concatenated (0 is unknown), and the sentence number of each word."""
        words, rows = [], []
        for index, (name, start) in enumerate(zip(self.names, self.starts, strict=True)):
            offsets = batch[f"offsets.{name}"]
            words.append(self.ids[batch[f"tokens.{name}"] + start])
            rows.append(rows_of(offsets) + index * len(offsets))
        return torch.cat(words), torch.cat(rows)

    def vectors(self) -> Tensor:
        """Returns vectors of `words`, (words, size): the sum of center and context vectors, as in GloVe (2014)."""
        return SCALE * (self.centres.weight + self.contexts.weight).detach()[1:]
