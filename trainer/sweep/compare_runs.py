"""Comparison of runs: state, differing settings and metrics, read from the run folders.

The runs may come from other processes and machines. Neither torch nor Lightning is imported.
"""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from common.errors import InputError
from trainer.config.renamed import rename_config, rename_override
from trainer.config.settings import leaves
from trainer.config.signatures import show
from trainer.folders.status import STATES, STATUS, Status, read
from trainer.folders.tables import render, short, table

if TYPE_CHECKING:
    import polars as pl

OWN = ("resume", "search.trial", "search.n_trials", "search.n_jobs")
"""Settings of a single start of a run, which are not compared."""
HEADLINE = ("accuracy", "auroc", "log_loss", "rmse", "r2")
"""Metrics shown in the table, from the test split if it was measured."""
MAX_SETTINGS = 6
"""Maximum number of settings in the table; the files have all that differ."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, if PyYAML was built with it


@dataclass(frozen=True)
class Run:
    """Contents of a run folder. `number`: of the job in its sweep; `settings`: by full key, with interpolations
    unresolved; `choices`: the option of each group, such as model; `overrides`: of the command."""

    folder: Path
    number: int | None
    status: Status
    settings: dict[str, Any]
    choices: dict[str, Any]
    overrides: list[str]
    metrics: dict[str, float | None]


def find_runs(path: Path) -> list[Path]:
    """Returns the path if it is a run folder, else the run folders below it. Raises InputError if there are none."""
    if not path.is_dir():
        raise InputError(f"there is no folder {path}: give run folders, or folders of runs such as a sweep's.")
    if (path / STATUS).exists():
        return [path]
    found = sorted(each.parent for each in path.rglob(STATUS))
    if not found:
        raise InputError(f"{path} contains no run: neither it nor a folder below it has a {STATUS}.")
    return found


def read_run(folder: Path) -> Run:
    """Reads a run folder. Raises InputError if it has no readable status."""
    status = read(folder)
    if status is None:
        raise InputError(f"{folder} is not a run folder: it has no {STATUS}.")
    hydra = _load(folder / ".hydra" / "hydra.yaml").get("hydra", {})
    number = hydra.get("job", {}).get("num")
    path, config = folder / "metrics.json", folder / ".hydra" / "config.yaml"
    return Run(
        folder=folder,
        number=number if isinstance(number, int) else None,  # "???" if the run is not a job of a sweep
        status=status,
        settings=dict(leaves(rename_config(_load(config), str(config)))),
        choices={name: value for name, value in hydra.get("runtime", {}).get("choices", {}).items() if "/" not in name},
        overrides=[
            rename_override(line) for line in hydra.get("overrides", {}).get("task", []) if _key(line) not in OWN
        ],
        metrics=json.loads(path.read_text()) if path.exists() else {},
    )


def ranked(runs: Sequence[Run]) -> list[Run]:
    """Sorts the runs by state, and within a state by their monitored value, the best first and those without one last.
    The values are ignored if the monitors differ."""
    same = len({(run.status.monitor, run.status.mode) for run in runs}) == 1

    def rank(run: Run) -> tuple[int, bool, float]:
        value = run.status.value
        if not same or value is None:
            return STATES.index(run.status.state), True, 0.0
        return STATES.index(run.status.state), False, value if run.status.mode == "min" else -value

    return sorted(runs, key=rank)


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns the settings that differ between the runs: the key, and the value of each run, None if it has none.

    If the option of a group differs, such as model, its other settings are left out, except those given in a command.
    """
    groups = {
        name: values
        for name in dict.fromkeys(name for run in runs for name in run.choices)
        if _differ(values := [run.choices.get(name) for run in runs])
    }
    given = {_key(line) for run in runs for line in run.overrides}
    found = dict(groups)
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        values = [run.settings.get(key) for run in runs]
        follows = key.partition(".")[0] in groups and key not in given
        if _differ(values) and not follows and key not in OWN:
            found[key] = values
    return found


def frame(runs: Sequence[Run]) -> "pl.DataFrame":
    """Returns one row per run: state, command, differing settings, all metrics."""
    import polars as pl  # here, because only tables need it

    columns: dict[str, list[Any]] = {
        "job": [run.number for run in runs],
        "state": [run.status.state for run in runs],
        "monitor": [run.status.monitor for run in runs],
        "value": [run.status.value for run in runs],
        "seconds": [run.status.seconds for run in runs],
        "error": [run.status.error for run in runs],
        "started": [run.status.started for run in runs],
        "folder": [str(run.folder) for run in runs],
        "overrides": [shlex.join(run.overrides) for run in runs],
        **differing(runs),
    }
    for name in sorted({name for run in runs for name in run.metrics}):
        columns[name] = [run.metrics.get(name) for run in runs]
    return pl.DataFrame([_series(name, values) for name, values in columns.items()])


def side_by_side(runs: Sequence[Run], title: str) -> str:
    """Renders the table of ranked runs, followed by the errors of the failed ones."""
    settings = differing(runs)
    shown = dict(list(settings.items())[:MAX_SETTINGS])
    monitors = {run.status.monitor for run in runs}
    value = monitors.pop() if len(monitors) == 1 else "value"
    metrics = [name for name in headline(runs) if name != value]
    heading, names = _names(runs)
    numeric = ("job", value, *metrics, "seconds")
    made = table(title, heading, *shown, value, *metrics, "seconds", "state", numeric=numeric)
    for column in made.columns:
        column.header = re.sub("[./]", r"\g<0>\n", str(column.header))
    for row, run in enumerate(runs):
        status = run.status
        measured = [_number(each) for each in (status.value, *map(run.metrics.get, metrics))]
        seconds = "" if status.seconds is None else f"{status.seconds:,.1f}"
        made.add_row(names[row], *(_brief(values[row]) for values in shown.values()), *measured, seconds, status.state)
    lines = [render(made)]
    if hidden := list(settings)[MAX_SETTINGS:]:
        lines.append(f"and {len(hidden)} more settings differ: {', '.join(hidden)}")
    lines += [
        f"{heading} {name} {run.status.state}: {run.status.error} ({short(run.folder)})"
        for name, run in zip(names, runs, strict=True)
        if run.status.state in ("failed", "interrupted")
    ]
    return "\n".join(lines)


def headline(runs: Sequence[Run]) -> list[str]:
    """Returns the names of the metrics to show."""
    measured = {name for run in runs for name in run.metrics}
    split = "test" if any(name.startswith("test/") for name in measured) else "val"
    return [f"{split}/{name}" for name in HEADLINE if f"{split}/{name}" in measured]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _names(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """Returns the heading and the names of the runs: the jobs of one sweep are named by their numbers."""
    numbers = [str(run.number) for run in runs]
    if None not in [run.number for run in runs] and len(set(numbers)) == len(numbers):
        return "job", numbers
    names = [run.folder.name for run in runs]
    return "run", names if len(set(names)) == len(names) else [str(short(run.folder)) for run in runs]


def _load(path: Path) -> dict[str, Any]:
    """Reads a YAML file; empty if it is absent, or if the run was killed while Hydra wrote it."""
    try:
        tree = yaml.load(path.read_text(), LOADER)
    except (FileNotFoundError, yaml.YAMLError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _differ(values: list[Any]) -> bool:
    return any(value != values[0] for value in values)


def _series(name: str, values: list[Any]) -> "pl.Series":
    """A numeric column if all values are numbers, else text."""
    import polars as pl  # as above

    given = [value for value in values if value is not None]
    if all(type(value) is int for value in given) and given:
        return pl.Series(name, values, pl.Int64)
    if all(type(value) in (int, float) for value in given) and given:
        return pl.Series(name, values, pl.Float64)
    return pl.Series(name, [None if value is None else _cell(value) for value in values], pl.String)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else show(value)


def _brief(value: Any) -> str:
    """Shortens the long numbers of a search."""
    text = _cell(value)
    return f"{value:.5g}" if isinstance(value, float) and len(text) > 7 else text


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.5g}"
