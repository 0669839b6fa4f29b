"""What happens to a command before Hydra runs: the settings are composed and checked, and resumed runs are found."""

from collections.abc import Sequence

from hydra.types import RunMode

from common.distributed import launch
from trainer.command import resume, resume_sweep
from trainer.command.best_trial import expand_best_trial
from trainer.config.composer import Composition, composer, parse_arguments
from trainer.config.errors import Problem, raise_all
from trainer.config.settings import COMMAND, Setting
from trainer.config.validate import check
from trainer.search import search_space
from trainer.sweep import resources


def prepare(arguments: Sequence[str]) -> list[str]:
    """The arguments for Hydra. Raises one ConfigError with all that is wrong in the command and in what it composes."""
    options = parse_arguments(arguments)
    if options.help or options.hydra_help or options.shell_completion or options.experimental_rerun:
        return list(arguments)
    with composer(options) as composing:
        command = expand_best_trial([Setting(line) for line in options.overrides], composing)
        runs = not (options.cfg or options.info)
        of_sweep = resume_sweep.named(command) if runs else None
        if of_sweep is not None:
            command = resume_sweep.command_again(command, of_sweep)
        single = [setting for setting in command if not composing.sweeps(setting)]
        base = composing.compose(single)
        multirun = options.multirun or base.config.hydra.mode is RunMode.MULTIRUN
        if of_sweep is not None:
            found = resume.Plan(command, messages=[resume_sweep.standing(of_sweep)])
        else:
            found = resume.plan(command, base, multirun=multirun) if runs else resume.Plan(command)
        jobs = composing.jobs(base, command) if multirun else [found.settings]
        compositions = [composing.compose(job) for job in jobs]
        problems = found.problems.union(*map(problems_of, compositions))
        if multirun and (here := launch()) is not None:
            what = f"{here.by} starts the processes of one run: a sweep starts them itself, python train.py -m ..."
            problems.add(Problem(COMMAND, "-m", what))
        if multirun and not problems:
            problems |= set(resume.shared_folders(compositions))
            sampler = base.config.search.sampler if base.config.search else None
            problems |= set(search_space.problems(composing.of_sweep(base, command), composing, sampler))
        if runs and not problems:
            problems |= set(resources.problems(base, compositions))
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
