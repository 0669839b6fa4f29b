"""A callback that measures the first training step without a change of the trainer or the threads."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from scripts.benchmark.startup import MARK


class Clock(Callback):
    """Prints the seconds since 1970 and the CPU seconds of the process after the first training step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == 1:
            print(MARK, time.time(), time.process_time())
