"""Checkpoints that are there whole or not at all, though the process is killed or the disk full; leaving with one."""

import io
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO

from common.atomic_write import atomic_write
from common.errors import InputError
from trainer.folders.layout import LAST, resume_command
from trainer.folders.signals import Interrupted, watch


class CheckpointError(InputError):
    """A checkpoint was not written; the one before it stays."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes each of Lightning's checkpoints under a temporary name, and renames it once it is on the disk.

    Raises CheckpointError where the disk does not take it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path):  # a bucket takes what is uploaded whole, or not at all
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            atomic_write(target, buffer.getbuffer())
        except OSError as error:
            before = "The one before it is whole. " if target.exists() else ""
            raise CheckpointError(
                f"{target}: the checkpoint ({buffer.tell() / 1e6:.2f} MB) was not written: {error.strerror}. {before}"
                f"Make room, then go on with: {resume_command(target.parents[1])}"
            ) from error


def leave_if_asked(trainer: pl.Trainer) -> None:
    """Raises Interrupted where a signal has come, to this process or another of the run, after a checkpoint is written.

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
    """A signal in the midst of a validation does not wait for its end: it is made anew by whoever goes on."""

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        loop: Any = trainer.fit_loop.epoch_loop
        if watch.is_deferred and trainer.world_size == 1:
            loop.leave_if_asked()
