"""Lightning's walk over the batches of an epoch, without what Lightning asks of each batch that nobody answers.

This is the one place that knows Lightning's private parts. Counters, hooks and results are Lightning's, in its order,
so checkpoints, resume, schedules, stopping and logging are as in its own loop, and so are the weights, bit for bit.
"""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loops.fetchers import _DataFetcher
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

KNOWN = "2.6."
"""Versions of Lightning whose loop this one was compared with."""
INSIDE = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
"""Hooks in the midst of a step."""
OF_MODULE = (
    *INSIDE,
    "on_train_batch_start",
    "on_train_batch_end",
    "backward",
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
    "lr_scheduler_step",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)


class FastEpochLoop(_TrainingEpochLoop):
    """Takes the place of Lightning's where `fast`; otherwise, and just after a resume, it is Lightning's."""

    fast = False

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        super().on_run_start(data_fetcher)
        callbacks = self.trainer.callbacks
        self.at_start = [each for each in callbacks if overrides(each, "on_train_batch_start")]
        self.at_end = [each for each in callbacks if overrides(each, "on_train_batch_end") and not idle(each)]
        self.step = Step(self.trainer.optimizers[0])

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """All batches up to the next after which something is due: a validation, a line in the log, an end."""
        if not self.fast or self.restarting:
            super().advance(data_fetcher)
            return
        trainer = self.trainer
        for _ in range(self._quiet()):
            self._batch(data_fetcher)
            if not self._should_accumulate():
                self._batches_that_stepped += 1
            if trainer.should_stop or trainer.received_sigterm:
                return
        self._batch(data_fetcher)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        trainer._logger_connector.on_batch_end()
        trainer._logger_connector.update_train_step_metrics()

    def _quiet(self) -> int:
        """Batches to come after which nothing is due."""
        trainer, ready = self.trainer, self.batch_progress.current.ready
        if trainer._val_check_time_interval is not None:
            return 0
        validated = ready if trainer.check_val_every_n_epoch is not None else self.total_batch_idx + 1
        due = [
            trainer.num_training_batches - ready,
            trainer.val_check_batch - validated % trainer.val_check_batch,
            trainer.log_every_n_steps - self._batches_that_stepped % trainer.log_every_n_steps,
        ]
        if self.max_steps != -1:
            due.append(self.max_steps - self.global_step)
        least = min(due)
        return int(least) - 1 if least < math.inf else 0

    def _batch(self, data_fetcher: _DataFetcher) -> None:
        trainer, progress = self.trainer, self.batch_progress
        module = trainer.lightning_module
        batch, _, _ = next(data_fetcher)
        progress.is_last_batch = data_fetcher.done
        index = progress.current.ready
        device = trainer.strategy.root_device
        if batch["target"].device != device:
            batch = {name: values.to(device) for name, values in batch.items()}
        progress.increment_ready()
        trainer._logger_connector.on_batch_start(batch)
        for callback in self.at_start:
            callback.on_train_batch_start(trainer, module, batch, index)
        progress.increment_started()
        outputs = {"loss": self._step(module, batch, index)}
        progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        for callback in self.at_end:
            callback.on_train_batch_end(trainer, module, outputs, batch, index)
        progress.increment_completed()

    def _step(self, module: pl.LightningModule, batch: Any, index: int) -> Tensor:
        """Forward, backward, and the optimizer's step where enough batches have come together; the detached loss."""
        trainer = self.trainer
        optimizer, counted = trainer.optimizers[0], self.automatic_optimization.optim_progress.optimizer
        with trainer.precision_plugin.train_step_context():
            loss: Tensor = module.training_step(batch, index)
        if trainer.accumulate_grad_batches > 1:
            loss = loss / trainer.accumulate_grad_batches
        if index % trainer.accumulate_grad_batches == 0:
            counted.zero_grad.increment_ready()
            counted.zero_grad.increment_started()
            self.step.zero_grad()
            counted.zero_grad.increment_completed()
        loss.backward()
        if not self._should_accumulate():
            counted.step.increment_ready()
            if trainer.gradient_clip_val is not None:
                module.clip_gradients(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
            self.step()
            counted.step.increment_completed()
        return loss.detach()


class Step:
    """An optimizer's step. That of a fused Adam(W) is its one kernel, called without what torch does around it, which
    takes longer than the kernel where the network is small."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.lists: list[tuple[dict[str, Any], list[Tensor], list[list[Tensor]]]] | None = None
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.bare = (
            type(optimizer) in (Adam, AdamW)
            and all(
                group["fused"] and not group["amsgrad"] and not group["maximize"] for group in optimizer.param_groups
            )
            and self.parameters[0].device.type == "cpu"
            and not optimizer._optimizer_step_pre_hooks
            and not optimizer._optimizer_step_post_hooks
        )

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def __call__(self) -> None:
        if not self.bare or len(self.optimizer.state) < len(self.parameters):
            self.optimizer.step()
            return
        if self.lists is None:
            state = self.optimizer.state
            names = ("exp_avg", "exp_avg_sq", "step")
            self.lists = [
                (group, group["params"], [[state[each][name] for each in group["params"]] for name in names])
                for group in self.optimizer.param_groups
            ]
        for group, parameters, (mean, square, steps) in self.lists:
            beta1, beta2 = group["betas"]
            torch._foreach_add_(steps, 1)
            (torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_)(
                parameters,
                [each.grad for each in parameters],
                mean,
                square,
                [],
                steps,
                amsgrad=False,
                maximize=False,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
            )


def idle(callback: Callback) -> bool:
    """Whether it is a checkpoint callback that has nothing to do after a batch."""
    return type(callback) is ModelCheckpoint and not callback._every_n_train_steps and not callback._train_time_interval


def overrides(callback: Callback, hook: str) -> bool:
    return getattr(type(callback), hook) is not getattr(Callback, hook)


def hindrance(trainer: pl.Trainer, module: pl.LightningModule) -> str | None:
    """What this training has that the fast loop leaves out; None where there is nothing."""
    if not pl.__version__.startswith(KNOWN):
        return f"pytorch-lightning {pl.__version__} is not {KNOWN}x"
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        return f"{trainer.world_size} processes"
    plugin = trainer.precision_plugin
    if type(plugin) not in (Precision, MixedPrecision) or getattr(plugin, "scaler", None) is not None:
        return f"precision {trainer.precision}"
    if not isinstance(trainer.profiler, PassThroughProfiler):
        return f"the profiler {type(trainer.profiler).__name__}"
    for hook in OF_MODULE:
        if is_overridden(hook, module):
            return f"{type(module).__name__}.{hook}"
    for callback in trainer.callbacks:
        for hook in INSIDE:
            if overrides(callback, hook):
                return f"{type(callback).__name__}.{hook}"
    return None
