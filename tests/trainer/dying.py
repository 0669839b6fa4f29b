"""A callback that ends one of several processes in the midst of an epoch: killed, or by an error."""

import os
import signal
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from common.errors import InputError


class Dying(Callback):
    def __init__(self, rank: int, step: int, killed: bool) -> None:
        self.rank, self.step, self.killed = rank, step, killed

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            if self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise InputError("rows.csv, line 7: what only this process has read cannot be used.")
