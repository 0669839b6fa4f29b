"""What a command does, from its arguments to its exit code; `train` is the same for Python."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from common.distributed import launched_rank
from common.errors import EXIT_CODE, InputError
from trainer.api import Result, hydra_context
from trainer.command.prepare import prepare
from trainer.config.fast_imports import fast_imports
from trainer.folders.layout import LAST, checkpoints, save_overrides, what_next
from trainer.folders.signals import Interrupted, forward_signal, watch
from trainer.folders.status import Pruned, track_status
from trainer.run import rank_worker
from trainer.search import study
from trainer.sweep import sweep

log = logging.getLogger(__name__)


def train(config: DictConfig) -> Result:
    """Trains, measures and exports; or cross-validates, or trains an ensemble, as the config says.

    `config` comes from `compose`, or from Hydra in a process that it has started. Raises InputError for data or
    settings that cannot be used, and Interrupted where a signal ended the run.
    """
    with (
        hydra_context(config) as (own, folder),
        watch.installed(),
        track_status(folder, own.monitor, own.mode) as status,
    ):

        def begun() -> None:
            save_overrides(folder, HydraConfig.get().overrides.task)
            status.before = None

        if not checkpoints(folder):  # those that there are may not fit the settings
            begun()
        result = _dispatch(own, folder, begun)
        status.value = result.value
        return result


def run_job(config: DictConfig) -> tuple[float | None, int]:
    """The monitored value and the exit code of one run that Hydra has started, or of one job of a sweep. Errors are
    logged: the next job of the sweep still runs."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        if (before := sweep.done_before(folder, config)) is not None:
            return before.value, 0
        if launched_rank() > 0:  # of a job of a sweep that Slurm starts as several processes
            return None, rank_worker.work()
        return train(config).value, 0
    except Pruned as ending:
        log.info("%s", ending)
        return None, 0
    except Interrupted as interrupted:
        of_sweep = HydraConfig.get().mode is RunMode.MULTIRUN  # the sweep says how to resume all of it
        log.warning("%s.%s", interrupted, "" if of_sweep else f" {what_next(folder)}")
        forward_signal(interrupted.number)
        raise
    except InputError as error:
        log.error("%s", error)
        return None, EXIT_CODE
    except Exception:
        log.exception("The run stopped at an error that is not a setting's.")
        return None, 1


def run_command(start: Callable[[], list[int]], arguments: Sequence[str]) -> int:
    """Checks the command, runs it by `start`, which returns the exit codes of its jobs, and returns the exit code of
    the process."""
    try:
        if launched_rank() > 0:
            return rank_worker.work(arguments)
        sys.argv[1:] = prepare(arguments)
        codes = start()
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_CODE
    except Interrupted as interrupted:
        return interrupted.exit_code
    except KeyboardInterrupt:  # before the run has begun
        print("Interrupted.", file=sys.stderr)
        return 130
    failed = [code for code in codes if code]
    return (failed[0] if len(set(failed)) == 1 else 1) if failed else 0


def conclude_sweep() -> list[int]:
    """Prints and writes the table of the sweep that this process has started, if any; returns the exit codes of the
    jobs that are not done."""
    if (started := sweep.SweepFolder.started) is None:
        return []
    folder = started.folder
    runs, missing = sweep.write_table(folder, started.jobs)
    return study.conclude(folder) if (folder / study.SAVED).exists() else sweep.conclude(folder, runs, missing)


def _dispatch(config: DictConfig, folder: Path, begun: Callable[[], None]) -> Result:
    if config.resume is None and (folder / LAST).exists():  # of a resumed sweep, or restarted by a cluster
        log.info("resume: resuming %s", folder)
        config.resume = str(folder / LAST)
    with fast_imports():  # these import torch and Lightning, which help and the check of the settings do without
        from trainer.multirun.cross_validation import cross_validate
        from trainer.multirun.ensemble import ensemble
        from trainer.run.run import run_once
    if config.cross_validate is not None:
        metrics, module = cross_validate(config, folder, begun), None
    elif config.ensemble is not None:
        metrics, module = ensemble(config, folder, begun), None
    else:
        outcome = run_once(config, folder, begun)
        metrics, module = outcome.metrics, outcome.module
    return Result(metrics, metrics[config.monitor], folder, module)
