"""Builds the optimizer and the learning rate scheduler of a module as Lightning expects them."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from common.errors import InputError
from models.training.parameter_groups import Factors, parameter_groups


def build_optimizer(
    network: nn.Module,
    optimizer: Callable[..., Optimizer],
    param_groups: Mapping[str, Factors],
    trainer: pl.Trainer,
    device: torch.device,
    *,
    is_sharded: bool,
) -> Optimizer:
    """Builds the optimizer on the parameter groups of `network`, with fused kernels if torch has them.

    `optimizer` is a partial with its settings; `fused` and `foreach` are left alone if either is set.
    """
    filled: dict[str, Any] = {}
    # With mixed precision Lightning refuses to clip gradients for a fused optimizer, which may unscale them itself.
    clips = trainer.precision.endswith("-mixed") and trainer.gradient_clip_val is not None
    # For sharded weights torch has fused kernels of these two only.
    unfused = is_sharded and getattr(optimizer, "func", None) not in (Adam, AdamW)
    if (
        _is_unset(optimizer, "fused")
        and _is_unset(optimizer, "foreach")
        and not (clips or unfused)
        and device.type in ("cpu", "cuda")
    ):
        filled["fused"] = True
    return optimizer(parameter_groups(network, optimizer, param_groups), **filled)


def with_scheduler(
    optimizer: Optimizer,
    scheduler: Callable[..., Any] | None,
    trainer: pl.Trainer,
    *,
    monitor: str,
    mode: Literal["min", "max"],
) -> OptimizerLRScheduler:
    """Returns what `configure_optimizers` returns: the optimizer and, if given, its scheduler and when it steps.

    Fills in `total_steps` and `mode` of `scheduler`. Raises InputError if it needs `total_steps` and the length of the
    run is not known.
    """
    if scheduler is None:
        return optimizer
    filled: dict[str, Any] = {}
    if _is_unset(scheduler, "total_steps"):
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise InputError("This schedule needs the length of the run: set trainer.max_epochs or trainer.max_steps.")
        filled["total_steps"] = int(steps)
    if _is_unset(scheduler, "mode"):
        filled["mode"] = mode
    built = scheduler(optimizer, **filled)
    if isinstance(built, ReduceLROnPlateau):
        # Lightning would step it after the checkpoint, and not after a resume; SupervisedModule steps it instead.
        never = sys.maxsize
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": built, "frequency": never, "monitor": monitor},
        }
    # Schedulers of torch without `total_steps` count epochs by convention.
    interval = "step" if "total_steps" in inspect.signature(scheduler).parameters else "epoch"
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": built, "interval": interval}}


def _is_unset(function: Callable[..., Any], name: str) -> bool:
    """Returns whether the function has a parameter of this name without a value."""
    parameter = inspect.signature(function).parameters.get(name)
    return parameter is not None and parameter.default in (inspect.Parameter.empty, None)
