"""Averages of the weights over the steps, which are validated, saved and exported in place of the weights.

Lightning's callbacks are not used. Its EMA also averages integer buffers, waits for the device at every step, and
replaces the best weights by the last average whenever a module is validated after `fit`. Its SWA validates and saves
the weights that are not averaged, and averages nothing if a run stops early.
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
from trainer.loop import torch_internals


class WeightAverage(Callback):
    """Keeps an average of the trained weights, which replaces them for validation and at the end of `fit`.

    In a checkpoint the `state_dict` is the average, and the trained weights are in the callback's own state. Running
    statistics of norms are averaged too, because the statistics of the newest weights do not match the average.
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "fsdp": "averages all weights in each process, but trainer=fsdp shards them"
    }
    """The reason, by feature; the check of the settings adds the remedy (`trainer.config.signatures.Arguments`)."""

    def __init__(self) -> None:
        self.steps = 0
        self.weights: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}
        self.saved: dict[str, Tensor] = {}
        self.swapped = False
        """Whether the network holds the average, and `average` the trained weights."""

    def share(self) -> float:
        """Share of the newest weights in the average after this optimizer step, above 0 and at most 1."""
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
            torch_internals.foreach_lerp_(list(self.average.values()), list(self.weights.values()), self.share())

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
    """Exponential moving average with factor `decay`, which is at most steps / (steps + 9) in the first steps."""

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: must be at least 0 and below 1.")
        self.decay = decay

    def share(self) -> float:
        return 1 - min(self.decay, self.steps / (self.steps + 9))


class SWA(WeightAverage):
    """Mean of the weights of all steps after the fraction `start` of the run (arXiv 1803.05407).

    Before, the average is the newest weights. The learning rate must still be high then: use a constant rate, or a
    schedule that ends well above zero.
    """

    def __init__(self, start: float = 0.75) -> None:
        super().__init__()
        if not 0 <= start < 1:
            raise ValueError(f"start={start}: must be a fraction of the run, at least 0 and below 1.")
        self.start = start

    def share(self) -> float:
        return 1 / max(self.steps - self.first, 1)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        total = trainer.estimated_stepping_batches
        if total == float("inf"):
            raise InputError("SWA needs the length of the run: set trainer.max_epochs or trainer.max_steps.")
        self.first = math.floor(self.start * total)
