"""The folder of a sweep: it keeps the command, so that the sweep can be resumed without its finished jobs, and gets a
table of all jobs."""

import logging
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from common.atomic_write import atomic_write
from common.errors import EXIT_CODE, InputError
from trainer.config.hydra_internals import BasicSweeper
from trainer.config.settings import Setting, argument
from trainer.folders.changed_settings import changes, reason_fixed
from trainer.folders.layout import LAST, SWEEP
from trainer.folders.status import DONE, STATES, STATUS, Status, lock_folder, read
from trainer.folders.tables import short

if TYPE_CHECKING:
    from trainer.sweep.compare_runs import Run

log = logging.getLogger(__name__)

TABLES = ("sweep.csv", "sweep.parquet")


@dataclass(frozen=True)
class Sweep:
    """A sweep that this process has started. `jobs` is their number, 0 if only its sweeper knows it; `lock` holds the
    folder until the process ends."""

    folder: Path
    jobs: int
    lock: ExitStack


class SweepFolder(Callback):
    """Hydra callback that locks the folder of a sweep and keeps the command in it. Hydra calls it in the process of the
    sweep, whatever launches the jobs."""

    started: ClassVar[Sweep | None] = None
    """The sweep of this process: Hydra keeps no reference to its callbacks, and may end by an exception."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        lock, jobs = ExitStack(), 0
        try:
            lock.enter_context(lock_folder(folder))
        except InputError as error:  # Hydra would turn it into a warning
            log.error("%s", error)
            sys.exit(EXIT_CODE)
        given = config.hydra.overrides
        atomic_write(folder / SWEEP, OmegaConf.to_yaml([*given.task, *given.hydra]).encode())
        if config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
            params = config.hydra.sweeper.params or {}
            lines = [*(f"{key}={value}" for key, value in params.items()), *given.task]
            parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(lines)
            jobs = len(BasicSweeper.split_arguments(parsed, None)[0])
        SweepFolder.started = Sweep(folder, jobs, lock)


def count_states(runs: Iterable[Status]) -> str:
    """Number of runs in each state, such as "3 done, 1 failed"."""
    states = Counter[str](run.state for run in runs)
    return ", ".join(f"{states[state]} {state}" for state in STATES if states[state])


def done_before(folder: Path, config: DictConfig) -> Status | None:
    """Returns the status of this job of a sweep if it is already done, so that it can be skipped, and logs the settings
    that have changed. Raises InputError if the folder has another job, or one that cannot resume with a change."""
    hydra = HydraConfig.get()
    status = read(folder) if hydra.mode is RunMode.MULTIRUN else None
    if status is None or not (folder / "config.yaml").exists():
        return None
    plain: Any = OmegaConf.to_container(config, resolve=True)
    done = status.state in DONE
    own = {Setting(line).key for line in hydra.overrides.task}
    for key, change in changes(folder, plain):
        if key in own:
            raise InputError(
                f"{folder} contains another job ({key} {change}): the config file with the swept settings has changed."
                " Restore it, or start another sweep."
            )
        if not done and (folder / LAST).exists() and (why := reason_fixed(key)) is not None:
            raise InputError(f"{folder}: {key} {change}, but {why}. Restore it, or delete the folder.")
        log.warning("resume: %s %s%s", key, change, ", but the job is already done" if done else "")
    if not done:
        return None
    log.info("already %s: %s", status.state, short(folder))
    return status


def write_table(folder: Path, jobs: int) -> "tuple[list[Run], int]":
    """Prints and writes the table of a sweep. Returns its runs, and how many of its `jobs` were not started."""
    from inference.writers import writing  # here, because it imports Polars, which only sweeps need
    from trainer.sweep.compare_runs import find_runs, frame, ranked, read_run, side_by_side

    runs = ranked([read_run(each) for each in find_runs(folder)]) if any(folder.rglob(STATUS)) else []
    missing = max(jobs - len(runs), 0)
    title = f"Sweep: {count_states([run.status for run in runs])}" + (f", {missing} not started" if missing else "")
    if runs:
        print(f"\n{side_by_side(runs, title)}\n")
        for name in TABLES:
            with writing(str(folder / name)) as write:
                write(frame(runs))
        print(f"all metrics  {short(folder / TABLES[0])}, {TABLES[1]}")
    return runs, missing


def conclude(folder: Path, runs: "list[Run]", missing: int) -> list[int]:
    """Prints the best job, and how to resume the sweep if some jobs are not done. Returns the exit codes of those, 1
    for each of the `missing` ones."""
    if runs and runs[0].status.state == "done":
        print(f"best         {short(runs[0].folder)}")
    unfinished = [run.status.exit_code or 1 for run in runs if run.status.state not in DONE] + [1] * missing
    if unfinished:
        print(f"resume with  python train.py {argument('sweep.resume', short(folder))}")
    return unfinished
