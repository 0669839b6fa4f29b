"""An ensemble: the same run from several seeds, and one artefact that averages their answers."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from models.ensemble import Ensemble
from trainer import folder as run_folder
from trainer import report
from trainer.run import Outcome, build_trainer, carry_out, conclude, measure, supervise
from trainer.settle import settle
from trainer.several import inside, own_config, summary

log = logging.getLogger(__name__)

OF_A_RUN = ("trainer.run", "trainer.loop", "trainer.settle")
"""Loggers of what matters of one run alone: thresholds and temperatures of members are settled anew for their mean."""


def ensemble(config: DictConfig, folder: Path) -> dict[str, float]:
    """A run for each seed from `config.seed` on, in member_0, member_1 and so on, then their mean in `folder`.

    The members have the same rows in the same splits, and one set of features. A run that was broken off goes on, one
    that is done is measured again. Returns the metrics of the mean; beside them `member/<metric>` is the mean of the
    members, `member/<metric>/std` their deviation.
    """
    started = time.perf_counter()
    run_folder.write_config(folder, config)
    run_folder.write_environment(folder)
    members: list[Outcome] = []
    for index in range(config.ensemble):
        own_folder = folder / f"member_{index}"
        with inside(own_folder), quiet_console():
            # The artefact is made once, of all; the linear model is the same beside each.
            changes = {"ensemble": None, "seed": config.seed + index, "export": None, "baselines": False}
            own = own_config(config, own_folder, changes)
            own_folder.mkdir(exist_ok=True)
            members.append(carry_out(own, own_folder, describe=index == 0))
        metrics = members[-1].metrics
        log.info("%s: %s %.5g; %s", own_folder.name, config.monitor, metrics[config.monitor], report.trained(metrics))
    datamodule, trainer = members[0].datamodule, build_trainer(config, folder)
    module = supervise(config, Ensemble([member.module.network for member in members]), datamodule)
    metrics = {f"member/{name}": value for name, value in summary([member.metrics for member in members]).items()}
    metrics |= settle(trainer, module, datamodule, calibrate=config.calibrate)
    metrics |= measure(trainer, module, datamodule, test=config.test)
    return conclude(config, folder, Outcome(metrics, trainer, module, datamodule), started).metrics


@contextmanager
def quiet_console() -> Iterator[None]:
    """What the loggers of a run say goes to the log file alone; warnings come through."""

    def matters(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name not in OF_A_RUN

    consoles = [each for each in logging.getLogger().handlers if type(each) is logging.StreamHandler]
    for console in consoles:
        console.addFilter(matters)
    try:
        yield
    finally:
        for console in consoles:
            console.removeFilter(matters)
