"""What a resumed run needs, beside Lightning's own state, to end with the same weights, bit for bit."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from datamodules.loader import Batches


class RandomState(Callback):
    """Keeps in the checkpoint torch's random state, of the CPU and of every CUDA device, and the number of threads that
    was chosen, because sums over rows hang on it.

    They are put back when training starts, after all that draws on the way there, so that dropout goes on where it was.
    The order of the rows needs no state, for it is counted (datamodules/loader.py); where in it an epoch goes on is
    said to the loader here, because Lightning forgets to when a schedule has asked for the length of the run.
    """

    def __init__(self) -> None:
        self.saved: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        states = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        return states | {"threads": torch.get_num_threads()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.saved is None:
            return
        if getattr(trainer, "threads", None) == "auto":
            torch.set_num_threads(self.saved["threads"])
        torch.set_rng_state(self.saved["cpu"])
        # Another machine may have fewer devices, or none.
        for device, state in enumerate(self.saved["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)
        self.saved = None
        batches = trainer.fit_loop.epoch_loop.batch_progress
        done = 0 if batches.is_last_batch else batches.current.ready
        assert isinstance(trainer.train_dataloader, Batches)
        trainer.train_dataloader.load_state_dict({"position": done})
