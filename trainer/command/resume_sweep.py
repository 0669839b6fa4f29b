"""`sweep.resume=DIR`: the command that resumes a sweep in its own folder."""

from pathlib import Path

from trainer.config.errors import Problem, raise_all
from trainer.config.renamed import load_overrides
from trainer.config.settings import COMMAND, Setting, argument, quoted
from trainer.folders.layout import SWEEP
from trainer.folders.status import STATUS, read
from trainer.search import study
from trainer.sweep.sweep import count_states

PER_START = ("sweep.resume", "hydra.sweep.dir", "hydra.mode")
"""Settings that hold for one start of a sweep and are not resumed."""


def find_folder(command: list[Setting]) -> Path | None:
    """The folder in `sweep.resume`, a setting that is replaced before Hydra runs."""
    given = [setting.text for setting in command if setting.key == "sweep.resume"]
    return Path(given[-1]) if given and given[-1] != "null" else None


def resumed_command(command: list[Setting], folder: Path) -> list[Setting]:
    """The command that resumes the sweep in `folder`: its first command and the settings that may change.

    Raises ConfigError if there is no sweep, or if a setting contradicts its first command.
    """
    if (what := _no_sweep(folder)) is not None:
        raise_all([Problem(COMMAND, "sweep.resume", what)])
    first = [Setting(line, str(folder / SWEEP)) for line in load_overrides(folder / SWEEP)]
    free = [setting for setting in command if setting.key.startswith(study.FREE)]
    raise_all(_contradictions(command, {setting.key: setting for setting in first}, folder))
    changed = (*PER_START, *(setting.key for setting in free))
    if any(setting.key in ("cluster", "hydra/launcher") for setting in free):
        changed += ("cluster", "hydra/launcher", "hydra.launcher")  # another launcher has other settings
    return [
        *(setting for setting in first if not setting.key.startswith(changed)),
        *free,
        Setting("hydra.mode=MULTIRUN"),
        Setting(f"hydra.sweep.dir={quoted(folder.absolute())}"),
    ]


def _no_sweep(folder: Path) -> str | None:
    if not folder.is_dir():
        return f"there is no folder {folder}: give the folder of a sweep."
    if (folder / STATUS).exists():
        return f"{folder} is the folder of a run: resume it with {argument('resume', folder)}."
    return None if (folder / SWEEP).exists() else f"{folder} is not the folder of a sweep: it has no {SWEEP}."


def _contradictions(command: list[Setting], first: dict[str, Setting], folder: Path) -> list[Problem]:
    problems = []
    for setting in command:
        if setting.key == "hydra.sweep.dir" and Path(setting.text).absolute() != folder.absolute():
            what = f"{setting.text} is not the folder of sweep.resume={folder}: leave it out."
            problems.append(Problem(setting.where, setting.key, what))
        same = setting.key in first and first[setting.key].line.lstrip("+") == setting.line.lstrip("+")
        if same or setting.key in PER_START or setting.key.startswith(study.FREE):
            continue
        how = f"with {first[setting.key].line}" if setting.key in first else "without it"
        what = f"the sweep in {folder} was started {how}: leave it out, or start another sweep."
        problems.append(Problem(setting.where, setting.key, what))
    return problems


def progress(folder: Path) -> str:
    """Progress of the sweep that is resumed, as a message."""
    jobs = [status for path in folder.rglob(STATUS) if (status := read(path.parent)) is not None]
    return f"sweep: resuming {folder}: {count_states(jobs) or 'no job was started'}"
