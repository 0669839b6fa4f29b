"""Lightning's walk over the batches of an epoch, without what Lightning asks of each batch that nobody answers.

This is the one place that knows Lightning's private parts. Counters, hooks and results are Lightning's, in its order,
so checkpoints, resume, schedules, stopping and logging are as in its own loop, and so are the weights, bit for bit.
"""

import logging
import math
import time
from importlib import metadata
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.callbacks import Callback, DeviceStatsMonitor, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loops.fetchers import _DataFetcher
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer

from models.training.lightning_module import Batch, SupervisedModule
from trainer.folders.signals import watch
from trainer.loop import compiled_step
from trainer.loop.checkpoint_io import leave_if_asked
from trainer.loop.fused_step import Step

log = logging.getLogger(__name__)

KNOWN = "2.6."
"""Versions of Lightning whose loop this one was compared with."""
INSIDE = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
"""Hooks in the midst of a step."""
TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
"""Hooks that a data module may have too."""
OF_MODULE = (
    *INSIDE,
    *TRANSFER,
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


class FastEpochLoop(_TrainingEpochLoop):
    """Takes the place of Lightning's where `fast`; otherwise it is Lightning's.

    `compile`: whether each step becomes one graph; "auto" decides after an epoch, by the time that it took.
    """

    def __init__(self, trainer: pl.Trainer, min_steps: int | None, max_steps: int) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self.fast = False
        self.compile: bool | Literal["auto"] = False
        self.decided: bool | None = None
        """What "auto" came to."""
        self.tried = False
        """Whether there was an attempt to compile."""
        self.graph: compiled_step.StepGraph | None = None
        self.optimizer: Optimizer | None = None
        self.batches, self.seconds = 0, 0.0
        """Of this run, and what they took."""
        self.left = False
        """Whether the checkpoint was written on leaving, right after a batch: what follows a batch is still to come."""

    def on_save_checkpoint(self) -> dict[str, Any]:
        if self.graph is not None:  # Lightning asks the loops before the optimizer
            self.graph.sync_step_counts()
        so_far = {"decided": self.decided, "batches": self.batches, "seconds": self.seconds}
        return {**super().on_save_checkpoint(), **so_far, "left": self.left}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        self.left = state_dict.get("left", False)
        if self.compile == "auto":  # a resumed run does as it would have done
            self.decided = state_dict.get("decided")
            self.batches, self.seconds = state_dict.get("batches", 0), state_dict.get("seconds", 0.0)

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        super().on_run_start(data_fetcher)
        if not self.fast:
            return
        callbacks = self.trainer.callbacks
        self.at_start = [each for each in callbacks if overrides(each, "on_train_batch_start")]
        self.at_end = [each for each in callbacks if overrides(each, "on_train_batch_end") and not is_noop(each)]
        if self.optimizer not in (None, self.trainer.optimizers[0]):  # another fit
            self.tried, self.graph, self.decided, self.batches, self.seconds = False, None, None, 0, 0.0
        self.optimizer = self.trainer.optimizers[0]
        self.step = Step(self.optimizer)  # anew for each epoch: a callback may have added parameters
        if self.graph is not None and self.graph.facts != compiled_step.facts(self.trainer, self.step):
            log.info("compile: no longer, for a callback has changed what is trained")
            self.graph.sync_step_counts()
            self.graph = None
        undecided = self.compile == "auto" and self.decided is None
        if undecided and self.batches > 0 and self.batch_progress.current.ready == 0:
            steps = self.trainer.estimated_stepping_batches - self.global_step
            left = steps * self.trainer.accumulate_grad_batches * self.seconds / self.batches
            self.decided = compiled_step.pays(left)
            answer = "it repays its cost" if self.decided else "no, that would take longer"
            log.info("compile: %s (at most %.0f s of steps are left)", answer, left)

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """All batches up to the next after which something is due: a validation, a line in the log, an end."""
        if self.left:  # the batch itself is done
            self.left = False
            self.val_loop.restarting = False
            self.val_loop.batch_progress.total.reset()  # it may have been left too
            return
        if not self.fast:
            super().advance(data_fetcher)
            return
        if self.restarting and self._should_check_val_fx(data_fetcher):
            # As Lightning has it: the checkpoint was written in the midst of a validation, or after it.
            if self.val_loop.restarted_mid_evaluation:
                return
            if self.restarted_on_last:
                self._skip_next_val = True
                return
            self.val_loop.increment_progress_to_evaluation_end()
        self.val_loop.restarting = False
        trainer, started = self.trainer, time.perf_counter()
        for quiet in range(self._batches_until_event(), -1, -1):
            self._batch(data_fetcher)
            self.batches += 1
            if quiet == 0 or trainer.should_stop or watch.received is not None:
                break
            if not self._should_accumulate():
                self._batches_that_stepped += 1
        self.seconds += time.perf_counter() - started
        trainer._logger_connector.on_batch_end()
        trainer._logger_connector.update_train_step_metrics()

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        self.leave_if_asked()
        super().on_advance_end(data_fetcher)

    def leave_if_asked(self) -> None:
        """Raises Interrupted where a signal has come, after a checkpoint is written.

        Not while gradients accumulate, which a checkpoint has none of; nor after the last step that `max_steps` allows,
        after which Lightning takes a run for ended, be it measured or not.
        """
        if self._should_accumulate() or self.global_step == self.max_steps:
            return
        self.left = True
        leave_if_asked(self.trainer)
        self.left = False

    def _broadcast_sigterm_tensor(self) -> None:
        """Lightning's way to agree on leaving; `leave_if_asked` does it."""

    def _batches_until_event(self) -> int:
        """Batches to come after which nothing is due."""
        trainer, ready = self.trainer, self.batch_progress.current.ready
        if trainer._val_check_time_interval is not None:
            return 0
        validated = ready if trainer.check_val_every_n_epoch is not None else self.total_batch_idx + 1
        due = [
            trainer.num_training_batches - ready,
            trainer.val_check_batch - validated % trainer.val_check_batch,
        ]
        if trainer.log_every_n_steps > 0:
            due.append(trainer.log_every_n_steps - self._batches_that_stepped % trainer.log_every_n_steps)
        if self.max_steps != -1:
            due.append(self.max_steps - self.global_step)
        least = min(due)
        return int(least) - 1 if least < math.inf else 0

    def _batch(self, data_fetcher: _DataFetcher) -> None:
        trainer, progress = self.trainer, self.batch_progress
        module = cast(SupervisedModule, trainer.lightning_module)
        batch, _, _ = next(data_fetcher)
        progress.is_last_batch = data_fetcher.done
        index = progress.current.ready
        device = trainer.strategy.root_device
        if batch["target"].device != device:
            batch = {name: values.to(device) for name, values in batch.items()}
        progress.increment_ready()
        trainer._logger_connector.on_batch_start(batch)
        if self.at_start:
            module._current_fx_name = "on_train_batch_start"  # by which `log` knows where it is called
            for callback in self.at_start:
                callback.on_train_batch_start(trainer, module, batch, index)
            module._current_fx_name = None
        progress.increment_started()
        outputs = {"loss": self._step(module, batch, index)}
        progress.increment_processed()
        if trainer.lr_scheduler_configs:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if self._num_ready_batches_reached():
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        if self.at_end:
            module._current_fx_name = "on_train_batch_end"
            for callback in self.at_end:
                callback.on_train_batch_end(trainer, module, outputs, batch, index)
            module._current_fx_name = None
        progress.increment_completed()

    def _step(self, module: SupervisedModule, batch: Batch, index: int) -> Tensor:
        """Forward, backward, and the optimizer's step where enough batches have come together; what was minimised."""
        counted = self.automatic_optimization.optim_progress.optimizer
        steps = not self._should_accumulate()
        if index % self.trainer.accumulate_grad_batches == 0:
            counted.zero_grad.increment_ready()
            counted.zero_grad.increment_started()
            counted.zero_grad.increment_completed()
        if steps:
            counted.step.increment_ready()
        if module.augment is not None:
            with self.trainer.precision_plugin.train_step_context():
                batch = module.augment_batch(batch)
        done = self._in_one_graph(module, batch)
        if done is None:
            objective = self._one_by_one(module, batch, index, steps)
        else:
            loss, objective = done
            module.track_loss(loss, batch, index)
        if steps:
            counted.step.increment_completed()
        return objective

    def _one_by_one(self, module: SupervisedModule, batch: Batch, index: int, steps: bool) -> Tensor:
        trainer = self.trainer
        with trainer.precision_plugin.train_step_context():
            loss, objective = module.objective(batch)
        module.track_loss(loss, batch, index)  # which tells of the last gradients where the loss is not finite
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
        if self.graph is not None:  # else a later message took them for the gradients of the last step
            self.step.zero_grad()
        return objective.detach()

    def _in_one_graph(self, module: SupervisedModule, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """None where there is no graph, or not for a batch of this shape.

        Compiled for the first full batch after the optimizer's state is there, so that a resumed run compiles the same.
        """
        if self.graph is not None:
            if self.graph.fits(batch):
                return self.graph(batch)
            self.graph.sync_step_counts()
            return None
        wanted = self.decided if self.compile == "auto" else self.compile
        first = not self.step.state and self.batches == 0  # it makes the optimizer's state
        if not wanted or self.tried or first or not self._full(batch):
            return None
        self.tried = True
        why = compiled_step.unsupported_reason(self.trainer, self.step, batch)
        for callback in self.at_start:
            if type(callback) not in READERS:
                why = f"{type(callback).__name__} may change the network before a step"
        if why is not None and self.compile == "auto":  # the network alone would not repay it
            log.info("compile: no (%s)", why)
            return None
        if why is not None:
            log.info("compile: the network alone (%s)", why)
            module.network.compile()
            return None
        started = time.perf_counter()
        whole = compiled_step.StepGraph(self.trainer, module, self.step)
        try:
            done = whole.start(batch)
        except Exception as error:  # torch raises many kinds
            log.warning("compile: no, torch cannot: %s", str(error).strip().split("\n")[0])
            return None
        log.info("compile: one graph a step, in %.1f s", time.perf_counter() - started)
        self.graph = whole
        self.step.zero_grad()
        return done

    def _full(self, batch: Batch) -> bool:
        """Whether it has the rows that all but the last of an epoch have."""
        trainer: Any = self.trainer
        return bool(trainer.num_training_batches == 1 or len(batch["target"]) == trainer.train_dataloader.batch_size)


class NoSignals(_SignalConnector):
    """In the place of Lightning's: signals are `trainer.folders.signals`' alone. Its handlers would talk to other
    processes in the midst of a step, and requeue a Slurm job beside the launcher that does."""

    def register_signal_handlers(self) -> None:
        pass


def is_noop(callback: Callback) -> bool:
    """Whether it is a checkpoint callback that has nothing to do after a batch."""
    return type(callback) is ModelCheckpoint and not callback._every_n_train_steps and not callback._train_time_interval


def overrides(callback: Callback, hook: str) -> bool:
    return hook in vars(callback) or getattr(type(callback), hook) is not getattr(Callback, hook)


def unsupported_reason(
    trainer: Any, module: SupervisedModule | None = None, datamodule: LightningDataModule | None = None
) -> str | None:
    """What this training has that the fast loop leaves out, without `module` of the trainer alone; None where there is
    nothing."""
    version = metadata.version("pytorch-lightning")
    if not version.startswith(KNOWN):
        return f"pytorch-lightning {version} is not {KNOWN}x"
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        return f"the strategy {type(trainer.strategy).__name__}"
    plugin = trainer.precision_plugin
    if type(plugin) not in (Precision, MixedPrecision) or getattr(plugin, "scaler", None) is not None:
        return f"precision {trainer.precision}"
    if not isinstance(trainer.profiler, PassThroughProfiler):
        return f"the profiler {type(trainer.profiler).__name__}"
    if module is not None and type(module).training_step is not SupervisedModule.training_step:
        return f"{type(module).__name__}.training_step"
    for owner, hooks in ((module, OF_MODULE), (datamodule, TRANSFER)):
        for hook in hooks:
            if is_overridden(hook, owner):
                return f"{type(owner).__name__}.{hook}"
    for callback in trainer.callbacks:
        for hook in INSIDE:
            if overrides(callback, hook):
                return f"{type(callback).__name__}.{hook}"
    return None
