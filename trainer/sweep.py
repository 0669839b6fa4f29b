"""A sweep from its beginning to its end: its folder keeps its command, by which it goes on without the jobs that are
done, and one table says what became of each."""

import logging
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from serving.errors import EXIT_CODE, InputError
from serving.whole import write_whole
from trainer import study
from trainer.compose import COMMAND, Setting, argument, quoted
from trainer.problems import Problem, raise_all
from trainer.resume import LAST, SWEEP, changes, fixed
from trainer.status import DONE, STATES, STATUS, Status, claim, read
from trainer.tables import short

log = logging.getLogger(__name__)

TABLES = ("sweep.csv", "sweep.parquet")
OWN = ("sweep.resume", "hydra.sweep.dir", "hydra.mode")
"""Settings of one start of a sweep, not of what it does."""


class Begun(Callback):
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
            Begun.held.enter_context(claim(folder))
        except InputError as error:  # of which Hydra would make a warning
            log.error("%s", error)
            sys.exit(EXIT_CODE)
        Begun.folder = folder
        given = config.hydra.overrides
        write_whole(Begun.folder / SWEEP, OmegaConf.to_yaml([*given.task, *given.hydra]).encode())
        if config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
            params = config.hydra.sweeper.params or {}
            lines = [*(f"{key}={value}" for key, value in params.items()), *given.task]
            parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(lines)
            Begun.jobs = len(BasicSweeper.split_arguments(parsed, None)[0])


def named(command: list[Setting]) -> Path | None:
    """The folder of `sweep.resume`, which Hydra itself never sees."""
    given = [setting.text for setting in command if setting.key == "sweep.resume"]
    return Path(given[-1]) if given and given[-1] != "null" else None


def command_again(command: list[Setting], folder: Path) -> list[Setting]:
    """The command that goes on with the sweep in `folder`, as it was begun. Raises ConfigError where there is none, and
    where a setting contradicts it."""
    if (what := _no_sweep(folder)) is not None:
        raise_all([Problem(COMMAND, "sweep.resume", what)])
    begun = [Setting(str(line), str(folder / SWEEP)) for line in OmegaConf.load(folder / SWEEP)]
    free = [setting for setting in command if setting.key.startswith(study.FREE)]
    raise_all(_contradictions(command, {setting.key: setting for setting in begun}, folder))
    changed = (*OWN, *(setting.key for setting in free))
    if any(setting.key in ("cluster", "hydra/launcher") for setting in free):
        changed += ("cluster", "hydra/launcher", "hydra.launcher")  # another takes other settings
    return [
        *(setting for setting in begun if not setting.key.startswith(changed)),
        *free,
        Setting("hydra.mode=MULTIRUN"),
        Setting(f"hydra.sweep.dir={quoted(folder.absolute())}"),
    ]


def _no_sweep(folder: Path) -> str | None:
    if not folder.is_dir():
        return f"there is no folder {folder}: give the folder of a sweep."
    if (folder / STATUS).exists():
        return f"{folder} is the folder of a run: {argument('resume', folder)} goes on with it."
    return None if (folder / SWEEP).exists() else f"{folder} is no folder of a sweep: it has no {SWEEP}."


def _contradictions(command: list[Setting], begun: dict[str, Setting], folder: Path) -> list[Problem]:
    problems = []
    for setting in command:
        if setting.key == "hydra.sweep.dir" and Path(setting.text).absolute() != folder.absolute():
            what = f"{setting.text} is not the folder of sweep.resume={folder}: leave it out."
            problems.append(Problem(setting.where, setting.key, what))
        same = setting.key in begun and begun[setting.key].line.lstrip("+") == setting.line.lstrip("+")
        if same or setting.key in OWN or setting.key.startswith(study.FREE):
            continue
        was = f"with {begun[setting.key].line}" if setting.key in begun else "without it"
        what = f"the sweep in {folder} was begun {was}: leave it out, or begin another sweep."
        problems.append(Problem(setting.where, setting.key, what))
    return problems


def standing(folder: Path) -> str:
    """How a sweep stands that is gone on with."""
    jobs = [status for path in folder.rglob(STATUS) if (status := read(path.parent)) is not None]
    return f"sweep: going on with {folder}: {counted(jobs) or 'no job was begun'}"


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
        if not done and (folder / LAST).exists() and (why := fixed(key)) is not None:
            raise InputError(f"{folder}: {key} {change}, but {why}. Change it back, or delete the folder.")
        log.warning("resume: %s %s%s", key, change, ", but the job was done before" if done else "")
    if not done:
        return None
    log.info("%s before: %s", status.state, short(folder))
    return status


def conclude(folder: Path, jobs: int) -> list[int]:
    """Prints the table of a sweep's jobs, writes it into its folder, and says how to go on where something is not done.
    Of `jobs` in all some may not have begun. Returns the exit codes of those that are not done."""
    from serving.write import writing
    from trainer.compare import find_runs, frame, ranked, read_run, side_by_side

    runs = ranked([read_run(each) for each in find_runs(folder)]) if any(folder.rglob(STATUS)) else []
    missing = max(jobs - len(runs), 0)
    title = f"Sweep: {counted([run.status for run in runs])}" + (f", {missing} not begun" if missing else "")
    if runs:
        print(f"\n{side_by_side(runs, title)}\n")
        for name in TABLES:
            with writing(str(folder / name)) as write:
                write(frame(runs))
        print(f"all metrics  {short(folder / TABLES[0])}, {TABLES[1]}")
    if (folder / study.SAVED).exists():
        return study.conclude(folder)
    if runs and runs[0].status.state == "done":
        print(f"best         {short(runs[0].folder)}")
    unfinished = [run.status.exit_code or 1 for run in runs if run.status.state not in DONE] + [1] * missing
    if unfinished:
        print(f"go on with   python train.py {argument('sweep.resume', short(folder))}")
    return unfinished
