"""Detects a loss or weight that is not finite and raises DivergedError with the likely cause."""

import math
import os
from functools import partial
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from common.distributed import rank
from common.errors import InputError
from models.training import distributed
from models.training.augmentation import mixed_loss
from models.training.diagnosis import Batch, all_finite, diagnose
from models.training.parameter_groups import parameter_groups


class DivergedError(InputError):
    """A loss or a weight is not finite."""


class RunningMean:
    """Mean of a loss over rows, in double precision. Losses stay on their device until `flush`.

    `rows` counts since the last reset, `total_rows` since the start.
    """

    def __init__(self) -> None:
        self.total_rows = 0
        self.reset()

    def reset(self) -> None:
        self.total = 0.0
        self.rows = 0
        self.pending: list[tuple[Tensor, int]] = []

    def add(self, loss: Tensor, rows: int) -> None:
        self.pending.append((loss.detach(), rows))
        self.rows += rows
        self.total_rows += rows

    def flush(self) -> list[float]:
        """Adds the pending losses to `total` and returns them in order; waits for the device."""
        if not self.pending:
            return []
        pending = [loss for loss, _ in self.pending]
        losses = [float(pending[0])] if len(pending) == 1 else torch.stack(pending).tolist()
        for loss, (_, rows) in zip(losses, self.pending, strict=True):
            self.total += loss * rows
        self.pending = []
        return losses

    @property
    def flushed_mean(self) -> float:
        """Mean without the pending losses; NaN if all of them are pending."""
        rows = self.rows - sum(rows for _, rows in self.pending)
        return self.total / rows if rows > 0 else math.nan

    def gather(self, device: torch.device) -> tuple[float, int]:
        """Returns total and rows summed over all processes, reduced on `device`; rank 0 keeps these sums."""
        total, rows = distributed.all_reduce_sum(
            torch.tensor([self.total, self.rows], dtype=torch.float64, device=device)
        ).tolist()
        self.total, self.rows = (total, int(rows)) if rank() == 0 else (0.0, 0)
        return total, int(rows)


class DivergenceGuard:
    """Raises DivergedError if a loss or a weight of `module`, a SupervisedModule, is not finite."""

    def __init__(self, module: Any) -> None:  # SupervisedModule imports this class
        self.module = module

    def check_losses(self, split: str, mean: RunningMean, batch: Batch | None = None) -> None:
        """Flushes `mean` and checks its losses. `batch`: the batch of the last loss, before its optimizer step."""
        losses = mean.flush()
        first = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if first is None:
            return
        what = f"{split}/loss is {losses[first]}"
        if split != "train":
            raise self._error(what, split, first)
        later = len(losses) - 1 - first
        index = self.module.trainer.fit_loop.batch_idx - later
        raise self._error(what, split, index, batch if later == 0 else None, steps_ago=later + (batch is None))

    def check_weights(self) -> None:
        """Checks the weights of the network after an optimizer step."""
        if not all(map(all_finite, self.module.network.parameters())):
            index = self.module.trainer.fit_loop.batch_idx
            raise self._error("a weight is not finite", "train", index, steps_ago=1)

    def _error(
        self, what: str, split: str, index: int, batch: Batch | None = None, *, steps_ago: int = 0
    ) -> DivergedError:
        """The error with the diagnosis of batch `index` of the split, which is read again if it is not given."""
        module, trainer = self.module, self.module.trainer
        step = module.global_step - steps_ago // trainer.accumulate_grad_batches
        when = f"{what} at step {step} (epoch {module.current_epoch})."
        if module.is_sharded:  # the diagnosis needs all weights
            return DivergedError(f"{when}\nUse trainer=ddp to get a diagnosis.\n{_last_checkpoint(trainer)}")
        if batch is None:
            loader: Any = {
                "train": trainer.train_dataloader,
                "val": trainer.val_dataloaders,
                "test": trainer.test_dataloaders,
            }[split]
            batch = {name: values.to(module.device) for name, values in next(islice(loader, index, None)).items()}
        spec = getattr(getattr(trainer, "datamodule", None), "inputs", None)
        built = parameter_groups(module.network, module.optimizer, module.param_groups)
        groups = {group["name"]: group["params"] for group in built}
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        with trainer.precision_plugin.forward_context():
            loss = partial(mixed_loss, module.loss)
            why = diagnose(module.network, loss, batch, spec, groups, max(rates, default=None))
        return DivergedError(f"{when}\n{why}\n{_last_checkpoint(trainer)}")


def _last_checkpoint(trainer: pl.Trainer) -> str:
    """The sentence about the newest checkpoint of the run."""
    callbacks = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    paths = [each.best_model_path for each in callbacks if os.path.exists(each.best_model_path)]
    if not paths:
        return "There is no checkpoint: no epoch was completed."
    newest = max(paths, key=os.path.getmtime)
    epochs = torch.load(newest, map_location="cpu", weights_only=True)["epoch"] + 1
    return f"The last good checkpoint, after epoch {epochs}, is {newest}."
