"""What a resumed run needs, beside Lightning's own state, to end with the same weights, bit for bit."""

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
    """Keeps in the checkpoint torch's random state, of the CPU and of the CUDA device, and the number of threads that
    was chosen, because sums over rows hang on it; of each process its own.

    They are put back when training starts, after all that draws on the way there, so that dropout goes on where it was.
    A process that the run had not before draws anew.
    The order of the rows needs no state, for it is counted (batch_loader.py); where in it an epoch goes on is
    said to the loader here, because Lightning forgets to when a schedule has asked for the length of the run; and that
    the run had stopped early, because it forgets that always.
    """

    def __init__(self) -> None:
        self.saved: list[dict[str, Any]] = []
        self.batches: tuple[int | float, int] | None = None
        """Of an epoch, and of a step, when training began."""

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
                "resume: %d processes, not %d: the same rows a step, but sums in another order, so not the same bits",
                *(trainer.world_size, len(self.saved)),
            )
        if trainer.global_rank < len(self.saved):
            own = self.saved[trainer.global_rank]
            if getattr(trainer, "threads", None) == "auto":
                torch.set_num_threads(own["threads"])
            torch.set_rng_state(own["cpu"])
            if own["cuda"] is not None and torch.cuda.is_initialized():  # another machine may have no GPU
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
        if self.saved:  # nothing was left to train, and training did not start
            self._count(trainer)

    def _count(self, trainer: pl.Trainer) -> None:
        now = (trainer.num_training_batches, trainer.accumulate_grad_batches)
        before, self.batches = self.batches, now
        if before is not None and before != now:
            counts = "{} batches, {} a step".format
            raise ConfigError(
                f"resume: an epoch was {counts(*before)}, and is {counts(*now)} now: the schedule and the place in the"
                " epoch are counted in them. Leave data.batch_size and trainer.accumulate_grad_batches as they were."
            )
