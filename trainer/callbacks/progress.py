"""Progress of the training: a step reads only the clock, and the values shown have been computed anyway."""

import logging
import math
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Column

from models.training.lightning_module import SupervisedModule

log = logging.getLogger(__name__)

REDRAW = 0.25
"""Seconds between two updates of the live line."""
FIRST_LINE = 10.0
"""Seconds before the first plain line, and minimum seconds between two."""
LINE_AGAIN = 0.25
"""The next plain line follows after this share of the time so far: about 25 lines in an hour, 40 in a day."""


class Progress(ProgressBar):
    """One live line on a terminal, otherwise occasional lines in the log; the last line always goes to the log.

    Shows the finished epochs, the optimizer steps, the last known `train/loss`, `val/loss`, and the monitored metric
    with its best value.
    """

    def __init__(self) -> None:
        super().__init__()
        self.console = Console()
        self.bar: Bar | None = None
        self.enabled = True
        self.best: float | None = None
        self.measured: dict[str, float] = {}

    def enable(self) -> None:
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.monotonic()
        self.next = self.started + FIRST_LINE
        if self.enabled and self.console.is_terminal:
            columns = (BarColumn(10), TextColumn("{task.description}", table_column=Column()), TimeElapsedColumn())
            # Without a thread, which would compete with a step for the interpreter.
            self.bar = Bar(*columns, console=self.console, auto_refresh=False, transient=True)
            steps = trainer.estimated_stepping_batches
            self.task = self.bar.add_task("", total=None if steps == float("inf") else steps)
            self.bar.start()
            self.next = self.started

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() >= self.next:
            self._show(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SupervisedModule)
        if trainer.sanity_checking:
            return
        names = dict.fromkeys(("val/loss", pl_module.monitor))
        self.measured = {name: float(trainer.callback_metrics[name]) for name in names if name.startswith("val/")}
        if pl_module.monitor in self.measured:
            pick = min if pl_module.mode == "min" else max
            value = self.measured[pl_module.monitor]
            self.best = value if self.best is None else pick(self.best, value)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()
        if self.enabled:
            log.info("%s", self._line(trainer, pl_module))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _show(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        now = time.monotonic()
        if self.bar is not None:
            self.next = now + REDRAW
            self.bar.update(self.task, completed=trainer.global_step, description=self._line(trainer, module))
            self.bar.refresh()
        else:
            self.next = now + max(FIRST_LINE, LINE_AGAIN * (now - self.started))
            if self.enabled:
                log.info("%s", self._line(trainer, module))

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _line(self, trainer: pl.Trainer, module: pl.LightningModule) -> str:
        assert isinstance(module, SupervisedModule)
        epochs = f"{trainer.current_epoch}" + (f"/{trainer.max_epochs}" if trainer.max_epochs not in (None, -1) else "")
        parts = [f"epoch {epochs}", f"step {trainer.global_step:,}"]
        if not math.isnan(module.train_loss):
            parts.append(f"train/loss {module.train_loss:.4g}")
        for name, value in self.measured.items():
            best = f" (best {self.best:.4g})" if name == module.monitor else ""
            parts.append(f"{name} {value:.4g}{best}")
        return "  ".join(parts)
