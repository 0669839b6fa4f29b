"""Settings: what is checked before a run, and how their nodes become objects."""

import functools
from collections.abc import Callable
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig

from datamodules.schema import TargetSpec
from models.metric_names import NAMES
from serving.errors import InputError
from trainer import cluster, processes, resume, space, sweep
from trainer.check import check
from trainer.compose import COMMAND, Composition, Setting, composer
from trainer.problems import ConfigError, Problem, did_you_mean, raise_all
from trainer.study import expanded


def prepare(arguments: list[str]) -> list[str]:
    """The arguments for Hydra. Raises one ConfigError with all that is wrong in the command and in what it composes."""
    options = get_args_parser().parse_args(arguments)
    if options.help or options.hydra_help or options.shell_completion or options.experimental_rerun:
        return arguments
    with composer(options) as composing:
        command = expanded([Setting(line) for line in options.overrides], composing)
        runs = not (options.cfg or options.info)
        of_sweep = sweep.named(command) if runs else None
        if of_sweep is not None:
            command = sweep.command_again(command, of_sweep)
        single = [setting for setting in command if not composing.sweeps(setting)]
        base = composing.compose(single)
        multirun = options.multirun or base.config.hydra.mode is RunMode.MULTIRUN
        if of_sweep is not None:
            found = resume.Plan(command, messages=[sweep.standing(of_sweep)])
        else:
            found = resume.plan(command, base, multirun=multirun) if runs else resume.Plan(command)
        jobs = composing.jobs(base, command) if multirun else [found.settings]
        compositions = [composing.compose(job) for job in jobs]
        problems = found.problems.union(*map(problems_of, compositions))
        if multirun and (here := processes.place()) is not None:
            what = f"{here.by} starts the processes of one run: a sweep starts them itself, python train.py -m ..."
            problems.add(Problem(COMMAND, "-m", what))
        if multirun and not problems:
            problems |= set(resume.shared_folders(compositions))
            sampler = base.config.search.sampler if base.config.search else None
            problems |= set(space.problems(composing.of_sweep(base, command), composing, sampler))
        if runs and not problems:
            problems |= set(cluster.problems(base, compositions))
        if found.folder is not None and not problems:
            problems = set(resume.refused(found.folder, compositions[0]))
        raise_all(problems | composing.problems)
        if found.folder is not None:
            found.messages += resume.differences(found.folder, compositions[0])
    for message in found.messages:
        print(message)
    flags = [argument for argument in arguments if argument not in options.overrides]
    return flags + [composing.spelled(setting).line for setting in found.settings]


def problems_of(composition: Composition) -> set[Problem]:
    """What is wrong in one composed config; what only repeats another wrong key is left out."""
    config, unresolved = composition.resolved("RUN")
    found = [(key, what) for key, what in check(config) if key not in unresolved]
    found += [*unresolved.items(), *composition.unknown_to_hydra()]
    # What Hydra's own files hold only repeats.
    places = {key: where for key, _ in found if "://" not in (where := composition.where(key))}
    found = [(key, what) for key, what in found if key in places]
    causes = [(key, what) for key, what in found if not (composition.references(key) - {key}) & places.keys()]
    return {Problem(places[key], key, what) for key, what in causes or found}  # A ring has no first.


def check_monitor(monitor: str, target: TargetSpec) -> None:
    """Raises ConfigError where no model logs `monitor` for this target."""
    names = ["train/loss", "val/loss", *(f"val/{name}" for name in NAMES[target.task])]
    if target.task != "regression":
        names += [f"val/f1/{name}" for name in target.classes]
    if monitor not in names:
        raise ConfigError(
            f"monitor: {monitor!r} is not logged for the target {target.name!r} ({target.task})."
            f"{did_you_mean(monitor, names)} It may be {', '.join(names)}."
        )


def instantiate(node: DictConfig | None, **arguments: Any) -> Any:
    """Builds what the node's `_target_` says, of plain Python containers; None for a null or an empty node.

    `_partial_` nodes give a function. A node without `_target_` gives a dict of what its nodes build, those that are
    null left out. What a constructor refuses is a ConfigError with the node's full key.
    """
    if not node:
        return None
    if "_target_" not in node:
        built = {str(name): instantiate(child) for name, child in node.items()}
        return {name: value for name, value in built.items() if value is not None}
    key = node._get_full_key(None)
    # The arguments are given at the call: Hydra itself would turn dataclasses among them into configs.
    build = _settings_errors(key, functools.partial(hydra.utils.instantiate, node, _convert_="all", _partial_=True))()
    build = _settings_errors(key, build)
    return build if node.get("_partial_") else build(**arguments)


def _settings_errors(key: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with the same signature, whose refusals are ConfigErrors."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        from lightning_fabric.utilities.exceptions import MisconfigurationException

        try:
            return function(*args, **kwargs)
        except (InstantiationException, MisconfigurationException, TypeError, ValueError) as error:
            cause: BaseException = error
            while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
                cause = cause.__cause__
            if isinstance(cause, InputError):
                raise cause from None
            if not isinstance(cause, InstantiationException | MisconfigurationException | TypeError | ValueError):
                raise
            message = str(cause)
            raise ConfigError(message if message.startswith(key) else f"{key}: {message}") from cause

    return call
