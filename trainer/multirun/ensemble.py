"""Ensembles: the same run from several seeds, and one artifact that averages the predictions."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytorch_lightning
from omegaconf import DictConfig
from torch import nn

import datamodules
from models.architectures.ensemble import Ensemble
from trainer.evaluation import postprocess, report
from trainer.evaluation.evaluate import measure
from trainer.folders import run_folder
from trainer.loop import trainer as loop
from trainer.loop.quiet import quiet_lightning
from trainer.multirun.child_runs import check_unchanged, child_config, child_run_context, summary
from trainer.multirun.process_pool import run_all
from trainer.run import run

log = logging.getLogger(__name__)

MEMBER_SETTINGS = {"export": None, "baselines": False}
"""The artifact and the baselines are those of the ensemble."""
QUIET = tuple(module.__name__ for module in (datamodules, run, loop, postprocess))
"""Modules whose messages each member would repeat on the console, or that do not apply to the ensemble."""


def ensemble(config: DictConfig, folder: Path, begun: Callable[[], None]) -> dict[str, float]:
    """Trains one run per seed, from `config.seed` on, in member_0, member_1 and so on, and their mean in `folder`.

    The members share rows, splits and features. Interrupted members resume, finished ones are only measured again.
    Returns the metrics of the mean of the members' predictions, and in addition the mean and the standard deviation of
    the members' metrics as `member/<metric>` and `member/<metric>/std`.
    """
    started = time.perf_counter()
    check_unchanged(config, folder, ("ensemble", *MEMBER_SETTINGS))
    run_folder.write_begun(folder, config)
    begun()
    quiet_lightning()
    datamodule = run.setup_data(config, folder)
    folders = [folder / f"member_{index}" for index in range(config.ensemble)]
    runs = {each: partial(_run_member, config, index, each) for index, each in enumerate(folders)}
    members = run_all(runs, config, forward=(log,))
    pytorch_lightning.seed_everything(config.seed, workers=True, verbose=False)
    trainer = run.build_trainer(config, folder)
    module = run.build_module(config, Ensemble([network for _, network in members]), datamodule)
    trainer.prepare(module, datamodule.head("train", datamodule.batch_size))
    metrics = {f"member/{name}": value for name, value in summary([metrics for metrics, _ in members]).items()}
    metrics |= postprocess.postprocess(trainer, module, datamodule, calibrate=config.calibrate)
    metrics |= measure(trainer, module, datamodule, test=config.test)
    return run.finalize(config, folder, run.Outcome(metrics, trainer, module, datamodule), started).metrics


def _run_member(config: DictConfig, index: int, folder: Path) -> tuple[dict[str, float], nn.Module]:
    """Returns the metrics, and the network with the best weights."""
    with child_run_context(folder), quiet_console():
        changes = {"ensemble": None, "seed": config.seed + index, **MEMBER_SETTINGS}
        outcome = run.run_once(child_config(config, folder, changes), folder, describe=False)
    log.info("%s: %s", folder.name, report.reached(outcome.metrics, config.monitor))
    return outcome.metrics, outcome.module.network


@contextmanager
def quiet_console() -> Iterator[None]:
    """Keeps messages of the modules in `QUIET` off the console, except warnings; the log file has all."""

    def is_shown(record: logging.LogRecord) -> bool:
        quiet = any(f"{record.name}.".startswith(f"{name}.") for name in QUIET)
        return record.levelno >= logging.WARNING or not quiet

    consoles = [each for each in logging.getLogger().handlers if type(each) is logging.StreamHandler]
    for console in consoles:
        console.addFilter(is_shown)
    try:
        yield
    finally:
        for console in consoles:
            console.removeFilter(is_shown)
