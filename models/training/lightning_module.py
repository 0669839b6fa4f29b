"""The one LightningModule: a network with its loss, metrics, optimizer and schedule."""

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast, runtime_checkable

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau

from common.distributed import rank
from common.errors import InputError
from datamodules.schema import TargetSpec
from models.training import distributed, metrics
from models.training.augmentation import mixed_loss
from models.training.divergence import DivergedError, RunningMean, about_checkpoint, all_finite, diagnose
from models.training.parameter_groups import Factors, parameter_groups, split_parameters
from models.training.prediction_head import PredictionHead, combine, to_units
from models.training.thresholds import check_threshold

Batch = dict[str, Tensor]
START_ROWS = 4096
"""Number of training rows passed to the `start` of a network that has no attribute `start_rows`."""


@runtime_checkable
class Starts(Protocol):
    """A network that initializes itself from data before training."""

    def start(self, batch: Batch) -> None: ...


class SupervisedModule(pl.LightningModule):
    """Trains `network` on batches with a `target`, and measures it in the target's own terms.

    `optimizer` takes parameters or groups of them, `scheduler` takes the optimizer; what a scheduler requires of
    `total_steps` and `mode` is filled in. `l1` times the sum of absolute weights is added to the loss that is
    minimised, not to the one that is logged. L1 and weight decay spare biases, norms and embeddings. `groups`: for
    patterns of parameter names, factors of the optimizer's `lr` and `weight_decay`. `threshold` of a binary target: a
    number, or the metric that it is chosen for on the validation rows once training has ended. `augment` changes the
    training batches.

    A network may answer several times for a row, (rows, members, k): the loss that is minimised is the mean of the
    members' losses, what is measured is their mean.

    Logs `train/loss`, `val/loss`, `test/loss` (means over rows) and the metrics, each once an epoch; raises
    DivergedError where a loss is not finite, before the step on the CPU and soon after it on a GPU or where the step is
    one graph, and in place of a checkpoint with weights that are not.
    """

    answers_rows: ClassVar[bool] = True
    """Whether the network gives an answer per row. If not, a run skips calibration, plots, predictions and export."""

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
        # Else they would be held whole where `trainer=fsdp` shares them out.
        self.weights = split_parameters(network)[0] if l1 else []
        self.answer = PredictionHead(target)
        self.metrics = metrics.build(target)
        self.chosen_for = threshold if isinstance(threshold, str) else None
        self.threshold = 0.5 if isinstance(threshold, str) else threshold
        self.train_loss_mean = RunningMean()
        self.eval_loss_mean = RunningMean()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # Lightning sets it some twenty times a step: no module, so not by torch's way
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(self, batch: Batch) -> Tensor:
        output: Tensor = self.network(batch)
        return output

    def predict(self, output: Tensor) -> Tensor:
        """Network output (rows, k) -> probabilities (rows, classes), or values (rows,) in the target's units."""
        answers: Tensor = self.answer(output)
        return answers

    def start(self, sample: Callable[[int], Batch]) -> None:
        """Initializes the network from training rows if it has a method `start`; does nothing otherwise.

        `sample` returns a batch of the given number of training rows. The network is in eval mode without gradients
        meanwhile, so that neither dropout nor noise is active.
        """
        if not isinstance(self.network, Starts):
            return
        batch = sample(getattr(self.network, "start_rows", START_ROWS))
        self.network.eval()
        with torch.no_grad():
            self.network.start(batch)
        self.network.train()

    def write_results(self, folder: Path) -> list[str]:
        """Writes results other than the artifact to `folder` and returns lines to log."""
        return []

    @property
    def threshold(self) -> float:
        """Of a binary target the probability of class 1 from which on a row is class 1, in metrics and the artefact."""
        return self.metrics.threshold if isinstance(self.metrics, metrics.ClassMetrics) else 0.5

    @threshold.setter
    def threshold(self, value: float) -> None:
        if isinstance(self.metrics, metrics.ClassMetrics):
            self.metrics.threshold = value

    @property
    def samples(self) -> int:
        """Rows that training steps of this process have seen."""
        return self.train_loss_mean.all_rows

    @property
    def train_loss(self) -> float:
        """Mean over the rows of the epoch so far, as of the last look at it."""
        looked = self.train_loss_mean.rows - sum(rows for _, rows in self.train_loss_mean.waiting)
        return self.train_loss_mean.total / looked if looked > 0 else math.nan

    @property
    def look_every(self) -> int:
        """Steps between looks at the training loss: on a GPU each look waits for it."""
        return 1 if self.device.type == "cpu" else 100

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        batch = self.augment_batch(batch)
        loss, objective = self.objective(batch)
        self.track_loss(loss, batch, batch_idx)
        return distributed.scale_loss_for_ddp(objective, batch["target"], getattr(self.loss, "weight", None))

    def augment_batch(self, batch: Batch) -> Batch:
        """The batch as training sees it."""
        return batch if self.augment is None else cast(Batch, self.augment(batch))

    def objective(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss that is logged, and the one that is minimised."""
        loss = mixed_loss(self.loss, self.network(batch), batch)
        if self.l1 == 0:
            return loss, loss
        return loss, loss + self.l1 * torch.stack([weight.abs().sum() for weight in self.weights]).sum()

    def track_loss(self, loss: Tensor, batch: Batch, batch_idx: int) -> None:
        """Counts a step, and looks now and then whether its loss is finite."""
        if batch_idx == 0:  # not in on_train_epoch_start, which Lightning leaves out after some resumes
            self.train_loss_mean.reset()
        self.train_loss_mean.add(loss, len(batch["target"]))
        if (batch_idx + 1) % self.look_every == 0:
            self._check("train", self.train_loss_mean, batch)

    def on_fit_start(self) -> None:
        if self.global_rank > 0:  # else dropout would be the same in all processes
            torch.manual_seed(torch.initial_seed() + self.global_rank)

    def on_train_epoch_end(self) -> None:
        self._check("train", self.train_loss_mean)
        total, rows = self.train_loss_mean.gather(self.device)
        self._log({"train/loss": total / rows})

    def on_validation_epoch_start(self) -> None:
        if self.train_loss_mean.waiting:  # weights that training has spoilt would spoil the validation
            self._check("train", self.train_loss_mean)
        distributed.broadcast_buffers(self.network)
        self._start_measuring()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_measured("val")

    def on_test_epoch_start(self) -> None:
        self._start_measuring()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure(batch)

    def on_test_epoch_end(self) -> None:
        self._log_measured("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not all(map(all_finite, self.network.parameters())):
            raise self._diverged("a weight is not finite", "train", self.trainer.fit_loop.batch_idx, ago=1)
        self._check("train", self.train_loss_mean)
        total, rows = self.train_loss_mean.gather(self.device)
        checkpoint["train_loss"] = {"total": total, "rows": rows}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # An epoch resumed in its midst is not started again: its mean goes on from here.
        if rank() == 0:  # which holds the sums of all
            self.train_loss_mean.total = checkpoint["train_loss"]["total"]
            self.train_loss_mean.rows = checkpoint["train_loss"]["rows"]

    @property
    def shared_out(self) -> bool:
        """Whether this process holds but its part of the weights, as with `trainer=fsdp`."""
        return isinstance(self.trainer.strategy, ModelParallelStrategy)

    def configure_model(self) -> None:
        if self.shared_out and self.device_mesh is not None:
            distributed.shard(self.network, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self._build_optimizer()
        if self.scheduler is None:
            return optimizer
        filled: dict[str, Any] = {}
        if _unset(self.scheduler, "total_steps"):
            steps = self.trainer.estimated_stepping_batches
            if steps == float("inf"):
                raise InputError(
                    "This schedule needs the length of the run: set trainer.max_epochs or trainer.max_steps."
                )
            filled["total_steps"] = int(steps)
        if _unset(self.scheduler, "mode"):
            filled["mode"] = self.mode
        scheduler = self.scheduler(optimizer, **filled)
        if isinstance(scheduler, ReduceLROnPlateau):
            # Lightning would step it after the checkpoint, and not at all after a resume: `_log` does.
            never = sys.maxsize
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "frequency": never, "monitor": self.monitor},
            }
        # Those of torch that know no total count epochs by custom.
        interval = "step" if "total_steps" in inspect.signature(self.scheduler).parameters else "epoch"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def _build_optimizer(self) -> torch.optim.Optimizer:
        filled: dict[str, Any] = {}
        # Under mixed precision Lightning refuses to clip gradients for a fused step, because it may unscale them.
        clips = self.trainer.precision.endswith("-mixed") and self.trainer.gradient_clip_val is not None
        # Of weights that are shared out torch has the fused steps of these alone.
        unfused = self.shared_out and getattr(self.optimizer, "func", None) not in (Adam, AdamW)
        if (
            _unset(self.optimizer, "fused")
            and _unset(self.optimizer, "foreach")
            and not (clips or unfused)
            and self.device.type in ("cpu", "cuda")
        ):
            filled["fused"] = True
        return self.optimizer(parameter_groups(self.network, self.optimizer, self.param_groups), **filled)

    def _start_measuring(self) -> None:
        self.eval_loss_mean.reset()
        self.metrics.reset()

    def _measure(self, batch: Batch) -> None:
        output, truth = combine(self.network(batch), self.target.task), batch["target"]
        self.eval_loss_mean.add(self.loss(output, truth), len(truth))
        if self.target.task == "regression":
            truth = to_units(truth, self.target)
        self.metrics.update(self.predict(output), truth)

    def _log_measured(self, split: str) -> None:
        self._check(split, self.eval_loss_mean)
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

    def _check(self, split: str, mean: RunningMean, batch: Batch | None = None) -> None:
        """That the losses are finite; the one place that waits for the device. `batch`: of the last loss, before its
        step."""
        losses = mean.look()
        bad = next((place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is None:
            return
        what = f"{split}/loss is {losses[bad]}"
        if split != "train":
            raise self._diverged(what, split, bad)
        later = len(losses) - 1 - bad
        place = self.trainer.fit_loop.batch_idx - later
        raise self._diverged(what, split, place, batch if later == 0 else None, ago=later + (batch is None))

    def _diverged(
        self, what: str, split: str, place: int, batch: Batch | None = None, *, ago: int = 0
    ) -> DivergedError:
        """What, when, why and what to do. The batch is read again at its `place` where it is not at hand."""
        trainer = self.trainer
        step = self.global_step - ago // trainer.accumulate_grad_batches
        when = f"{what} at step {step} (epoch {self.current_epoch})."
        if self.shared_out:  # looking for the cause takes all weights
            return DivergedError(f"{when}\nTo be told why, take trainer=ddp.\n{about_checkpoint(trainer)}")
        if batch is None:
            loader: Any = {
                "train": trainer.train_dataloader,
                "val": trainer.val_dataloaders,
                "test": trainer.test_dataloaders,
            }[split]
            batch = {name: values.to(self.device) for name, values in next(islice(loader, place, None)).items()}
        spec = getattr(getattr(trainer, "datamodule", None), "inputs", None)
        built = parameter_groups(self.network, self.optimizer, self.param_groups)
        groups = {group["name"]: group["params"] for group in built}
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        with trainer.precision_plugin.forward_context():
            why = diagnose(self.network, partial(mixed_loss, self.loss), batch, spec, groups, max(rates, default=None))
        return DivergedError(f"{when}\n{why}\n{about_checkpoint(trainer)}")


def module_class(network: nn.Module) -> type[SupervisedModule]:
    """Returns the module that trains this network: its class attribute `module_class`, or SupervisedModule."""
    return cast(type[SupervisedModule], getattr(type(network), "module_class", SupervisedModule))


def _unset(function: Callable[..., Any], name: str) -> bool:
    """Whether the function takes an argument of this name and has no value for it."""
    parameter = inspect.signature(function).parameters.get(name)
    return parameter is not None and parameter.default in (inspect.Parameter.empty, None)
