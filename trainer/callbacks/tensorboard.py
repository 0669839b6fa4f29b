"""TensorBoard's HPARAMS tab: what a run was set to, beside what came of it."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger


def log_hyperparameters(trainer: pl.Trainer, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Writes the resolved config, its keys joined by "/", and the final metrics beside the run's curves.

    Each metric also ends its own curve, because the tab shows a curve's last point. Without a TensorBoard logger
    nothing is done.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(config), dict(metrics), step=trainer.global_step)
            logger.save()
