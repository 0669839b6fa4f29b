"""State that a resumed run needs in addition to Lightning's, to end with the same weights, bit for bit."""

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from common.distributed import ProcessGroup
from datamodules.loading.batch_loader import Batches
from trainer.config.errors import ConfigError

log = logging.getLogger(__name__)


class RandomState(Callback):
    """Saves torch's random states (CPU and CUDA) and number of threads of each process in the checkpoint.

    The number of threads matters because the rounding of sums over rows depends on it. The states are restored when
    training starts, after everything else that draws random numbers, so that dropout continues where it was. A process
    that the run did not have before starts with its own state.

    The order of the rows needs no state, because it is computed from the epoch (batch_loader.py). Two things that
    Lightning does not restore are set here: the position of the loader in the epoch, which is lost if a schedule has
    asked for the length of the run, and that the run had stopped early.
    """

    def __init__(self) -> None:
        self.saved: list[dict[str, Any]] = []
        self.batches: tuple[int | float, int] | None = None
        """Batches per epoch and per step, when training began."""

    def state_dict(self) -> dict[str, Any]:
        own = {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
            "threads": torch.get_num_threads(),
        }
        return {"processes": ProcessGroup().gather(own), "batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved, self.batches = state_dict["processes"], state_dict["batches"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._count(trainer)
        if not self.saved:
            return
        if len(self.saved) != trainer.world_size:
            log.info(
                "resume: %d processes instead of %d: the same rows per step, but sums are rounded differently",
                *(trainer.world_size, len(self.saved)),
            )
        if trainer.global_rank < len(self.saved):
            own = self.saved[trainer.global_rank]
            if getattr(trainer, "threads", None) == "auto":
                torch.set_num_threads(own["threads"])
            torch.set_rng_state(own["cpu"])
            if own["cuda"] is not None and torch.cuda.is_initialized():  # this machine may have no GPU
                torch.cuda.set_rng_state(own["cuda"])
        self.saved = []
        reasons = [each.stopping_reason for each in trainer.early_stopping_callbacks if isinstance(each, EarlyStopping)]
        if any(reason is not EarlyStoppingReason.NOT_STOPPED for reason in reasons):
            trainer.should_stop = True
        batches = trainer.fit_loop.epoch_loop.batch_progress
        done = 0 if batches.is_last_batch else batches.current.ready
        assert isinstance(trainer.train_dataloader, Batches)
        trainer.train_dataloader.load_state_dict({"position": done})

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.saved:  # there was nothing left to train, so training did not start
            self._count(trainer)

    def _count(self, trainer: pl.Trainer) -> None:
        now = (trainer.num_training_batches, trainer.accumulate_grad_batches)
        before, self.batches = self.batches, now
        if before is not None and before != now:
            counts = "{} batches ({} per step)".format
            raise ConfigError(
                f"resume: an epoch had {counts(*before)} and now has {counts(*now)}, but the schedule and the position"
                " in the epoch are counted in batches. Keep data.batch_size and trainer.accumulate_grad_batches of the"
                " run."
            )
