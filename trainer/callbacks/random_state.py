"""Dropout that goes on where it was, so that a resumed run ends with the same weights, bit for bit."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback


class RandomState(Callback):
    """Keeps torch's random state, of the CPU and of every CUDA device, in the checkpoint.

    It is put back when training starts, after all that draws on the way there. The order of the rows needs no state:
    it is counted (datamodules/loader.py).
    """

    def __init__(self) -> None:
        self.saved: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.saved is None:
            return
        torch.set_rng_state(self.saved["cpu"])
        # Another machine may have fewer devices, or none.
        for device, state in enumerate(self.saved["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)
        self.saved = None
