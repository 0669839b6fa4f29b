"""Checkpoints that are complete even if the process is killed or the disk is full; ending a run with one."""

import io
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO

from common.atomic_write import atomic_write
from common.errors import InputError
from trainer.config.errors import ConfigError
from trainer.folders.layout import LAST, resume_command
from trainer.folders.signals import Interrupted, watch


class CheckpointError(InputError):
    """A checkpoint could not be written; the previous one is kept."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes each of Lightning's checkpoints to a temporary file, and renames it once it is on the disk.

    Raises CheckpointError if the file cannot be written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path):  # an upload to a bucket is atomic
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            atomic_write(target, buffer.getbuffer())
        except OSError as error:
            previous = "The previous checkpoint is intact. " if target.exists() else ""
            raise CheckpointError(
                f"{target}: the checkpoint ({buffer.tell() / 1e6:.2f} MB) was not written: {error.strerror}. {previous}"
                f"Free some space, then resume with: {resume_command(target.parents[1])}"
            ) from error


@contextmanager
def explained(checkpoint: str | Path | None, max_epochs: int | None) -> Iterator[None]:
    """Turns errors about a checkpoint that does not fit the run into a ConfigError; None for no checkpoint."""
    try:
        yield
    except (RuntimeError, MisconfigurationException) as error:
        if checkpoint is not None and "Error(s) in loading state_dict" in str(error):
            raise ConfigError(
                f"resume: {checkpoint} holds a different network: keep the data and model settings of the run."
            ) from error
        if checkpoint is not None and "restored a checkpoint with current_epoch" in str(error):
            raise ConfigError(
                f"resume: the run has already trained for more epochs than trainer.max_epochs={max_epochs}: keep the"
                " value of the run, or choose a larger one."
            ) from error
        raise


def leave_if_asked(trainer: pl.Trainer) -> None:
    """Writes a checkpoint and raises Interrupted if a signal was sent to this process or another one of the run.

    Every process must call it at the same step.
    """
    asked = watch.received is not None
    if trainer.world_size > 1:
        asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
    if not asked:
        return
    if trainer.checkpoint_callbacks and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        trainer.save_checkpoint(Path(trainer.default_root_dir) / LAST)
    raise Interrupted(watch.received or signal.SIGTERM)


class LeaveValidation(Callback):
    """Ends a run during a validation if a signal is received; a resumed run repeats the validation."""

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        loop: Any = trainer.fit_loop.epoch_loop
        if watch.is_deferred and trainer.world_size == 1:
            loop.leave_if_asked()


class LeaveAfterStep(Callback):
    """Ends a run after an optimizer step if a signal is received, for Lightning's own epoch loop.

    It waits while gradients accumulate, because a checkpoint does not hold them, and does nothing after the last step.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        before, self.step = self.step, trainer.global_step
        if self.step not in (before, trainer.max_steps):
            leave_if_asked(trainer)
