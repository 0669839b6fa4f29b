"""A sweep from its beginning to its end: its folder keeps its command, by which it goes on without the jobs that are
done, and one table says what became of each."""

import logging
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.config.hydra_internals import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from common.atomic_write import atomic_write
from common.errors import EXIT_CODE, InputError
from trainer.config.settings import Setting, argument
from trainer.folders.changed_settings import changes, reason_fixed
from trainer.folders.layout import LAST, SWEEP
from trainer.folders.status import DONE, STATES, STATUS, Status, lock_folder, read
from trainer.folders.tables import short

if TYPE_CHECKING:
    from trainer.sweep.compare_runs import Run

log = logging.getLogger(__name__)

TABLES = ("sweep.csv", "sweep.parquet")


class SweepFolder(Callback):
    """Hydra calls it in the process that sweeps, whatever launches the jobs."""

    folder: ClassVar[Path | None] = None
    """Of the sweep that this process has begun."""
    jobs: ClassVar[int] = 0
    """How many it has; 0 where only its sweeper knows."""
    held: ClassVar = ExitStack()
    """The folder, to the end of the process."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            SweepFolder.held.enter_context(lock_folder(folder))
        except InputError as error:  # of which Hydra would make a warning
            log.error("%s", error)
            sys.exit(EXIT_CODE)
        SweepFolder.folder = folder
        given = config.hydra.overrides
        atomic_write(SweepFolder.folder / SWEEP, OmegaConf.to_yaml([*given.task, *given.hydra]).encode())
        if config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
            params = config.hydra.sweeper.params or {}
            lines = [*(f"{key}={value}" for key, value in params.items()), *given.task]
            parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(lines)
            SweepFolder.jobs = len(BasicSweeper.split_arguments(parsed, None)[0])


def counted(runs: Iterable[Status]) -> str:
    """How many stand how, in words."""
    states = Counter[str](run.state for run in runs)
    return ", ".join(f"{states[state]} {state}" for state in STATES if states[state])


def done_before(folder: Path, config: DictConfig) -> Status | None:
    """How this job of a sweep was done, where it was, so that it is left out; says what it was begun with that the
    settings now have otherwise. Raises InputError where the folder holds another job, or one that cannot go on so."""
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
                f"{folder} holds another job ({key} {change}): the file that says what is swept has changed since."
                " Change it back, or begin another sweep."
            )
        if not done and (folder / LAST).exists() and (why := reason_fixed(key)) is not None:
            raise InputError(f"{folder}: {key} {change}, but {why}. Change it back, or delete the folder.")
        log.warning("resume: %s %s%s", key, change, ", but the job was done before" if done else "")
    if not done:
        return None
    log.info("%s before: %s", status.state, short(folder))
    return status


def write_table(folder: Path, jobs: int) -> "tuple[list[Run], int]":
    """Prints the table of a sweep's jobs, writes it into its folder, and returns the jobs and how many of `jobs` have
    not begun."""
    from inference.writers import writing
    from trainer.sweep.compare_runs import find_runs, frame, ranked, read_run, side_by_side

    runs = ranked([read_run(each) for each in find_runs(folder)]) if any(folder.rglob(STATUS)) else []
    missing = max(jobs - len(runs), 0)
    title = f"Sweep: {counted([run.status for run in runs])}" + (f", {missing} not begun" if missing else "")
    if runs:
        print(f"\n{side_by_side(runs, title)}\n")
        for name in TABLES:
            with writing(str(folder / name)) as write:
                write(frame(runs))
        print(f"all metrics  {short(folder / TABLES[0])}, {TABLES[1]}")
    return runs, missing


def conclude(folder: Path, runs: "list[Run]", missing: int) -> list[int]:
    """Prints the best job, and how to resume the sweep where some jobs are not done. Returns the exit codes of those,
    1 for each of the `missing` ones."""
    if runs and runs[0].status.state == "done":
        print(f"best         {short(runs[0].folder)}")
    unfinished = [run.status.exit_code or 1 for run in runs if run.status.state not in DONE] + [1] * missing
    if unfinished:
        print(f"go on with   python train.py {argument('sweep.resume', short(folder))}")
    return unfinished
