"""Callbacks for tests of interruptions: one sends this process a signal at one moment of a run, one takes its time."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback


class Sender(Callback):
    """Sends `name`, such as SIGTERM, at call number `at` of `hook`, counted from 1; 0: never. Of several processes the
    first sends it, to itself alone."""

    def __init__(self, name: str, hook: str, at: int) -> None:
        self.number = signal.Signals[name]
        self.at = at
        setattr(self, hook, self._count)

    def _count(self, trainer: Any, *_: Any) -> None:
        self.at -= 1
        if self.at == 0 and trainer.global_rank == 0:
            os.kill(os.getpid(), self.number)


class Slow(Callback):
    """Takes a minute after the first batch; says so by a file."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        Path(trainer.default_root_dir, "slow").touch()
        time.sleep(60)
