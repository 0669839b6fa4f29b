"""What a resumed run needs, beside Lightning's own state, to end with the same weights, bit for bit."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from datamodules.loader import Batches
from datamodules.ranks import Ranks


class RandomState(Callback):
    """Keeps in the checkpoint torch's random state, of the CPU and of the CUDA device, and the number of threads that
    was chosen, because sums over rows hang on it; of each process its own.

    They are put back when training starts, after all that draws on the way there, so that dropout goes on where it was.
    A process that the run had not before draws anew.
    The order of the rows needs no state, for it is counted (datamodules/loader.py); where in it an epoch goes on is
    said to the loader here, because Lightning forgets to when a schedule has asked for the length of the run.
    """

    def __init__(self) -> None:
        self.saved: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        own = {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
            "threads": torch.get_num_threads(),
        }
        return {"processes": Ranks().gather(own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved = state_dict["processes"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.saved:
            return
        if trainer.global_rank < len(self.saved):
            own = self.saved[trainer.global_rank]
            if getattr(trainer, "threads", None) == "auto":
                torch.set_num_threads(own["threads"])
            torch.set_rng_state(own["cpu"])
            if own["cuda"] is not None and torch.cuda.is_initialized():  # another machine may have no GPU
                torch.cuda.set_rng_state(own["cuda"])
        self.saved = []
        batches = trainer.fit_loop.epoch_loop.batch_progress
        done = 0 if batches.is_last_batch else batches.current.ready
        assert isinstance(trainer.train_dataloader, Batches)
        trainer.train_dataloader.load_state_dict({"position": done})
