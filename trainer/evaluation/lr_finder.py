"""Learning rate finder: a range test before the run (Smith, arXiv 1506.01186) that changes only the learning rate."""

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
"""Range and number of the tested rates, which form a geometric sequence."""
DECADE = 21
"""Number of steps in which the rate grows tenfold."""
CLEAR = 1.25
"""Minimum decrease of the loss, in standard deviations of a batch loss; without learning 1 in 70 tests reaches it."""
SMOOTH = 0.9
"""Decay of the running mean of the losses, which decides when the test stops."""
DIVERGED = 4.0
"""The test stops if the running mean exceeds its minimum by this factor."""
SPREAD = 4
"""Standard deviation in steps of the Gaussian that smooths the losses: a fifth of a decade."""

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
"""Trainer settings of a range test. All others, such as precision and gradient clipping, are the same as in the run."""


class RangeTest(Callback):
    """Raises the rate from `LOW` to `HIGH` geometrically, and records rates and losses until the loss diverges.

    The optimizer must be built with a rate of 1, so that the rates of its groups are their factors.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.mean = 0.0
        self.minimum = math.inf

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
        self.minimum = min(self.minimum, mean)
        if mean > DIVERGED * self.minimum:
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
    """Sets the rate of the module's optimizer to the rate that a range test suggests; groups keep their factors.

    The test trains a copy of the module with a trainer from `build`, called with settings that override the settings
    of the run. Random states and the order of batches do not change. (Lightning's finder sets one rate for all groups.)
    Writes lr_find.json and lr_find.png. A resumed run reads the rate from lr_find.json. Raises ConfigError if the loss
    does not decrease, or if a resumed run has no lr_find.json.
    """
    path = folder / "lr_find.json"
    if resumed:
        if not path.exists():
            raise ConfigError(
                f"lr_find: {folder} was started without it, and a resumed run keeps its learning rate. Use"
                " lr_find=false."
            )
        rate = json.loads(path.read_text())["lr"]
    else:
        test = range_test(module, datamodule, build)
        rate = suggest(test.rates, test.losses)
        atomic_write(path, json.dumps({"lr": rate, "rates": test.rates, "losses": test.losses}).encode())
        show(rate_figure(test.rates, test.losses, rate), folder / "lr_find.png", trainer)
    before = inspect.signature(module.optimizer).parameters["lr"].default
    log.info("learning rate: %.2g, at the steepest decrease of the loss (optimizer.lr was %.2g)", rate, before)
    module.optimizer = functools.partial(module.optimizer, lr=rate)


def range_test(module: SupervisedModule, datamodule: TableDataModule, build: Callable[..., Trainer]) -> RangeTest:
    """Runs the range test on a copy of the module, with its optimizer, groups, loss, augmentation and clipping."""
    test = RangeTest()
    with isolate_rng():
        trainer = build(callbacks=[test], **SETTINGS)
        if trainer.world_size > 1:
            raise ConfigError(f"lr_find: needs a single process, but there are {trainer.world_size}. Set optimizer.lr.")
        trial = copy.deepcopy(module)
        trial.scheduler = None
        trial.optimizer = functools.partial(module.optimizer, lr=1.0)
        with contextlib.suppress(DivergedError):  # divergence ends the test
            trainer.fit(trial, datamodule=datamodule)
    return test


def suggest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Returns the rate of the steepest decrease of the loss over the logarithm of the rate, rounded to two digits.

    The middle of the longest decrease ("valley", fastai's default) is lower if the loss starts to decrease early and
    slowly; docs/models.md compares both. Raises ConfigError if the loss does not decrease by clearly more than it
    varies between batches.
    """
    smooth = smoothed(losses) if losses else np.zeros(1)
    lowest = int(smooth.argmin())
    before = np.array(losses[:lowest])
    if lowest < DECADE or before[:DECADE].mean() - smooth[lowest] <= CLEAR * (before - smooth[:lowest]).std():
        raise ConfigError(
            f"lr_find: from a rate of {LOW:g} up, the loss never decreases by more than it varies between batches. Set"
            " optimizer.lr, or use a larger data.batch_size."
        )
    slope = np.gradient(smooth, np.log(rates))
    return float(f"{rates[int(slope[:lowest].argmin())]:.2g}")


def smoothed(losses: Sequence[float]) -> npt.NDArray[np.float64]:
    """Smooths the losses with a Gaussian, which is symmetric, so the result does not lag."""
    distance = np.arange(-3 * SPREAD, 3 * SPREAD + 1)
    kernel = np.exp(-0.5 * (distance / SPREAD) ** 2)
    weighted, weight = (np.convolve(values, kernel) for values in (losses, np.ones(len(losses))))
    smooth: npt.NDArray[np.float64] = (weighted / weight)[3 * SPREAD : len(losses) + 3 * SPREAD]
    return smooth


def rate_figure(rates: Sequence[float], losses: Sequence[float], rate: float) -> "Figure":
    """Plots the losses over the rates, with the chosen rate."""
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
