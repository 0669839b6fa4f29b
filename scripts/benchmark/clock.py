"""The time of the first training step, as a callback: trainer and threads are as they are without it."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from scripts.benchmark.startup import MARK


class Clock(Callback):
    """Prints seconds since 1970 and the process's own CPU seconds when the first step has been made."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == 1:
            print(MARK, time.time(), time.process_time())
