"""The steps of a run, in order, on one page: data, network, training, measurement, artefact."""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from datamodules.table import TableDataModule
from models.supervised import SupervisedModule
from trainer import report
from trainer.callbacks.tensorboard import log_hyperparameters
from trainer.config import check_monitor, instantiate
from trainer.export import export
from trainer.resume import differences, find_checkpoint

log = logging.getLogger(__name__)


def run(config: DictConfig) -> float:
    """Carries out the composed config in Hydra's run folder; returns the monitored value, for a sweep to compare."""
    started = time.perf_counter()
    folder = Path(HydraConfig.get().runtime.output_dir)
    checkpoint = find_checkpoint(folder) if config.resume is not None else None
    report.write_config(folder, config, differences if checkpoint is not None else None)
    report.write_environment(folder)
    pytorch_lightning.seed_everything(config.seed, workers=True, verbose=False)

    datamodule: TableDataModule = instantiate(config.data)
    try:
        datamodule.setup()
    finally:
        report.write_quarantine(folder, datamodule)
    log.info("%s", report.describe_data(datamodule))
    check_monitor(config.monitor, datamodule.target)

    network = instantiate(config.model, inputs=datamodule.inputs, outputs=datamodule.target.outputs)
    module = SupervisedModule(
        network,
        datamodule.target,
        loss=instantiate(config.loss, target=datamodule.target),
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler),
        monitor=config.monitor,
        mode=config.mode,
        l1=config.l1,
    )
    trainer = instantiate(
        config.trainer,
        callbacks=list(instantiate(config.callbacks).values()),
        logger=list(instantiate(config.logger).values()),
        default_root_dir=str(folder),
    )
    metrics = train(trainer, module, datamodule, checkpoint=checkpoint, test=config.test)
    log_hyperparameters(trainer, OmegaConf.to_container(config, resolve=True), metrics)
    write_metrics(folder / "metrics.json", metrics)

    artifact = None
    if config.export.enabled and not trainer.fast_dev_run:
        artifact = export(folder / "model.pt", datamodule, module, metrics, config)
    log.info("%s", report.closing(folder, metrics, artifact, time.perf_counter() - started))
    return metrics[config.monitor]


def train(
    trainer: pytorch_lightning.Trainer,
    module: SupervisedModule,
    datamodule: TableDataModule,
    *,
    checkpoint: Path | None = None,
    test: bool = True,
) -> dict[str, float]:
    """Fits, takes the best weights back, measures them; all objects are built, so Hydra is not needed.

    Returns the flat metrics: `val/...` and `test/...` of the best weights, `fit/seconds`, `fit/samples_per_second` and so
    on. The module holds the best weights afterwards.
    """
    started = time.perf_counter()
    trainer.fit(
        module, datamodule=datamodule, ckpt_path=None if checkpoint is None else str(checkpoint), weights_only=True
    )
    seconds = time.perf_counter() - started
    metrics: dict[str, float] = {
        "fit/seconds": seconds,
        "fit/epochs": trainer.current_epoch,
        "fit/steps": trainer.global_step,
        "fit/samples_per_second": trainer.current_epoch * len(datamodule.rows["train"]["target"]) / seconds,
    }
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if best and Path(best).exists():
        saved = torch.load(best, map_location="cpu", weights_only=True)
        module.load_state_dict(saved["state_dict"])
        metrics["fit/best_epoch"] = saved["epoch"]
    for measured in trainer.validate(module, datamodule=datamodule, verbose=False):
        metrics |= measured
    if test:
        for measured in trainer.test(module, datamodule=datamodule, verbose=False):
            metrics |= measured
    return metrics


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """One flat JSON object; a metric that is not defined (NaN) is null."""
    plain = {name: float(value) for name, value in sorted(metrics.items())}
    path.write_text(
        json.dumps({name: value if math.isfinite(value) else None for name, value in plain.items()}, indent=2)
    )
