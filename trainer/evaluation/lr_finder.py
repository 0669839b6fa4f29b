"""The learning rate by a range test before the run (Smith, arXiv 1506.01186), and nothing else left changed by it."""

import contextlib
import copy
import functools
import inspect
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.seed import isolate_rng

from common.atomic_write import atomic_write
from datamodules.tabular import TableDataModule
from models.training.divergence import DivergedError
from models.training.lightning_module import SupervisedModule
from trainer.config.errors import ConfigError
from trainer.evaluation.plots import show
from trainer.folders.colors import BLUE, GREY, ORANGE
from trainer.loop.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

LOW, HIGH, STEPS = 1e-6, 10.0, 150
"""The rates, each the same factor above the one before."""
DECADE = 21
"""Steps from a rate to ten times that rate."""
CLEAR = 1.25
"""Deviations of a batch's loss that the loss must fall by; where nothing is learned, one test in 70 shows as much."""
SMOOTH = 0.9
"""Of the running mean of the losses, by which the test stops."""
DIVERGED = 4.0
"""The test stops where the running mean is so many times its least."""
SPREAD = 4
"""Steps: the deviation of the bell curve that smoothes the losses; a fifth of a decade."""

SETTINGS: Mapping[str, Any] = {
    "max_epochs": -1,
    "max_steps": STEPS,
    "max_time": None,
    "min_epochs": None,
    "min_steps": None,
    "fast_dev_run": False,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
    "detect_anomaly": False,
    "profiler": None,
    "logger": False,
}
"""What the trainer of a range test has for itself; all else, precision and clipping among it, is as in the run."""


class RangeTest(Callback):
    """Raises the rate from `LOW` to `HIGH`, the same factor a step, and keeps rates and losses until they diverge.

    The optimizer must have been built with a rate of 1, so that the rates of its groups are their factors.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.mean = 0.0
        self.least = math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.factors = [group["lr"] for group in trainer.optimizers[0].param_groups]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.rate = LOW * (HIGH / LOW) ** (trainer.global_step / (STEPS - 1))
        for group, factor in zip(trainer.optimizers[0].param_groups, self.factors, strict=True):
            group["lr"] = self.rate * factor

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        if not math.isfinite(loss):
            trainer.should_stop = True
            return
        self.rates.append(self.rate)
        self.losses.append(loss)
        self.mean = SMOOTH * self.mean + (1 - SMOOTH) * loss
        mean = self.mean / (1 - SMOOTH ** len(self.losses))
        self.least = min(self.least, mean)
        if mean > DIVERGED * self.least:
            trainer.should_stop = True


def find_rate(
    trainer: Trainer,
    module: SupervisedModule,
    datamodule: TableDataModule,
    *,
    build: Callable[..., Trainer],
    folder: Path,
    resumed: bool,
) -> None:
    """Sets the rate of the module's optimizer to the one that a range test suggests; the factors of groups stay.

    The test trains a copy, on a trainer that `build` makes with settings over those of the run. Random states and the
    order of batches are as if it had not been. Lightning's own finder gives all groups one rate, and none back. Writes
    lr_find.json and lr_find.png; a resumed run takes the rate from there. Raises ConfigError where the loss does not
    fall, or there is no such file.
    """
    path = folder / "lr_find.json"
    if resumed:
        if not path.exists():
            raise ConfigError(
                f"lr_find: {folder} was begun without it, and a resumed run keeps its rate: leave lr_find out."
            )
        rate = json.loads(path.read_text())["lr"]
    else:
        test = range_test(module, datamodule, build)
        rate = suggest(test.rates, test.losses)
        atomic_write(path, json.dumps({"lr": rate, "rates": test.rates, "losses": test.losses}).encode())
        show(rate_figure(test.rates, test.losses, rate), folder / "lr_find.png", trainer)
    before = inspect.signature(module.optimizer).parameters["lr"].default
    log.info("learning rate: %.2g, where the loss falls most steeply (optimizer.lr was %.2g)", rate, before)
    module.optimizer = functools.partial(module.optimizer, lr=rate)


def range_test(module: SupervisedModule, datamodule: TableDataModule, build: Callable[..., Trainer]) -> RangeTest:
    """The rates and losses of a copy of the module that has its optimizer, groups, loss, augmentation and clipping."""
    test = RangeTest()
    with isolate_rng():
        trainer = build(callbacks=[test], **SETTINGS)
        if trainer.world_size > 1:
            raise ConfigError(f"lr_find: works in one process, and there are {trainer.world_size}: set optimizer.lr.")
        rehearsal = copy.deepcopy(module)
        rehearsal.scheduler = None
        rehearsal.optimizer = functools.partial(module.optimizer, lr=1.0)
        with contextlib.suppress(DivergedError):  # which ends it too
            trainer.fit(rehearsal, datamodule=datamodule)
    return test


def suggest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the loss falls most steeply over the logarithm of the rate, two digits of it.

    The middle of the longest fall ("valley", fastai's default) comes out lower where the loss begins to fall early and
    gently; docs/models.md has figures of both. Raises ConfigError where the loss does not fall by clearly more than it
    varies from batch to batch.
    """
    smooth = smoothed(losses) if losses else np.zeros(1)
    lowest = int(smooth.argmin())
    before = np.array(losses[:lowest])
    if lowest < DECADE or before[:DECADE].mean() - smooth[lowest] <= CLEAR * (before - smooth[:lowest]).std():
        raise ConfigError(
            f"lr_find: at no rate from {LOW:g} on the loss falls by more than it varies from batch to batch: set"
            " optimizer.lr, or take a larger data.batch_size."
        )
    slope = np.gradient(smooth, np.log(rates))
    return float(f"{rates[int(slope[:lowest].argmin())]:.2g}")


def smoothed(losses: Sequence[float]) -> npt.NDArray[np.float64]:
    """Means weighted by a bell curve, which lag behind on neither side."""
    distance = np.arange(-3 * SPREAD, 3 * SPREAD + 1)
    bell = np.exp(-0.5 * (distance / SPREAD) ** 2)
    weighted, weight = (np.convolve(values, bell) for values in (losses, np.ones(len(losses))))
    smooth: npt.NDArray[np.float64] = (weighted / weight)[3 * SPREAD : len(losses) + 3 * SPREAD]
    return smooth


def rate_figure(rates: Sequence[float], losses: Sequence[float], rate: float) -> "Figure":
    """The losses over the rates, and the rate that was chosen."""
    from matplotlib.figure import Figure

    smooth = smoothed(losses)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=GREY, alpha=0.5, linewidth=1, label="batch")
    axes.plot(rates, smooth, color=BLUE, linewidth=2, label="smoothed")
    axes.axvline(rate, color=ORANGE, linewidth=1.5, linestyle="--", label=f"chosen: {rate:.2g}")
    first, least = float(smooth[0]), float(smooth.min())
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title="Range test of the learning rate")
    axes.set_ylim(least - 0.2 * (first - least), first + 0.6 * (first - least))
    axes.legend(loc="lower left", framealpha=1)
    axes.grid(alpha=0.25)
    return figure
