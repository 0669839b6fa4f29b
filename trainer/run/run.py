"""The steps of a run, in order, on one page: data, network, training, measurement, artefact."""

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import pytorch_lightning
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LambdaCallback
from torch import nn

from common.distributed import launched_rank
from datamodules.tabular import TableDataModule
from models.architectures.word2vec import Word2Vec, Word2VecModule
from models.layers.text_bag import VECTORS
from models.training.lightning_module import SupervisedModule
from models.training.parameter_groups import Factors
from trainer.callbacks.tensorboard import log_hyperparameters
from trainer.config.errors import ConfigError
from trainer.config.instantiate import check_monitor, instantiate
from trainer.evaluation import plots, report
from trainer.evaluation.baselines import Comparison, compare
from trainer.evaluation.latency import LATENCY, latency
from trainer.evaluation.lr_finder import find_rate
from trainer.evaluation.postprocess import postprocess
from trainer.folders import run_folder
from trainer.loop.trainer import Trainer
from trainer.run import ranks

log = logging.getLogger(__name__)

START_ROWS = 4096
"""Training rows that a network may see before training, where it has no `start_rows` of its own."""
KEPT = ("fit/", "train/", "baseline/seconds")
"""What a run that ended before keeps of its metrics."""


@runtime_checkable
class Starts(Protocol):
    """A network whose start depends on data; it is in evaluation, without gradients, meanwhile."""

    def start(self, batch: dict[str, torch.Tensor]) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """A run that has been carried out; the module holds the best weights."""

    metrics: dict[str, float]
    trainer: Trainer
    module: SupervisedModule
    datamodule: TableDataModule


def run_once(
    config: DictConfig, folder: Path, begun: Callable[[], None] = lambda: None, *, describe: bool = True
) -> Outcome:
    """One run, from the data to the artefact, in a folder that is Hydra's run folder; `describe` says what the data
    are."""

    def write_start(*_: object) -> None:
        run_folder.write_begun(folder, config)
        begun()

    started = time.perf_counter()
    before = run_folder.read_metrics(folder)
    if config.resume is None:
        write_start()
    find = None
    if config.lr_find:
        resumed = config.resume is not None
        find = partial(find_rate, build=partial(instantiate, config.trainer), folder=folder, resumed=resumed)
    with ranks.launch_ranks(config, folder):
        trainer, module, datamodule = build(config, folder, describe=describe)
        if config.resume is not None:
            # Until it trains, the checkpoint may not go with the settings. Where no epoch is left, it never does.
            trainer.callbacks.append(LambdaCallback(on_train_start=write_start, on_fit_end=write_start))
        metrics = train(trainer, module, datamodule, checkpoint=config.resume, find=find)
        # The strategy of several processes knows no device once they have gone.
        trainer = datamodule.trainer = trainer.alone()
    calibrate = config.calibrate and not isinstance(module, Word2VecModule)
    metrics |= postprocess(trainer, module, datamodule, calibrate=calibrate)
    metrics |= measure(trainer, module, datamodule, test=config.test)
    if metrics["fit/samples_per_second"] == 0:
        log.info("nothing was left to train: the run had ended after %.0f epochs", metrics["fit/epochs"])
        metrics |= {name: value for name, value in before.items() if name.startswith(KEPT)}
    return finalize(config, folder, Outcome(metrics, trainer, module, datamodule), started)


def run_rank(config: DictConfig, folder: Path) -> None:
    """What another process than rank 0 does in a run: all of it up to the end of training."""
    train(*build(config, folder), checkpoint=config.resume)


def build(
    config: DictConfig, folder: Path, *, describe: bool = True
) -> tuple[Trainer, SupervisedModule, TableDataModule]:
    """All that training takes; rank 0 writes down what is found out about the data."""
    quiet_lightning()
    pytorch_lightning.seed_everything(config.seed, workers=True, verbose=False)
    # Before the data are read: what Lightning refuses, such as a GPU that is not there, is said at once.
    trainer = build_trainer(config, folder)
    datamodule = setup_data(config, folder, trainer, describe=describe)
    check_monitor(config.monitor, datamodule.target)
    warn_of_other_rows(config)

    network = instantiate(config.model, spec=datamodule.inputs, outputs=datamodule.target.outputs)
    return trainer, build_module(config, network, datamodule), datamodule


def setup_data(
    config: DictConfig, folder: Path, trainer: Trainer | None = None, *, describe: bool = True
) -> TableDataModule:
    """The data, ready, and what was found in them written down; `trainer` says which device rows may lie on."""
    datamodule: TableDataModule = instantiate(config.data)
    datamodule.trainer = trainer
    try:
        datamodule.setup()
    finally:
        if launched_rank() == 0 and config.resume is None:  # with which the data may not go
            run_folder.write_quarantine(folder, datamodule.quarantine)
            run_folder.write_audit(folder, datamodule.findings)
    if describe:
        report.say_data(datamodule)
    return datamodule


def build_trainer(config: DictConfig, folder: Path) -> Trainer:
    """With its callbacks and loggers, which write to Hydra's run folder."""
    trainer: Trainer = instantiate(
        config.trainer,
        callbacks=list((instantiate(config.callbacks) or {}).values()),
        logger=list((instantiate(config.logger) or {}).values()),
        default_root_dir=str(folder),
    )
    return trainer


def build_module(config: DictConfig, network: nn.Module, datamodule: TableDataModule) -> SupervisedModule:
    """The network with what the config says of its training."""
    kind: type[SupervisedModule] = Word2VecModule if isinstance(network, Word2Vec) else SupervisedModule
    return kind(
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


def finalize(config: DictConfig, folder: Path, outcome: Outcome, started: float) -> Outcome:
    """What follows the measurement: baselines, pictures, metrics, the artefact, the last lines. `started`: seconds of
    `time.perf_counter`."""
    trainer: Any = outcome.trainer
    module, datamodule, metrics = outcome.module, outcome.datamodule, outcome.metrics
    comparison = Comparison()
    if config.baselines and not trainer.fast_dev_run:
        comparison = compare(trainer, module, datamodule, test=config.test)
        metrics |= {**comparison.metrics, **metrics}  # those that a run which had ended before kept stay
    calibration = None
    if not isinstance(module, Word2VecModule):
        calibration = plots.draw(trainer, module, datamodule, folder, test=config.test)
    if config.search is not None and LATENCY in config.search.objectives:
        metrics[LATENCY] = latency(trainer, module, datamodule)
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    log_hyperparameters(trainer, plain, metrics)
    run_folder.write_metrics(folder, metrics)

    export = instantiate(config.export)
    artifact = None
    if isinstance(module, Word2VecModule):
        log.info("vectors of words: %s", module.write(folder))
    elif export is not None and not trainer.fast_dev_run:
        exporting = time.perf_counter()
        artifact = export(folder / "model.pt", datamodule, module, metrics, plain, calibration)
        log.info("exported in %.1f s", time.perf_counter() - exporting)
    seconds = time.perf_counter() - started
    log.info("%s", report.closing(folder, metrics, artifact, seconds, comparison.verdict, config.monitor))
    return outcome


def train(
    trainer: Trainer,
    module: SupervisedModule,
    datamodule: TableDataModule,
    *,
    checkpoint: str | None = None,
    find: Callable[[Trainer, SupervisedModule, TableDataModule], None] | None = None,
) -> dict[str, float]:
    """Fits, and takes the best weights back; all objects are built, so Hydra is not needed. `find` may change the
    module's optimizer before.

    Returns `train/loss` of the last epoch, `fit/seconds`, `fit/samples_per_second` and so on.
    """
    trainer.prepare(module, datamodule.head("train", datamodule.batch_size // trainer.world_size), datamodule)
    if isinstance(module.network, Starts) and checkpoint is None:
        rows = datamodule.sample("train", getattr(module.network, "start_rows", START_ROWS))
        module.network.eval()  # neither dropout nor noise
        with torch.no_grad():
            module.network.start(rows)
        module.network.train()
    if find is not None:
        find(trainer, module, datamodule)
    started = time.perf_counter()
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    except RuntimeError as error:
        if checkpoint is None or "Error(s) in loading state_dict" not in str(error):
            raise
        raise ConfigError(
            f"resume: {checkpoint} holds another network than this one: leave the settings of data and model as"
            " they were."
        ) from error
    except MisconfigurationException as error:
        if checkpoint is None or "restored a checkpoint with current_epoch" not in str(error):
            raise
        raise ConfigError(
            f"resume: the run has had more epochs than trainer.max_epochs={trainer.max_epochs}: leave it as it was, or"
            " take a larger one."
        ) from error
    seconds = time.perf_counter() - started
    for callback in trainer.early_stopping_callbacks:
        if callback.stopped_epoch:
            log.info("stopped early: %s was no better for %d epochs", callback.monitor, callback.patience)
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


def measure(
    trainer: Trainer, module: SupervisedModule, datamodule: TableDataModule, *, test: bool = True
) -> dict[str, float]:
    """`val/...` and, with `test`, `test/...` of the weights as they are."""
    metrics: dict[str, float] = {}
    for measured in trainer.validate(module, datamodule=datamodule, verbose=False):
        metrics |= measured
    if test:
        for measured in trainer.test(module, datamodule=datamodule, verbose=False):
            metrics |= measured
    return metrics


def warn_of_other_rows(config: DictConfig) -> None:
    """Says where words start from vectors of a run that trained on other rows, which may be tested here."""
    vectors = OmegaConf.select(config, "model.inputs.text.vectors")
    described = Path(vectors or "", "config.yaml")
    if vectors is None or not (described.exists() and (described.parent / VECTORS).exists()):
        return
    then = OmegaConf.load(described)
    for key in ("data.path", "data.split"):
        if OmegaConf.select(then, key) != OmegaConf.select(config, key):
            log.warning(
                "model.inputs.text.vectors=%s: another %s trained these vectors, perhaps on rows that are tested here;"
                " train them with the same data.split",
                vectors,
                key,
            )
            return


def quiet_lightning() -> None:
    """Lightning's banners and advice are for people who call it themselves; its errors and warnings stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Compiling looks for CUDA, and warns of a toolkit that lies beside no device.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*deprecated")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", "Found .* module.* in eval mode at the start of training")  # frozen ones
    warnings.filterwarnings("ignore", "The `srun` command is available on your system but is not used")
    warnings.filterwarnings("ignore", ".*sync_dist=True")  # what is logged is of all processes
    warnings.filterwarnings("ignore", ".*number of training batches .* is smaller than the logging interval")
