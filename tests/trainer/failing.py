"""A callback that ends the run in one folder, for tests of those beside it."""

import os
import signal
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class Failing(Callback):
    """At the start of the second epoch: raises, or kills the process."""

    def __init__(self, name: str, killed: bool) -> None:
        self.name = name
        self.killed = killed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if Path(trainer.default_root_dir).name == self.name and trainer.current_epoch == 1:
            if self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ArithmeticError("one and one are three")
