"""The private parts of Lightning that Lathe uses, under public names. No other module uses them.

Checked with pytorch-lightning 2.6.6. With another minor version, or if a name is missing, `unsupported_reason` says so,
and training uses Lightning's own epoch loop and signal handlers.
"""

from collections.abc import Iterable
from importlib import metadata
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

TESTED = "2.6."
"""Prefix of the versions that the fast loop was compared with."""
TRAINER_NAMES = ("_logger_connector", "_signal_connector", "_val_check_time_interval")
LOOP_NAMES = ("_batches_that_stepped", "_skip_next_val")
"""Attributes that exist only on instances."""

missing: str | None = None
"""The error of the first private name that this version lacks."""

try:
    from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
    from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector

    class EpochLoop(_TrainingEpochLoop):
        """Lightning's training epoch loop. It does not ask the other processes for signals: `leave_if_asked` does."""

        # Aliases, because a method that calls a method would slow down every batch.
        should_accumulate = _TrainingEpochLoop._should_accumulate
        should_validate = _TrainingEpochLoop._should_check_val_fx
        all_batches_ready = _TrainingEpochLoop._num_ready_batches_reached

        def _broadcast_sigterm_tensor(self) -> None:
            pass

    class NoSignals(_SignalConnector):
        """Handles no signals: `trainer.folders.signals` does.

        Lightning's handlers would communicate with other processes in the middle of a step, and requeue a Slurm job
        that the launcher requeues too.
        """

        def register_signal_handlers(self) -> None:
            pass

except (ImportError, AttributeError) as error:
    missing = str(error).split(" (")[0]  # without the path
    EpochLoop = NoSignals = object  # type: ignore[assignment, misc]


def unsupported_reason(trainer: pl.Trainer) -> str | None:
    """Returns why this version of Lightning keeps its own epoch loop; None if the loop can be replaced."""
    version = metadata.version("pytorch-lightning")
    if not version.startswith(TESTED):
        return f"pytorch-lightning {version} (tested: {TESTED}x)"
    names = [(trainer, name) for name in TRAINER_NAMES] + [(trainer.fit_loop.epoch_loop, name) for name in LOOP_NAMES]
    absent = [name for owner, name in names if not hasattr(owner, name)]
    reason = missing or (f"no attribute {absent[0]}" if absent else None)
    return None if reason is None else f"pytorch-lightning {version} ({reason})"


def install(trainer: pl.Trainer, loop: EpochLoop) -> None:
    """Replaces the trainer's epoch loop and its signal handlers."""
    trainer._signal_connector = NoSignals(trainer)
    trainer.fit_loop.epoch_loop = loop


def skip_next_validation(loop: EpochLoop) -> None:
    loop._skip_next_val = True


def count_step(loop: EpochLoop) -> None:
    """Counts an optimizer step for the loggers."""
    loop._batches_that_stepped += 1


def counted_steps(loop: EpochLoop) -> int:
    return loop._batches_that_stepped


def validates_by_time(trainer: pl.Trainer) -> bool:
    """Returns whether `val_check_interval` is a duration."""
    owner: Any = trainer  # Lightning does not declare the attribute
    return owner._val_check_time_interval is not None


def start_batch(trainer: pl.Trainer, batch: Any) -> None:
    trainer._logger_connector.on_batch_start(batch)


def end_batches(trainer: pl.Trainer) -> None:
    """Sends the values logged since the last call to the loggers, if a step to log has been reached."""
    trainer._logger_connector.on_batch_end()
    trainer._logger_connector.update_train_step_metrics()


def call_callbacks(callbacks: Iterable[Callback], hook: str, *arguments: Any, module: pl.LightningModule) -> None:
    """Calls a hook of the callbacks; `module.log` finds the name of the hook in the module."""
    state = vars(module)  # written directly, because `nn.Module.__setattr__` is slow
    state["_current_fx_name"] = hook
    for callback in callbacks:
        getattr(callback, hook)(*arguments)
    state["_current_fx_name"] = None


def saves_in_epoch(callback: ModelCheckpoint) -> bool:
    """Returns whether the callback may save after a batch, not only after a validation or an epoch."""
    steps, interval = "_every_n_train_steps", "_train_time_interval"
    return bool(getattr(callback, steps, True) or getattr(callback, interval, True))
