"""One run, from top to bottom: data, network, training, measurement, export."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytorch_lightning
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LambdaCallback
from torch import nn

from common.distributed import launched_rank
from datamodules.tabular import TableDataModule
from models.training.lightning_module import SupervisedModule, module_class
from models.training.parameter_groups import Factors
from trainer.callbacks.tensorboard import log_hyperparameters
from trainer.config.instantiate import check_monitor, instantiate
from trainer.evaluation import report
from trainer.evaluation.evaluate import evaluate, measure
from trainer.evaluation.lr_finder import find_rate
from trainer.evaluation.postprocess import postprocess
from trainer.folders import run_folder
from trainer.loop.quiet import quiet_lightning
from trainer.loop.trainer import Trainer
from trainer.run.ranks import launch_ranks
from trainer.run.word_vectors import warn_of_other_rows

log = logging.getLogger(__name__)

KEPT = ("fit/", "train/", "baseline/seconds")
"""Prefixes of metrics that a run keeps when it is resumed with nothing left to train."""


@dataclass(frozen=True)
class Outcome:
    """A finished run; `module` has the best weights."""

    metrics: dict[str, float]
    trainer: Trainer
    module: SupervisedModule
    datamodule: TableDataModule


def run_once(
    config: DictConfig, folder: Path, begun: Callable[[], None] = lambda: None, *, describe: bool = True
) -> Outcome:
    """Runs from the data to the artifact, in Hydra's run folder. `begun` is called as soon as it is known that the
    contents of the folder fit the settings; `describe` logs columns and splits. Raises InputError.
    """
    started = time.perf_counter()
    before = run_folder.read_metrics(folder)

    def write_start(*_: object) -> None:
        run_folder.write_begun(folder, config)
        begun()

    if config.resume is None:
        write_start()
    find = None
    if config.lr_find:
        resumed = config.resume is not None
        find = partial(find_rate, build=partial(instantiate, config.trainer), folder=folder, resumed=resumed)
    with launch_ranks(config, folder):  # the other processes of the run train meanwhile, by `run_rank`
        trainer, module, datamodule = build(config, folder, describe=describe)
        if config.resume is not None:
            # The checkpoint may not fit the settings; it does once training starts, or ends with no epoch left.
            trainer.callbacks.append(LambdaCallback(on_train_start=write_start, on_fit_end=write_start))
        metrics = train(trainer, module, datamodule, checkpoint=config.resume, find=find)
        trainer = datamodule.trainer = trainer.alone()  # the strategy of several processes ends with them
    metrics |= postprocess(trainer, module, datamodule, calibrate=config.calibrate and module.answers_rows)
    metrics |= measure(trainer, module, datamodule, test=config.test)
    if metrics["fit/samples_per_second"] == 0:
        log.info("nothing was left to train: the run had ended after %.0f epochs", metrics["fit/epochs"])
        metrics |= {name: value for name, value in before.items() if name.startswith(KEPT)}
    return finalize(config, folder, Outcome(metrics, trainer, module, datamodule), started)


def run_rank(config: DictConfig, folder: Path) -> None:
    """The part of a run that a process other than rank 0 has: everything up to the end of training."""
    train(*build(config, folder), checkpoint=config.resume)


def build(
    config: DictConfig, folder: Path, *, describe: bool = True
) -> tuple[Trainer, SupervisedModule, TableDataModule]:
    """Builds the trainer, the module and the data; rank 0 writes the quarantine and the audit."""
    quiet_lightning()
    pytorch_lightning.seed_everything(config.seed, workers=True, verbose=False)
    trainer = build_trainer(config, folder)  # before the data, so that a missing GPU is reported at once
    datamodule = setup_data(config, folder, trainer, describe=describe)
    check_monitor(config.monitor, datamodule.target)
    warn_of_other_rows(config)
    network = instantiate(config.model, spec=datamodule.inputs, outputs=datamodule.target.outputs)
    return trainer, build_module(config, network, datamodule), datamodule


def setup_data(
    config: DictConfig, folder: Path, trainer: Trainer | None = None, *, describe: bool = True
) -> TableDataModule:
    """Prepares the data and writes what was found in them. The rows may lie on the device of `trainer`."""
    datamodule: TableDataModule = instantiate(config.data)
    datamodule.trainer = trainer
    try:
        datamodule.setup()
    finally:
        if launched_rank() == 0 and config.resume is None:  # a resumed run may be refused because of its data
            run_folder.write_quarantine(folder, datamodule.quarantine)
            run_folder.write_audit(folder, datamodule.findings)
    if describe:
        report.say_data(datamodule)
    return datamodule


def build_trainer(config: DictConfig, folder: Path) -> Trainer:
    """Builds the trainer with its callbacks and loggers, which write to Hydra's run folder."""
    callbacks, loggers = (list((instantiate(node) or {}).values()) for node in (config.callbacks, config.logger))
    trainer: Trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers, default_root_dir=str(folder))
    return trainer


def build_module(config: DictConfig, network: nn.Module, datamodule: TableDataModule) -> SupervisedModule:
    """Wraps the network with its loss, optimizer, schedule and metrics."""
    return module_class(network)(
        network,
        datamodule.target,
        loss=instantiate(config.loss, target=datamodule.target),
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler),
        monitor=config.monitor,
        mode=config.mode,
        l1=config.l1,
        param_groups=cast(dict[str, Factors], OmegaConf.to_container(config.param_groups)),
        threshold=config.threshold,
        augment=instantiate(config.augment, spec=datamodule.inputs),
    )


def train(
    trainer: Trainer,
    module: SupervisedModule,
    datamodule: TableDataModule,
    *,
    checkpoint: str | None = None,
    find: Callable[[Trainer, SupervisedModule, TableDataModule], None] | None = None,
) -> dict[str, float]:
    """Fits the module, from `checkpoint` if given, and loads its best weights; `find` may set the learning rate before.
    Returns `train/loss` of the last epoch, `fit/seconds` and so on."""
    trainer.prepare(module, datamodule.head("train", datamodule.batch_size // trainer.world_size), datamodule)
    if checkpoint is None:
        module.start(partial(datamodule.sample, "train"))
    if find is not None:
        find(trainer, module, datamodule)
    started = time.perf_counter()
    # The loop gives the weights of Lightning's own, bit for bit (tests/trainer/loop/test_fast_loop.py).
    trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    seconds = time.perf_counter() - started
    for callback in trainer.early_stopping_callbacks:
        if callback.stopped_epoch:
            log.info("stopped early: %s did not improve for %d epochs", callback.monitor, callback.patience)
    metrics = {
        "train/loss": float(trainer.callback_metrics.get("train/loss", torch.nan)),
        "fit/seconds": seconds,
        "fit/epochs": float(trainer.current_epoch),
        "fit/steps": float(trainer.global_step),
        "fit/samples_per_second": module.samples * trainer.world_size / seconds,
    }
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if best and Path(best).exists():
        saved = torch.load(best, map_location="cpu", weights_only=True)
        module.load_state_dict(saved["state_dict"])
        metrics["fit/best_epoch"] = float(saved["epoch"] + 1)
    return metrics


def finalize(config: DictConfig, folder: Path, outcome: Outcome, started: float) -> Outcome:
    """Compares with the baselines, writes plots, metrics and the artifact, and logs the last lines. `started` is a time
    of `time.perf_counter`, in seconds."""
    trainer, module, datamodule, metrics = outcome.trainer, outcome.module, outcome.datamodule, outcome.metrics
    evaluation = evaluate(config, trainer, module, datamodule, folder)
    metrics |= {**evaluation.metrics, **metrics}  # those that a resumed run has kept stay
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    log_hyperparameters(trainer, plain, metrics)
    run_folder.write_metrics(folder, metrics)
    for line in module.write_results(folder):
        log.info("%s", line)
    export, artifact = instantiate(config.export), None
    if export is not None and module.answers_rows and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        exporting = time.perf_counter()
        artifact = export(folder / "model.pt", datamodule, module, metrics, plain, evaluation.calibration)
        log.info("exported in %.1f s", time.perf_counter() - exporting)
    seconds = time.perf_counter() - started
    log.info("%s", report.closing(folder, metrics, artifact, seconds, evaluation.verdict, config.monitor))
    return outcome
