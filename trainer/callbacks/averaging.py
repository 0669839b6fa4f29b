"""Averages of the weights over the steps: what is validated, chosen, kept as the model and exported is the average.

Lightning's own callbacks do not serve here. Its EMA averages integer buffers too, waits for the device at every step,
and puts the last average in the place of the best weights whenever a module is validated after `fit`. Its SWA
validates and saves the weights that are not averaged, and averages nothing where a run stops early.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from common.errors import InputError
from models.training.lightning_module import SupervisedModule


class WeightAverage(Callback):
    """Keeps an average beside the weights that are trained, and takes their place in validation and at the end of fit.

    In a checkpoint the average is the `state_dict`; the weights to train on are in the callback's own state. Running
    statistics of norms are averaged too: those of the newest weights do not fit the average.
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "fsdp": "averages all weights in each process, but trainer=fsdp shares them out: take callbacks=default, or"
        " trainer=ddp."
    }
    """For each trainer that cannot use this callback, what its error message says."""

    def __init__(self) -> None:
        self.steps = 0
        self.weights: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}
        self.saved: dict[str, Tensor] = {}
        self.swapped = False
        """Whether the average is in the network, and `average` holds the weights that are trained."""

    def share(self) -> float:
        """Share of the newest weights in the average after this step of the optimizer, above 0 and at most 1."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "weights": self.average if self.swapped else self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]
        self.saved = state_dict["weights"]

    @torch.no_grad()
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SupervisedModule)
        state = {f"network.{name}": value for name, value in pl_module.network.state_dict().items()}
        self.weights = {name: value for name, value in state.items() if value.is_floating_point()}
        self.average = {name: weight.clone() for name, weight in self.weights.items()}
        for name, saved in self.saved.items():
            self.weights[name].copy_(saved)
        self.saved = {}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self.steps:  # not while gradients accumulate
            self.steps = trainer.global_step
            torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), self.share())

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["state_dict"] |= self.weights if self.swapped else self.average

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap()
        self.weights, self.average = {}, {}

    @torch.no_grad()
    def _swap(self) -> None:
        self.swapped = not self.swapped
        for name, weight in self.weights.items():
            trained = weight.clone()
            weight.copy_(self.average[name])
            self.average[name].copy_(trained)


class EMA(WeightAverage):
    """Exponential moving average: a step keeps `decay` of it, in the first steps no more than steps / (steps + 9)."""

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: must be at least 0 and below 1.")
        self.decay = decay

    def share(self) -> float:
        return 1 - min(self.decay, self.steps / (self.steps + 9))


class SWA(WeightAverage):
    """The plain mean of the weights of all steps after fraction `start` of the run (arXiv 1803.05407).

    Until then the average is the newest weights. The rate must not have fallen to nothing by then: choose a constant
    one, or a schedule that ends well above zero.
    """

    def __init__(self, start: float = 0.75) -> None:
        super().__init__()
        if not 0 <= start < 1:
            raise ValueError(f"start={start}: a fraction of the run, at least 0 and below 1.")
        self.start = start

    def share(self) -> float:
        return 1 / max(self.steps - self.first, 1)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        total = trainer.estimated_stepping_batches
        if total == float("inf"):
            raise InputError("SWA needs the length of the run: set trainer.max_epochs or trainer.max_steps.")
        self.first = math.floor(self.start * total)
