"""Checks a command before Hydra runs it, and replaces resume=..., sweep.resume=... and experiment=best."""

from collections.abc import Sequence

from hydra.types import RunMode

from common.distributed import launch
from trainer.command import resume, resume_sweep
from trainer.command.best_trial import expand_best_trial
from trainer.config.composer import Composition, composer, parse_arguments
from trainer.config.errors import Problem, raise_all
from trainer.config.renamed import rename_override
from trainer.config.settings import COMMAND, Setting
from trainer.config.validate import validate_config
from trainer.search import search_space
from trainer.sweep import resources


def prepare(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments for Hydra. Raises one ConfigError with all mistakes in the command and in its config."""
    options = parse_arguments(arguments)
    if options.help or options.hydra_help or options.shell_completion or options.experimental_rerun:
        return list(arguments)
    with composer(options) as composing:
        command = [Setting(rename_override(line, COMMAND)) for line in options.overrides]
        command = expand_best_trial(command, composing)
        will_run = not (options.cfg or options.info)
        sweep = resume_sweep.find_folder(command) if will_run else None
        if sweep is not None:
            command = resume_sweep.resumed_command(command, sweep)
        single = [setting for setting in command if not composing.is_sweep(setting)]
        base = composing.compose(single)
        multirun = options.multirun or base.config.hydra.mode is RunMode.MULTIRUN
        if sweep is not None:
            found = resume.ResumedCommand(command, messages=[resume_sweep.progress(sweep)])
        elif will_run:
            found = resume.resolve_resume(command, base, multirun=multirun)
        else:
            found = resume.ResumedCommand(command)
        jobs = composing.jobs(base, command) if multirun else [found.settings]
        compositions = [composing.compose(job) for job in jobs]
        problems = found.problems.union(*map(find_problems, compositions))
        if multirun and (here := launch()) is not None:
            what = f"{here.by} starts the processes of a single run: start a sweep with python train.py -m ..."
            problems.add(Problem(COMMAND, "-m", what))
        if multirun and not problems:
            problems |= set(resume.validate_subfolders(compositions))
            sampler = base.config.search.sampler if base.config.search else None
            swept = composing.sweep_settings(base, command)
            problems |= set(search_space.validate_search_space(swept, composing, sampler))
        if will_run and not problems:
            problems |= set(resources.validate_resources(base, compositions))
        if found.folder is not None and not problems:
            problems = set(resume.validate_changes(found.folder, compositions[0]))
        raise_all(problems | composing.problems)
        if found.folder is not None:
            found.messages += resume.describe_changes(found.folder, compositions[0])
    for message in found.messages:
        print(message)
    flags = [argument for argument in arguments if argument not in options.overrides]
    return flags + [composing.with_prefix(setting).line for setting in found.settings]


def find_problems(composition: Composition) -> set[Problem]:
    """The mistakes in one composed config, without those that only follow from another one."""
    config, unresolved = composition.resolved("RUN")
    found = [(key, what) for key, what in validate_config(config) if key not in unresolved]
    found += [*unresolved.items(), *composition.unknown_to_hydra()]
    # Mistakes reported for Hydra's own files only repeat others.
    places = {key: where for key, _ in found if "://" not in (where := composition.where(key))}
    found = [(key, what) for key, what in found if key in places]
    causes = [(key, what) for key, what in found if not (composition.references(key) - {key}) & places.keys()]
    return {Problem(places[key], key, what) for key, what in causes or found}  # a cycle of references has no cause
