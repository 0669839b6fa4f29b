"""Optuna studies: storage, samplers, best trials, and the summary at the end of a search."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from common.errors import InputError
from trainer.config.errors import Problem
from trainer.config.renamed import load_overrides
from trainer.config.settings import Setting, argument
from trainer.folders import status
from trainer.folders.tables import short

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

SAVED = "search.yaml"
"""File with all settings of a search, in its folder."""
JOURNAL = "study.journal"
TRIAL = "trial_"
"""Prefix of a trial's folder, followed by its number; also in hydra.sweep.subdir of a search."""
FREE = (
    "search.n_trials",
    "search.n_jobs",
    "hydra.sweep.dir",
    "hydra.mode",
    "hydra.launcher",
    "hydra/launcher",
    "cluster",
)
"""Key prefixes of settings that may change when a search is resumed."""
OF_SEARCH = ("search", "callbacks.pruning", "study", "cluster", "hydra")
"""Settings of the search that are not used to retrain a trial."""
STARTUP, WARMUP = 5, 5
"""Settings of the median pruner: trials that complete before it prunes, and first epochs that it ignores."""


def open_study(
    storage: str,
    name: str,
    *,
    pruner: str = "none",
    epochs: int | None = None,
    better: Sequence[str] | None = None,
    new: bool = False,
) -> "Study":
    """Opens the study of this name in a file or a database; creates it if there is none and `better`, min or max for
    each objective, is given.

    `epochs` is the maximum number of epochs of a trial. Raises InputError if the storage cannot be used, if it has no
    such study, or if `new` is true and it has one.
    """
    import optuna  # here, because only a search waits for Optuna
    from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.study import StudyDirection
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    chosen: BasePruner = NopPruner()
    if pruner == "median":
        chosen = MedianPruner(STARTUP, WARMUP)
    elif pruner == "hyperband":
        chosen = HyperbandPruner(max_resource="auto" if epochs in (None, -1) else epochs)
    try:
        place = storage if "://" in storage else JournalStorage(JournalFileBackend(storage))
        if better is None:
            return optuna.load_study(study_name=name, storage=place, pruner=chosen)
        directions = [StudyDirection.MINIMIZE if each == "min" else StudyDirection.MAXIMIZE for each in better]
        return optuna.create_study(
            study_name=name, storage=place, pruner=chosen, directions=directions, load_if_exists=not new
        )
    except optuna.exceptions.DuplicatedStudyError as error:
        raise InputError(
            f"{storage} already has a study {name} of another search: choose another hydra.sweep.dir, whose last part"
            " is the name of the study."
        ) from error
    except KeyError as error:
        raise InputError(f"{storage} has no study {name}.") from error
    except ImportError as error:
        raise InputError(f"search.storage={storage} needs a driver: {error.__cause__ or error}.") from error
    except (SQLAlchemyError, ValueError, OSError) as error:
        raise InputError(f"search.storage={storage} cannot be used: {str(error).splitlines()[0]}") from error


def sampler(name: str, seed: int, trials: int) -> "BaseSampler":
    """Returns the sampler of this name. Its seed depends on the number of `trials`, so that a resumed search does not
    draw the same values again."""
    from optuna.samplers import CmaEsSampler, RandomSampler, TPESampler  # as above

    kind: Any = {"tpe": TPESampler, "cmaes": CmaEsSampler}.get(name, RandomSampler)
    chosen: BaseSampler = kind(seed=(seed + trials) % 2**32)
    return chosen


def storage_of(config: DictConfig, folder: Path) -> str:
    """Storage of the study of a search in `folder`: a file, or the URL of a database."""
    storage = config.search.storage
    return str((folder / JOURNAL).absolute()) if storage is None else str(storage)


def best_trials(study: "Study") -> list["FrozenTrial"]:
    """Returns the best trial, or the Pareto front of several objectives; empty if no trial is complete."""
    best = sorted(study.best_trials, key=lambda trial: trial.number)
    return best[:1] if len(study.directions) == 1 else best


def objectives(config: DictConfig) -> list[str]:
    """Names of the objectives of a search, the monitor first."""
    return [config.monitor, *config.search.objectives]


def counts(study: "Study") -> str:
    """Number of trials in each state, such as "3 completed, 1 failed"."""
    words = {
        "COMPLETE": "completed",
        "PRUNED": "pruned",
        "FAIL": "failed",
        "RUNNING": "interrupted",
        "WAITING": "waiting",
    }
    states = Counter(trial.state.name for trial in study.trials)
    return ", ".join(f"{states[name]} {word}" for name, word in words.items() if states[name])


def format_values(trial: "FrozenTrial", names: Sequence[str]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, trial.values or (), strict=False))


def problem(key: str, what: str) -> Problem:
    return Problem("command line", key, what)


def conclude(folder: Path) -> list[int]:
    """Prints the best trials of the search in `folder` and writes its plots; prints how to resume it if trials are
    missing. Returns the exit codes of the trials if the search failed."""
    from trainer.search.plots import plot_study

    config: Any = OmegaConf.load(folder / SAVED)
    study, names, where = open_study(storage_of(config, folder), config.search.study), objectives(config), short(folder)
    best = best_trials(study)
    print(f"trials       {counts(study) or 'none'}")
    if sum(trial.state.is_finished() for trial in study.trials) < config.search.n_trials:
        print(f"resume with  python train.py {argument('sweep.resume', where)}")
        return [1]
    if not best:
        print("no trial was completed: see the messages above, or train.log of each trial")
        runs = [status.read(folder / f"{TRIAL}{trial.number}") for trial in study.trials]
        return [1 if run is None else run.exit_code or 1 for run in runs]
    for trial in best:
        settings = ", ".join(f"{key}={_shown(value)}" for key, value in trial.params.items())
        print(f"best         trial {trial.number}: {format_values(trial, names)}, with {settings}")
    print(f"plots        {where}: {', '.join(plot_study(study, folder, names))}")
    one = where if len(best) == 1 else where / f"{TRIAL}{best[0].number}"
    print(f"retrain it   python train.py experiment=best {argument('study', one)}")
    return []


def other_command(command: list[Setting], begun: Path) -> str | None:
    """Compares the command with the one that started the search; returns a message if they differ."""
    then, now = (
        {setting.line.lstrip("+") for setting in settings if not setting.key.startswith(FREE)}
        for settings in ([Setting(line) for line in load_overrides(begun)], command)
    )
    if then == now:
        return None
    differing = [f"it had {line}" for line in sorted(then - now)] + [f"not {line}" for line in sorted(now - then)]
    return (
        f"{begun.parent} contains a search that was started by another command: {', '.join(differing)}. Use the same"
        " command, or choose another folder."
    )


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
