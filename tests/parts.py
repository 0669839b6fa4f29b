"""Networks that fail, and a slow callback, for jobs of tests."""

import os
import signal
import time
from typing import Any

from pytorch_lightning.callbacks import Callback
from torch import nn


class Broken(nn.Module):
    """Fails in its constructor."""

    def __init__(self, spec: object, outputs: int, inputs: object) -> None:
        raise RuntimeError("asked to fail")


class Killed(nn.Module):
    """Kills its process, as the kernel does when memory runs out."""

    def __init__(self, spec: object, outputs: int, inputs: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Paced(Callback):
    """Waits for `seconds` after each training epoch."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        time.sleep(self.seconds)
