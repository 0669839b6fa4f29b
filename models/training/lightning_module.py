"""The LightningModule: a network with its loss, metrics, optimizer and learning rate schedule."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from common.distributed import rank
from datamodules.schema import TargetSpec
from models.training import distributed, metrics
from models.training.augmentation import mixed_loss
from models.training.divergence import DivergenceGuard, RunningMean
from models.training.initialization import start_network
from models.training.optimizer import build_optimizer, with_scheduler
from models.training.parameter_groups import Factors, split_parameters
from models.training.prediction_head import PredictionHead, combine, to_units
from models.training.thresholds import check_threshold

Batch = dict[str, Tensor]


class SupervisedModule(pl.LightningModule):
    """Trains `network` on batches with a `target` and computes its loss and metrics.

    `optimizer` takes parameters or parameter groups, `scheduler` takes the optimizer; arguments `total_steps` and
    `mode` of a scheduler are filled in. `l1` times the sum of absolute weights is added to the loss that is minimized,
    not to the logged one. L1 and weight decay skip biases, norms and embeddings. `param_groups` maps patterns of
    parameter names to factors for the optimizer's `lr` and `weight_decay`. `threshold` of a binary target: a number, or
    the metric to choose it for on the validation rows after training. `augment` changes the training batches.

    If the output is (rows, members, k), the mean of the members' losses is minimized; metrics use the mean prediction.

    Logs `train/loss`, `val/loss`, `test/loss` (means over rows) and the metrics once per epoch. Raises DivergedError if
    a loss is not finite: before the optimizer step on the CPU, some steps later on a GPU or with a compiled step; and
    instead of saving a checkpoint with weights that are not finite.
    """

    answers_rows: ClassVar[bool] = True
    """Whether the network predicts each row. If not, a run has no calibration, plots, predictions or export."""

    def __init__(
        self,
        network: nn.Module,
        target: TargetSpec,
        loss: nn.Module,
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., Any] | None,
        *,
        monitor: str,
        mode: Literal["min", "max"],
        l1: float = 0.0,
        param_groups: Mapping[str, Factors] | None = None,
        threshold: float | str = 0.5,
        augment: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if threshold != 0.5:
            check_threshold(threshold, target)
        self.network = network
        self.target = target
        self.loss = loss
        self.augment = augment
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.monitor = monitor
        self.mode = mode
        self.l1 = l1
        self.param_groups = dict(param_groups or {})
        # Only with l1: references to whole weights would stay in memory after `trainer=fsdp` shards them.
        self.weights = split_parameters(network)[0] if l1 else []
        self.answer = PredictionHead(target)
        self.metrics = metrics.build(target)
        self.chosen_for = threshold if isinstance(threshold, str) else None
        self.threshold = 0.5 if isinstance(threshold, str) else threshold
        self.train_loss_mean = RunningMean()
        self.eval_loss_mean = RunningMean()
        self.guard = DivergenceGuard(self)

    def forward(self, batch: Batch) -> Tensor:
        output: Tensor = self.network(batch)
        return output

    def predict(self, output: Tensor) -> Tensor:
        """Network output (rows, k) -> probabilities (rows, classes), or values (rows,) in units of the target."""
        answers: Tensor = self.answer(output)
        return answers

    def start(self, sample: Callable[[int], Batch]) -> None:
        """Initializes the network from a sample of training rows, see `start_network`."""
        start_network(self.network, sample)

    def write_results(self, folder: Path) -> list[str]:
        """Writes results other than the artifact to `folder` and returns lines to log."""
        return []

    @property
    def threshold(self) -> float:
        """Probability of class 1 from which a row is assigned to class 1 (binary targets)."""
        return self.metrics.threshold if isinstance(self.metrics, metrics.ClassMetrics) else 0.5

    @threshold.setter
    def threshold(self, value: float) -> None:
        if isinstance(self.metrics, metrics.ClassMetrics):
            self.metrics.threshold = value

    @property
    def samples(self) -> int:
        """Number of rows in all training steps of this process."""
        return self.train_loss_mean.total_rows

    @property
    def train_loss(self) -> float:
        """Mean training loss of the current epoch, up to the last check; does not wait for the device."""
        return self.train_loss_mean.flushed_mean

    @property
    def check_interval(self) -> int:
        """Number of steps between checks of the training loss: on a GPU each check waits for the device."""
        return 1 if self.device.type == "cpu" else 100

    @property
    def is_sharded(self) -> bool:
        """Whether this process holds only a shard of the weights (`trainer=fsdp`)."""
        return isinstance(self.trainer.strategy, ModelParallelStrategy)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        batch = self.augment_batch(batch)
        loss, objective = self.objective(batch)
        self.track_loss(loss, batch, batch_idx)
        return distributed.scale_loss_for_ddp(objective, batch["target"], getattr(self.loss, "weight", None))

    def augment_batch(self, batch: Batch) -> Batch:
        """Applies the augmentation, if any, to a training batch."""
        return batch if self.augment is None else cast(Batch, self.augment(batch))

    def objective(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the loss to log and the loss to minimize."""
        loss = mixed_loss(self.loss, self.network(batch), batch)
        if self.l1 == 0:
            return loss, loss
        return loss, loss + self.l1 * torch.stack([weight.abs().sum() for weight in self.weights]).sum()

    def track_loss(self, loss: Tensor, batch: Batch, batch_idx: int) -> None:
        """Adds the loss of a step to the epoch's mean; every `check_interval` steps, checks that it is finite."""
        if batch_idx == 0:  # not in on_train_epoch_start, which Lightning skips after some resumes
            self.train_loss_mean.reset()
        self.train_loss_mean.add(loss, len(batch["target"]))
        if (batch_idx + 1) % self.check_interval == 0:
            self.guard.check_losses("train", self.train_loss_mean, batch)

    def on_fit_start(self) -> None:
        if self.global_rank > 0:  # otherwise all processes would draw the same dropout masks
            torch.manual_seed(torch.initial_seed() + self.global_rank)

    def on_train_epoch_end(self) -> None:
        self.guard.check_losses("train", self.train_loss_mean)
        total, rows = self.train_loss_mean.gather(self.device)
        self._log({"train/loss": total / rows})

    def on_validation_epoch_start(self) -> None:
        if self.train_loss_mean.pending:  # report divergence as a training loss, not as a validation loss
            self.guard.check_losses("train", self.train_loss_mean)
        distributed.broadcast_buffers(self.network)
        self._reset_metrics()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._update_metrics(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_start(self) -> None:
        self._reset_metrics()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._update_metrics(batch)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.guard.check_weights()
        self.guard.check_losses("train", self.train_loss_mean)
        total, rows = self.train_loss_mean.gather(self.device)
        checkpoint["train_loss"] = {"total": total, "rows": rows}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A run resumed within an epoch continues the mean of this epoch. Rank 0 holds the sums of all processes.
        if rank() == 0:
            self.train_loss_mean.total = checkpoint["train_loss"]["total"]
            self.train_loss_mean.rows = checkpoint["train_loss"]["rows"]

    def configure_model(self) -> None:
        if self.is_sharded and self.device_mesh is not None:
            distributed.shard(self.network, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = build_optimizer(
            self.network, self.optimizer, self.param_groups, self.trainer, self.device, is_sharded=self.is_sharded
        )
        return with_scheduler(optimizer, self.scheduler, self.trainer, monitor=self.monitor, mode=self.mode)

    def _reset_metrics(self) -> None:
        self.eval_loss_mean.reset()
        self.metrics.reset()

    def _update_metrics(self, batch: Batch) -> None:
        output, truth = combine(self.network(batch), self.target.task), batch["target"]
        self.eval_loss_mean.add(self.loss(output, truth), len(truth))
        if self.target.task == "regression":
            truth = to_units(truth, self.target)
        self.metrics.update(self.predict(output), truth)

    def _log_metrics(self, split: str) -> None:
        self.guard.check_losses(split, self.eval_loss_mean)
        total, rows = self.eval_loss_mean.gather(self.device)
        values = {f"{split}/{name}": value.float() for name, value in self.metrics.compute().items()}
        self._log({f"{split}/loss": total / rows, **values})
        self.metrics.reset()

    def _log(self, values: dict[str, Any]) -> None:
        self.log_dict(values)
        if self.monitor in values and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            scheduler = self.lr_schedulers()
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(float(values[self.monitor]))


def module_class(network: nn.Module) -> type[SupervisedModule]:
    """Returns the class that trains this network: its class attribute `module_class`, or SupervisedModule."""
    return cast(type[SupervisedModule], getattr(type(network), "module_class", SupervisedModule))
