"""Networks that fail, and a callback that takes its time: for jobs of tests."""

import os
import signal
import time
from typing import Any

from pytorch_lightning.callbacks import Callback
from torch import nn


class Broken(nn.Module):
    """Cannot be built."""

    def __init__(self, spec: object, outputs: int, inputs: object) -> None:
        raise RuntimeError("asked to fail")


class Killed(nn.Module):
    """Takes its process along, as a lack of memory does."""

    def __init__(self, spec: object, outputs: int, inputs: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Paced(Callback):
    """Waits so many seconds after each epoch of training."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        time.sleep(self.seconds)
