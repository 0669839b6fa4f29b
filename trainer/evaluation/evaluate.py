"""Evaluation of the trained network: comparison with the baselines, plots and latency."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from datamodules.tabular import TableDataModule
from models.training.lightning_module import SupervisedModule
from trainer.evaluation import plots
from trainer.evaluation.baselines import Comparison, compare
from trainer.evaluation.latency import LATENCY, latency
from trainer.loop.trainer import Trainer


@dataclass(frozen=True)
class Evaluation:
    """`metrics`: `baseline/...` and latency; `verdict`: lines for the end of the run; `calibration`: the reliability
    diagram of a classifier as plain values, for the artifact."""

    metrics: dict[str, float] = field(default_factory=dict)
    verdict: str = ""
    calibration: dict[str, Any] | None = None


def evaluate(
    config: DictConfig, trainer: Trainer, module: SupervisedModule, datamodule: TableDataModule, folder: Path
) -> Evaluation:
    """Compares the network with the baselines, saves plots in the run folder, and measures the latency if it is an
    objective of the search."""
    comparison = Comparison()
    if config.baselines and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        comparison = compare(trainer, module, datamodule, test=config.test)
    calibration = None
    if module.answers_rows:
        calibration = plots.draw(trainer, module, datamodule, folder, test=config.test)
    metrics = dict(comparison.metrics)
    if config.search is not None and LATENCY in config.search.objectives:
        metrics[LATENCY] = latency(trainer, module, datamodule)
    return Evaluation(metrics, comparison.verdict, calibration)


def measure(
    trainer: Trainer, module: SupervisedModule, datamodule: TableDataModule, *, test: bool = True
) -> dict[str, float]:
    """Measures `val/...` and, with `test`, `test/...` with the present weights."""
    metrics: dict[str, float] = {}
    for measured in trainer.validate(module, datamodule=datamodule, verbose=False):
        metrics |= measured
    if test:
        for measured in trainer.test(module, datamodule=datamodule, verbose=False):
            metrics |= measured
    return metrics
