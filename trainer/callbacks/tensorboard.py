"""TensorBoard's HPARAMS tab: the settings of a run and its metrics."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger


def log_hyperparameters(trainer: pl.Trainer, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Writes the resolved config, with keys joined by "/", and the final metrics next to the run's curves.

    Each metric is also added to its curve, because the tab shows the last point of a curve. Does nothing without a
    TensorBoard logger.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(config), dict(metrics), step=trainer.global_step)
            logger.save()
