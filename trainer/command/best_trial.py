"""`experiment=best study=DIR`: replaced by the settings of the best trial of a study."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from trainer.config.composer import Composer
from trainer.config.errors import raise_all
from trainer.config.renamed import load_config, rename_override
from trainer.config.settings import Setting, argument, leaves
from trainer.search.study import (
    OF_SEARCH,
    SAVED,
    TRIAL,
    best_trials,
    counts,
    format_values,
    objectives,
    open_study,
    problem,
    storage_of,
)

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


def expand_best_trial(command: list[Setting], composing: Composer) -> list[Setting]:
    """The command with `experiment=best study=DIR` replaced by the settings of the best trial.

    `study` is the folder of a search, or of one of its trials. Other settings of the command take precedence. Raises
    ConfigError if the folder has no search, or if the search has no best trial.
    """
    wanted = any(setting.line == "experiment=best" for setting in command)
    given = [setting.text for setting in command if setting.key == "study"]
    if not wanted and not given:
        return command
    if not given:
        raise_all([problem("experiment", "best needs the folder of a search: study=DIR.")])
    if not wanted:
        raise_all([problem("study", "is used only by experiment=best, which retrains the best trial: add it.")])
    rest = [setting for setting in command if setting.line != "experiment=best" and setting.key != "study"]
    keys = {setting.key for setting in rest}
    return [*(each for each in _best(Path(given[0]), composing) if each.key not in keys), *rest]


def _best(path: Path, composing: Composer) -> list[Setting]:
    """The settings of a trial, without those of the search and of the place where it ran."""
    number = path.name.removeprefix(TRIAL) if path.name.startswith(TRIAL) else None
    folder = path if number is None else path.parent
    if not (folder / SAVED).exists():
        raise_all([problem("study", f"{folder} is not the folder of a search: it has no {SAVED}.")])
    config: Any = load_config(folder / SAVED)
    study = open_study(storage_of(config, folder), config.search.study)
    trial = _select(study, folder, number, objectives(config))
    command = [Setting(line, str(folder)) for line in config.hydra.overrides.task]
    values = [Setting(rename_override(f"{key}={value}"), str(folder)) for key, value in trial.params.items()]
    swept = [value.key for value in values]
    excluded = [*OF_SEARCH, *swept]
    kept = [each for each in command if each.key not in swept and not _is_below(each.key, OF_SEARCH)]
    # Choices and settings that search=NAME makes in addition to the search, such as a model.
    plain = composing.compose(kept).config.hydra.runtime.choices
    chosen = [
        Setting(f"{group}={choice}", str(folder))
        for group, choice in config.hydra.runtime.choices.items()
        if plain.get(group) != choice and not _is_below(group, excluded)
    ]
    now = dict(leaves(OmegaConf.to_container(composing.compose([*chosen, *kept]).config)))
    others = [
        Setting(f"{key}={json.dumps(value, ensure_ascii=False)}", str(folder))
        for key, value in leaves(OmegaConf.to_container(config))
        if (key not in now or now[key] != value) and not _is_below(key, excluded)
    ]
    return [*chosen, *kept, *others, *values]


def _is_below(key: str, nodes: Sequence[str]) -> bool:
    """Returns whether a key is one of these nodes or groups, or below one."""
    return any(key == node or key.startswith((f"{node}.", f"{node}/")) for node in nodes)


def _select(study: "Study", folder: Path, number: str | None, names: Sequence[str]) -> "FrozenTrial":
    """The trial of this number, or the best one if it is None. Raises ConfigError if there is none, or several."""
    from optuna.trial import TrialState

    if number is not None:
        found = [trial for trial in study.trials if str(trial.number) == number and trial.state == TrialState.COMPLETE]
        if not found:
            raise_all([problem("study", f"{folder} has no completed trial {number}.")])
        return found[0]
    best = best_trials(study)
    if not best:
        raise_all([problem("study", f"{folder} has no completed trial ({counts(study) or 'none was started'}).")])
    if len(best) > 1:
        lines = [
            f"{argument('study', folder / f'{TRIAL}{trial.number}')}  {format_values(trial, names)}" for trial in best
        ]
        what = f"{len(best)} trials are best: none of them is better in all of {', '.join(names)}. Choose one:"
        raise_all([problem("study", "\n    ".join([what, *lines]))])
    return best[0]
