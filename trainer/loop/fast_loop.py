"""Lightning's training epoch loop without the hooks that nothing implements.

Counters, hooks and results are Lightning's, in its order. Checkpoints, resuming, schedules, stopping and logging are
therefore as in its own loop, and the weights are the same, bit for bit. If something that this loop leaves out is in
use, it behaves as Lightning's own.
"""

import logging
import math
import time
from contextlib import nullcontext
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.callbacks import Callback, DeviceStatsMonitor, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer

from models.training.lightning_module import Batch, SupervisedModule
from trainer.folders.signals import watch
from trainer.loop import compiled_step, lightning_internals
from trainer.loop.checkpoint_io import leave_if_asked
from trainer.loop.fused_step import Step

log = logging.getLogger(__name__)

STEP_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
"""Hooks within a step."""
TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
"""Hooks that a data module may have too."""
MODULE_HOOKS = (
    *STEP_HOOKS,
    *TRANSFER_HOOKS,
    "on_train_batch_start",
    "on_train_batch_end",
    "backward",
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
    "lr_scheduler_step",
)
READERS = (DeviceStatsMonitor, LearningRateMonitor)
"""Callbacks that change nothing before a step."""


class FastEpochLoop(lightning_internals.EpochLoop):
    """Replaces Lightning's loop; behaves as Lightning's unless `fast` is set.

    `compile`: whether to compile each step into one graph; "auto" decides after an epoch, from its duration.
    """

    def __init__(self, trainer: pl.Trainer, min_steps: int | None, max_steps: int) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self.fast = False
        self.compile: bool | Literal["auto"] = False
        self.decided: bool | None = None
        """The decision of "auto"."""
        self.tried = False
        """Whether compiling has been attempted."""
        self.graph: compiled_step.StepGraph | None = None
        self.optimizer: Optimizer | None = None
        self.batches, self.seconds = 0, 0.0
        """Number of batches of this run, and their duration."""
        self.left = False
        """Whether a signal ended the run right after a batch, before the validation or the log line that follows."""

    def on_save_checkpoint(self) -> dict[str, Any]:
        if self.graph is not None:  # Lightning saves the loops before the optimizer
            self.graph.sync_step_counts()
        own = {"decided": self.decided, "batches": self.batches, "seconds": self.seconds, "left": self.left}
        return {**super().on_save_checkpoint(), **own}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        self.left = state_dict.get("left", False)
        if self.compile == "auto":  # a resumed run decides as the uninterrupted one
            self.decided = state_dict.get("decided")
            self.batches, self.seconds = state_dict.get("batches", 0), state_dict.get("seconds", 0.0)

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        if not self.fast:
            return
        callbacks = self.trainer.callbacks
        self.at_start = [each for each in callbacks if overrides(each, "on_train_batch_start")]
        self.at_end = [each for each in callbacks if overrides(each, "on_train_batch_end") and not is_noop(each)]
        if self.optimizer not in (None, self.trainer.optimizers[0]):  # another call of fit
            self.tried, self.graph, self.decided, self.batches, self.seconds = False, None, None, 0, 0.0
        self.optimizer = self.trainer.optimizers[0]
        self.step = Step(self.optimizer)  # in each epoch, because a callback may have added parameters
        if self.graph is not None and self.graph.constants != compiled_step.constants(self.trainer, self.step):
            log.info("compile: dropped the graph, because a callback has changed what is trained")
            self.graph.sync_step_counts()
            self.graph = None
        undecided = self.compile == "auto" and self.decided is None
        if undecided and self.batches > 0 and self.batch_progress.current.ready == 0:
            steps = self.trainer.estimated_stepping_batches - self.global_step
            remaining = steps * self.trainer.accumulate_grad_batches * self.seconds / self.batches
            self.decided = compiled_step.is_worthwhile(remaining)
            answer = "yes, it saves time" if self.decided else "no, it would take longer"
            log.info("compile: %s (at most %.0f s of training remain)", answer, remaining)

    def advance(self, data_fetcher: Any) -> None:
        """Trains on all batches up to the next event: a validation, a line in the log, or an end."""
        if self.left:  # the batch has been trained on
            self.left = False
            self.val_loop.restarting = False
            self.val_loop.batch_progress.total.reset()  # the signal may have ended it too
            return
        if not self.fast:
            super().advance(data_fetcher)
            return
        if self.restarting and self.should_validate(data_fetcher):
            # As in Lightning: the checkpoint was written during a validation, or after it.
            if self.val_loop.restarted_mid_evaluation:
                return
            if self.restarted_on_last:
                lightning_internals.skip_next_validation(self)
                return
            self.val_loop.increment_progress_to_evaluation_end()
        self.val_loop.restarting = False
        trainer, started = self.trainer, time.perf_counter()
        for remaining in range(self._batches_until_event(), -1, -1):
            self._run_batch(data_fetcher)
            self.batches += 1
            if remaining == 0 or trainer.should_stop or watch.received is not None:
                break
            if not self.should_accumulate():
                lightning_internals.count_step(self)
        self.seconds += time.perf_counter() - started
        lightning_internals.end_batches(trainer)

    def on_advance_end(self, data_fetcher: Any) -> None:
        self.leave_if_asked()
        super().on_advance_end(data_fetcher)

    def leave_if_asked(self) -> None:
        """Writes a checkpoint and raises Interrupted if a signal has been received.

        Does nothing while gradients accumulate, because a checkpoint does not hold them, or after the last step that
        `max_steps` allows, because Lightning would take the resumed run for finished and not validate it.
        """
        if self.should_accumulate() or self.global_step == self.max_steps:
            return
        self.left = True
        leave_if_asked(self.trainer)
        self.left = False

    def _batches_until_event(self) -> int:
        """Number of batches before the one that an event follows."""
        trainer, ready = self.trainer, self.batch_progress.current.ready
        if lightning_internals.validates_by_time(trainer):
            return 0
        validated = ready if trainer.check_val_every_n_epoch is not None else self.total_batch_idx + 1
        distances = [
            trainer.num_training_batches - ready,
            trainer.val_check_batch - validated % trainer.val_check_batch,
        ]
        if trainer.log_every_n_steps > 0:
            logged = lightning_internals.counted_steps(self) % trainer.log_every_n_steps
            distances.append(trainer.log_every_n_steps - logged)
        if self.max_steps != -1:
            distances.append(self.max_steps - self.global_step)
        nearest = min(distances)
        return int(nearest) - 1 if nearest < math.inf else 0

    def _run_batch(self, data_fetcher: Any) -> None:
        trainer, progress = self.trainer, self.batch_progress
        module = cast(SupervisedModule, trainer.lightning_module)
        batch, _, _ = next(data_fetcher)
        progress.is_last_batch = data_fetcher.done
        index = progress.current.ready
        device = trainer.strategy.root_device
        if batch["target"].device != device:
            batch = {name: values.to(device) for name, values in batch.items()}
        progress.increment_ready()
        lightning_internals.start_batch(trainer, batch)
        if self.at_start:
            hook = "on_train_batch_start"
            lightning_internals.call_callbacks(self.at_start, hook, trainer, module, batch, index, module=module)
        progress.increment_started()
        outputs = {"loss": self._train_on(module, batch, index)}
        progress.increment_processed()
        if trainer.lr_scheduler_configs:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if self.all_batches_ready():
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        if self.at_end:
            hook = "on_train_batch_end"
            lightning_internals.call_callbacks(self.at_end, hook, trainer, module, outputs, batch, index, module=module)
        progress.increment_completed()

    def _train_on(self, module: SupervisedModule, batch: Batch, index: int) -> Tensor:
        """Runs forward and backward, and the optimizer's step unless gradients accumulate; returns the objective."""
        counted = self.automatic_optimization.optim_progress.optimizer
        steps = not self.should_accumulate()
        if index % self.trainer.accumulate_grad_batches == 0:
            counted.zero_grad.increment_ready()
            counted.zero_grad.increment_started()
            counted.zero_grad.increment_completed()
        if steps:
            counted.step.increment_ready()
        if module.augment is not None:
            with self.trainer.precision_plugin.train_step_context():
                batch = module.augment_batch(batch)
        losses = self._compiled_step(module, batch)
        if losses is None:
            objective = self._eager_step(module, batch, index, steps)
        else:
            loss, objective = losses
            module.track_loss(loss, batch, index)
        if steps:
            counted.step.increment_completed()
        return objective

    def _eager_step(self, module: SupervisedModule, batch: Batch, index: int, steps: bool) -> Tensor:
        trainer = self.trainer
        with trainer.precision_plugin.train_step_context():
            loss, objective = module.objective(batch)
        module.track_loss(loss, batch, index)  # before zero_grad: if the loss is not finite, it reports the gradients
        if index % trainer.accumulate_grad_batches == 0:
            self.step.zero_grad()
        if trainer.accumulate_grad_batches > 1:
            objective = objective / trainer.accumulate_grad_batches
        torch.autograd.backward(objective)
        if steps:
            if trainer.gradient_clip_val is not None:
                optimizer = trainer.optimizers[0]
                module.clip_gradients(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
            self.step()
        if self.graph is not None:  # a later message would take these gradients for those of the last step
            self.step.zero_grad()
        return objective.detach()

    def _compiled_step(self, module: SupervisedModule, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Returns the loss and the objective; None if there is no graph for batches of this shape.

        Compiles at the first full batch for which the optimizer has a state, so that a resumed run compiles the same.
        """
        if self.graph is not None:
            if self.graph.fits(batch):
                return self.graph(batch)
            self.graph.sync_step_counts()
            return None
        wanted = self.decided if self.compile == "auto" else self.compile
        first = not self.step.state and self.batches == 0  # this batch creates the optimizer's state
        if not wanted or self.tried or first or not self._is_full(batch):
            return None
        self.tried = True
        reason = compiled_step.unsupported_reason(self.trainer, self.step, batch)
        for callback in self.at_start:
            if type(callback) not in READERS:
                reason = f"{type(callback).__name__} may change the network before a step"
        if reason is not None and self.compile == "auto":  # compiling only the network would not save enough
            log.info("compile: no (%s)", reason)
            return None
        if reason is not None:
            log.info("compile: only the network (%s)", reason)
            module.network.compile()
            return None
        started = time.perf_counter()
        graph = compiled_step.StepGraph(self.trainer, module, self.step)
        try:
            losses = graph.start(batch)
        except Exception as error:  # torch raises many types
            log.warning("compile: no, torch cannot: %s", str(error).strip().split("\n")[0])
            return None
        log.info("compile: one graph per step, in %.1f s", time.perf_counter() - started)
        self.graph = graph
        self.step.zero_grad()
        return losses

    def _is_full(self, batch: Batch) -> bool:
        """Returns whether the batch has as many rows as all but the last batch of an epoch."""
        trainer: Any = self.trainer
        return bool(trainer.num_training_batches == 1 or len(batch["target"]) == trainer.train_dataloader.batch_size)


class NoProfiler(PassThroughProfiler):
    """Replaces Lightning's default, which creates a generator for each hook of each callback."""

    context = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self.context


def is_noop(callback: Callback) -> bool:
    """Returns whether the callback is a checkpoint callback that does nothing after a batch."""
    return type(callback) is ModelCheckpoint and not lightning_internals.saves_in_epoch(callback)


def overrides(callback: Callback, hook: str) -> bool:
    """Returns whether the callback implements the hook, in its class or as an attribute."""
    return hook in vars(callback) or getattr(type(callback), hook) is not getattr(Callback, hook)


def unsupported_reason(
    trainer: Any, module: SupervisedModule | None = None, datamodule: LightningDataModule | None = None
) -> str | None:
    """Returns what is in use that the fast loop leaves out; None if nothing is.

    Without `module` it checks only the trainer.
    """
    if (reason := lightning_internals.unsupported_reason(trainer)) is not None:
        return reason
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        return f"the strategy {type(trainer.strategy).__name__}"
    plugin = trainer.precision_plugin
    if type(plugin) not in (Precision, MixedPrecision) or getattr(plugin, "scaler", None) is not None:
        return f"precision {trainer.precision}"
    if not isinstance(trainer.profiler, PassThroughProfiler):
        return f"the profiler {type(trainer.profiler).__name__}"
    if module is not None and type(module).training_step is not SupervisedModule.training_step:
        return f"{type(module).__name__}.training_step"
    for owner, hooks in ((module, MODULE_HOOKS), (datamodule, TRANSFER_HOOKS)):
        for hook in hooks:
            if is_overridden(hook, owner):
                return f"{type(owner).__name__}.{hook}"
    for callback in trainer.callbacks:
        for hook in STEP_HOOKS:
            if overrides(callback, hook):
                return f"{type(callback).__name__}.{hook}"
    return None
