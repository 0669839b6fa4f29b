"""`resume=PATH` and `resume=auto`: the command that resumes a run in its own folder."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from common.errors import InputError
from trainer.config.composer import Composition
from trainer.config.errors import Problem
from trainer.config.renamed import load_overrides
from trainer.config.settings import COMMAND, Setting, argument, quoted
from trainer.folders.changed_settings import changes, reason_fixed
from trainer.folders.layout import LAST, SAVED, SWEEP, checkpoints
from trainer.folders.status import STATUS, read
from trainer.search.study import other_command

PER_START = ("resume", "hydra.run.dir", "hydra.mode", "cluster")
"""Settings that hold for one start of a run and are not resumed."""


@dataclass
class ResumedCommand:
    """The settings to run with, the folder of the run that they resume, if any, and messages for the user."""

    settings: list[Setting]
    folder: Path | None = None
    messages: list[str] = field(default_factory=list)
    problems: set[Problem] = field(default_factory=set)


def resolve_resume(command: list[Setting], base: Composition, *, multirun: bool) -> ResumedCommand:
    """Replaces `resume` in the command by the settings of the run that it names; `base` is the composed command."""
    found = ResumedCommand(command)
    try:
        run, sweep, output = (Path(folder) for folder in base.folders())
    except OmegaConfBaseException:
        return found  # the check of the settings reports why
    wanted = base.config.get("resume")
    rest = [setting for setting in command if setting.key not in PER_START]
    given = any(setting.key == "hydra.run.dir" for setting in command)

    def refuse(key: str, what: str) -> ResumedCommand:
        found.problems.add(Problem(base.where(key), key, what))
        return found

    if base.config.sweep.resume is not None:  # from a file: the one of the command has been replaced
        return refuse("sweep.resume", "must be given on the command line.")
    if multirun:
        if wanted is not None:
            return refuse("resume", "resumes a single run, but this command is a sweep: use sweep.resume=FOLDER.")
        if base.config.search is not None and (sweep / SWEEP).exists():
            if (what := other_command(command, sweep / SWEEP)) is not None:
                return refuse("hydra.sweep.dir", what)
        elif any(sweep.glob(f"*/{STATUS}")):
            either = f"resume it with {argument('sweep.resume', sweep)}, or " if (sweep / SWEEP).exists() else ""
            return refuse("hydra.sweep.dir", f"{sweep} already contains a sweep: {either}choose another folder.")
        return found
    if not isinstance(wanted, str):
        # A run that ended before its first checkpoint, for example because of bad data, may be overwritten.
        if (run / LAST).exists() or (run / "metrics.json").exists():
            either = f"resume it with {argument('resume', run)}, or " if (run / LAST).exists() else ""
            return refuse("hydra.run.dir", f"{run} already contains a run: {either}choose another folder.")
        return found
    if not base.config.callbacks:
        return refuse("resume", "there are no checkpoints to resume from with callbacks=none: use callbacks=default.")
    if wanted == "auto":
        folder = run if given else newest_unfinished(output, rest)
        if folder is None or not (checkpoints(folder) and (folder / SAVED).exists()):
            where = f"{run} has no checkpoint" if given else f"no unfinished run of this command under {output}"
            found.settings = [setting for setting in command if setting.key != "resume"] + [Setting("resume=null")]
            found.messages = [f"resume: {where}: starting a new run"]
            return found
        found.messages = [f"resume: resuming {folder}"]
        wanted = str(folder)
    try:
        folder, checkpoint = find(Path(wanted))
    except InputError as error:
        return refuse("resume", str(error))
    if given and run.absolute() != folder.absolute():
        return refuse("hydra.run.dir", f"{run} is not the folder of resume={wanted}: leave it out.")
    keys = {setting.key for setting in rest}
    where = str(folder / SAVED)
    saved = [Setting(line, where) for line in saved_overrides(folder)]
    if any(setting.key == "search" for setting in saved):
        saved.append(Setting("hydra.mode=RUN", where))  # it is a single run of a search
    found.folder = folder
    if not checkpoints(folder):
        found.messages = [f"resume: {folder} has no checkpoint yet: starting from the beginning in it"]
    found.settings = [
        *(setting for setting in saved if setting.key not in keys),
        *rest,
        Setting(f"hydra.run.dir={quoted(folder)}"),
        # Folds and members resume from their own checkpoints.
        Setting("resume=null" if checkpoint is None else f"resume={quoted(checkpoint.absolute())}"),
    ]
    return found


def validate_subfolders(jobs: list[Composition]) -> Iterator[Problem]:
    """Reports jobs of a sweep that would write into the same folder."""
    folders = [job.subfolder(number) for number, job in enumerate(jobs)]
    key = "hydra.sweep.subdir"
    for folder in {folder for folder in folders if folders.count(folder) > 1}:
        yield Problem(jobs[0].where(key), key, f"several jobs would share {folder}: put ${{hydra.job.num}} in it.")


def find(path: Path) -> tuple[Path, Path | None]:
    """The run folder and the checkpoint for a path; None if the run itself has no checkpoint yet.

    Raises InputError if there is no such run.
    """
    if not path.exists():
        raise InputError(f"there is no {path}: give a run folder or a checkpoint in it.")
    if (path / SWEEP).exists():
        raise InputError(f"{path} is the folder of a sweep: resume it with {argument('sweep.resume', path)}.")
    folder = path if path.is_dir() else path.parent.parent
    checkpoint = folder / LAST if path.is_dir() else path
    if not (folder / SAVED).exists():
        raise InputError(f"{folder} is not a run folder: it has no {SAVED}.")
    if (folder / "metrics.json").exists() and not checkpoints(folder):
        raise InputError(f"{folder} has no {LAST} to resume from: start a new run in another folder.")
    return folder, checkpoint if checkpoint.exists() else None


def newest_unfinished(output: Path, settings: list[Setting]) -> Path | None:
    """The unfinished run under `output` with the same overrides and the newest checkpoint; None if there is none."""
    lines = sorted(setting.line.lstrip("+") for setting in settings if not setting.key.startswith(("hydra.", "hydra/")))
    found: dict[Path, float] = {}
    for path in output.glob(f"*/{SAVED}"):
        folder = path.parent
        times = [checkpoint.stat().st_mtime for checkpoint in checkpoints(folder)]
        status = read(folder)
        unfinished = times and status is not None and status.state in ("interrupted", "failed")
        if unfinished and sorted(line.lstrip("+") for line in saved_overrides(folder, announce=False)) == lines:
            found[folder] = max(times)
    return max(found, key=found.__getitem__, default=None)


def saved_overrides(folder: Path, *, announce: bool = True) -> list[str]:
    """The overrides that a run was started with, without those that hold for one start."""
    keys = ((line, Setting(line).key) for line in load_overrides(folder / SAVED, announce=announce))
    return [line for line, key in keys if key not in PER_START and not key.startswith("hydra.launcher")]


def describe_changes(folder: Path, composition: Composition) -> Iterator[str]:
    """Describes each setting that has changed since the run was last started, and where its new value comes from."""
    for key, change in changes(folder, composition.resolved(str(folder.absolute()))[0]):
        where = composition.where(key)
        yield f"resume: {key} {change} ({'the ' if where == COMMAND else ''}{where} wins)"


def validate_changes(folder: Path, composition: Composition) -> Iterator[Problem]:
    """Reports changed settings that would have no effect, or that would make the metrics of the run wrong."""
    for key, change in changes(folder, composition.resolved(str(folder.absolute()))[0]):
        if (reason := reason_fixed(key)) is not None:
            old = change.partition(" -> ")[0]
            what = f"was {old} when the run started, and {reason}: do not change it, or start a new run."
            yield Problem(composition.where(key), key, what)
