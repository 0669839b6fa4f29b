"""`sweep.resume=DIR`: the command that resumes a sweep in its own folder."""

from pathlib import Path

from omegaconf import OmegaConf

from trainer.config.errors import Problem, raise_all
from trainer.config.settings import COMMAND, Setting, argument, quoted
from trainer.folders.layout import SWEEP
from trainer.folders.status import STATUS, read
from trainer.search import study
from trainer.sweep.sweep import counted

OWN = ("sweep.resume", "hydra.sweep.dir", "hydra.mode")
"""Settings of one start of a sweep, not of what it does."""


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
