"""`resume=PATH` and `resume=auto`: the command that goes on with a run, in the run's own folder."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.errors import InputError
from trainer.config.composer import Composition
from trainer.config.errors import Problem
from trainer.config.settings import COMMAND, Setting, argument, quoted
from trainer.folders.changed_settings import changes, fixed
from trainer.folders.layout import LAST, SAVED, SWEEP, checkpoints
from trainer.folders.status import STATUS, read
from trainer.search.study import other_command

OWN = ("resume", "hydra.run.dir", "hydra.mode", "cluster")
"""Settings of one start of a run, not of the run."""


@dataclass
class Plan:
    """The settings to run with, the folder that they go on in, if any, and what is to be said."""

    settings: list[Setting]
    folder: Path | None = None
    messages: list[str] = field(default_factory=list)
    problems: set[Problem] = field(default_factory=set)


def plan(command: list[Setting], base: Composition, *, multirun: bool) -> Plan:
    """What `resume` makes of the command; `base` is what the command composes."""
    found = Plan(command)
    try:
        run, sweep, output = (Path(folder) for folder in base.folders())
    except OmegaConfBaseException:
        return found  # The check of the settings says why.
    wanted = base.config.get("resume")
    rest = [setting for setting in command if setting.key not in OWN]
    given = any(setting.key == "hydra.run.dir" for setting in command)

    def refuse(key: str, what: str) -> Plan:
        found.problems.add(Problem(base.where(key), key, what))
        return found

    if base.config.sweep.resume is not None:  # that of the command is gone by now
        return refuse("sweep.resume", "belongs on the command line.")
    if multirun:
        if wanted is not None:
            return refuse("resume", "goes on with one run, but this is a sweep: sweep.resume=FOLDER goes on with one.")
        if base.config.search is not None and (sweep / SWEEP).exists():
            if (what := other_command(command, sweep / SWEEP)) is not None:
                return refuse("hydra.sweep.dir", what)
        elif any(sweep.glob(f"*/{STATUS}")):
            go_on = f"go on with it by {argument('sweep.resume', sweep)}, or " if (sweep / SWEEP).exists() else ""
            return refuse("hydra.sweep.dir", f"{sweep} holds a sweep already: {go_on}choose another folder.")
        return found
    if not isinstance(wanted, str):
        # A run that ended before its first checkpoint, at bad data for one, leaves nothing to lose.
        if (run / LAST).exists() or (run / "metrics.json").exists():
            either = f"go on with it by {argument('resume', run)}, or " if (run / LAST).exists() else ""
            return refuse("hydra.run.dir", f"{run} holds a run already: {either}choose another folder.")
        return found
    if not base.config.callbacks:
        return refuse("resume", "there are no checkpoints to go on from with callbacks=none: take callbacks=default.")
    if wanted == "auto":
        folder = run if given else newest_unfinished(output, rest)
        if folder is None or not (checkpoints(folder) and (folder / SAVED).exists()):
            where = f"{run} has no checkpoint" if given else f"no unfinished run of this command under {output}"
            found.settings = [setting for setting in command if setting.key != "resume"] + [Setting("resume=null")]
            found.messages = [f"resume: {where}: starting anew"]
            return found
        found.messages = [f"resume: going on with {folder}"]
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
        saved.append(Setting("hydra.mode=RUN", where))  # one of its runs
    found.folder = folder
    if not checkpoints(folder):
        found.messages = [f"resume: {folder} has no checkpoint yet: starting anew in it"]
    found.settings = [
        *(setting for setting in saved if setting.key not in keys),
        *rest,
        Setting(f"hydra.run.dir={quoted(folder)}"),
        # Folds and members go on with their own.
        Setting("resume=null" if checkpoint is None else f"resume={quoted(checkpoint.absolute())}"),
    ]
    return found


def shared_folders(jobs: list[Composition]) -> Iterator[Problem]:
    """That jobs of a sweep would write into one folder."""
    folders = [job.subfolder(number) for number, job in enumerate(jobs)]
    key = "hydra.sweep.subdir"
    for folder in {folder for folder in folders if folders.count(folder) > 1}:
        yield Problem(jobs[0].where(key), key, f"several jobs would share {folder}: put ${{hydra.job.num}} in it.")


def find(path: Path) -> tuple[Path, Path | None]:
    """The run folder and the checkpoint that a path means, None where the run has none of its own yet.

    Raises InputError where there is no such run.
    """
    if not path.exists():
        raise InputError(f"there is no {path}: give a run folder or a checkpoint in it.")
    if (path / SWEEP).exists():
        raise InputError(f"{path} is the folder of a sweep: {argument('sweep.resume', path)} goes on with it.")
    folder = path if path.is_dir() else path.parent.parent
    checkpoint = folder / LAST if path.is_dir() else path
    if not (folder / SAVED).exists():
        raise InputError(f"{folder} is no run folder: it has no {SAVED}.")
    if (folder / "metrics.json").exists() and not checkpoints(folder):
        raise InputError(f"{folder} has no {LAST} to go on from: start anew in another folder.")
    return folder, checkpoint if checkpoint.exists() else None


def newest_unfinished(output: Path, settings: list[Setting]) -> Path | None:
    """The run folder under `output` with the newest checkpoint, of the same overrides, and not at its end."""
    lines = sorted(setting.line.lstrip("+") for setting in settings if not setting.key.startswith(("hydra.", "hydra/")))
    found: dict[Path, float] = {}
    for path in output.glob(f"*/{SAVED}"):
        folder = path.parent
        times = [checkpoint.stat().st_mtime for checkpoint in checkpoints(folder)]
        status = read(folder)
        unfinished = times and status is not None and status.state in ("interrupted", "failed")
        if unfinished and sorted(line.lstrip("+") for line in saved_overrides(folder)) == lines:
            found[folder] = max(times)
    return max(found, key=found.__getitem__, default=None)


def saved_overrides(folder: Path) -> list[str]:
    """The overrides that a run was started with, without those of one start alone."""
    lines = [str(line) for line in OmegaConf.load(folder / SAVED)]
    keys = ((line, Setting(line).key) for line in lines)
    return [line for line, key in keys if key not in OWN and not key.startswith("hydra.launcher")]


def differences(folder: Path, composition: Composition) -> Iterator[str]:
    """What is not as it was when the run was last started, and who wins."""
    for key, change in changes(folder, composition.resolved(str(folder.absolute()))[0]):
        where = composition.where(key)
        yield f"resume: {key} {change} ({'the ' if where == COMMAND else ''}{where} wins)"


def refused(folder: Path, composition: Composition) -> Iterator[Problem]:
    """Changes that would not count, or that would make the run's figures wrong."""
    for key, change in changes(folder, composition.resolved(str(folder.absolute()))[0]):
        if (why := fixed(key)) is not None:
            old = change.partition(" -> ")[0]
            what = f"was {old} when the run began, and {why}: leave it, or start anew."
            yield Problem(composition.where(key), key, what)
