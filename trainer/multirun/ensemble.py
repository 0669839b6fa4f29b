"""An ensemble: the same run from several seeds, and one artefact that averages their answers."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytorch_lightning
from omegaconf import DictConfig
from torch import nn

from models.architectures.ensemble import Ensemble
from trainer.evaluation import report
from trainer.evaluation.postprocess import postprocess
from trainer.folders import run_folder
from trainer.multirun.child_runs import check_begun, child_config, child_run_context, summary
from trainer.multirun.process_pool import run_all
from trainer.run.run import (
    Outcome,
    build_module,
    build_trainer,
    finalize,
    measure,
    quiet_lightning,
    run_once,
    setup_data,
)

log = logging.getLogger(__name__)

NOT_OF_MEMBERS = {"export": None, "baselines": False}
"""The artefact is made once, of all; the linear model is the same beside each."""
OF_A_RUN = ("datamodules.", "trainer.run.run", "trainer.loop.trainer", "trainer.evaluation.postprocess")
"""Loggers that members repeat, or that matter of one run alone: temperatures are settled anew for their mean."""


def ensemble(config: DictConfig, folder: Path, begun: Callable[[], None]) -> dict[str, float]:
    """A run for each seed from `config.seed` on, in member_0, member_1 and so on, then their mean in `folder`.

    The members have the same rows in the same splits, and one set of features. A run that was broken off goes on, one
    that is done is measured again. Returns the metrics of the mean; beside them `member/<metric>` is the mean of the
    members, `member/<metric>/std` their deviation.
    """
    started = time.perf_counter()
    check_begun(config, folder, ("ensemble", *NOT_OF_MEMBERS))
    run_folder.write_begun(folder, config)
    begun()
    quiet_lightning()
    datamodule = setup_data(config, folder)
    folders = [folder / f"member_{index}" for index in range(config.ensemble)]
    runs = {each: partial(_carry_out_member, config, index, each) for index, each in enumerate(folders)}
    members = run_all(runs, config)
    pytorch_lightning.seed_everything(config.seed, workers=True, verbose=False)
    trainer = build_trainer(config, folder)
    module = build_module(config, Ensemble([network for _, network in members]), datamodule)
    trainer.prepare(module, datamodule.head("train", datamodule.batch_size))
    metrics = {f"member/{name}": value for name, value in summary([metrics for metrics, _ in members]).items()}
    metrics |= postprocess(trainer, module, datamodule, calibrate=config.calibrate)
    metrics |= measure(trainer, module, datamodule, test=config.test)
    return finalize(config, folder, Outcome(metrics, trainer, module, datamodule), started).metrics


def _carry_out_member(config: DictConfig, index: int, folder: Path) -> tuple[dict[str, float], nn.Module]:
    """Its metrics, and its network with the best weights."""
    with child_run_context(folder), quiet_console():
        changes = {"ensemble": None, "seed": config.seed + index, **NOT_OF_MEMBERS}
        outcome = run_once(child_config(config, folder, changes), folder, describe=False)
    log.info("%s: %s", folder.name, report.reached(outcome.metrics, config.monitor))
    return outcome.metrics, outcome.module.network


@contextmanager
def quiet_console() -> Iterator[None]:
    """What the loggers of a run say goes to the log file alone; warnings come through."""

    def matters(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or not record.name.startswith(OF_A_RUN)

    consoles = [each for each in logging.getLogger().handlers if type(each) is logging.StreamHandler]
    for console in consoles:
        console.addFilter(matters)
    try:
        yield
    finally:
        for console in consoles:
            console.removeFilter(matters)
