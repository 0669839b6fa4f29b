"""Plots of a study: optimization history, importance of the settings, and the Pareto front of two objectives."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.folders.colors import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from optuna import Study

MIN_TRIALS = 4
"""Minimum number of completed trials for the importance plot."""


def plot_study(study: "Study", folder: Path, names: Sequence[str]) -> list[str]:
    """Writes history.png, importance.png if there are enough trials, and front.png for two objectives. Returns the file
    names. `names` are the objectives, the monitor first."""
    figures = {"history.png": history(study, names[0])}
    if (importances := importance(study)) is not None:
        figures["importance.png"] = bars(importances, f"share of the variance of {names[0]}")
    if len(names) == 2:
        figures["front.png"] = front(study, names)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=100)
    return list(figures)


def history(study: "Study", monitor: str) -> "Figure":
    """The monitored value of each trial, and the best so far."""
    from matplotlib.figure import Figure
    from optuna.trial import TrialState

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    completed, pruned = (
        [(trial.number, trial.values[0]) for trial in study.get_trials(states=[state]) if trial.values]
        for state in (TrialState.COMPLETE, TrialState.PRUNED)
    )
    pick = min if study.directions[0].name == "MINIMIZE" else max
    best = [pick(value for _, value in completed[: at + 1]) for at in range(len(completed))]
    axes.step([number for number, _ in completed], best, where="post", color=BLUE, linewidth=1.5, label="best so far")
    _points(axes, completed, BLUE, f"{len(completed)} completed", "o")
    if pruned:
        _points(axes, pruned, ORANGE, f"{len(pruned)} pruned, last value", "x")
    axes.set(xlabel="trial", ylabel=monitor)
    axes.locator_params(axis="x", integer=True)
    # The limits ignore 5 % at each end, because outliers would flatten the rest.
    values = sorted(value for _, value in completed + pruned)
    low, high = values[len(values) // 20], values[-1 - len(values) // 20]
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(min(low, *best) - margin, max(high, best[-1]) + margin)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    axes.grid(alpha=0.25)
    return figure


def _points(axes: "Axes", points: Sequence[Sequence[float]], color: str, label: str, marker: str) -> None:
    first, second = zip(*points, strict=True)
    axes.scatter(first, second, s=24, color=color, marker=marker, label=label)


def importance(study: "Study") -> dict[str, float] | None:
    """Share of each setting in the variance of the monitored value of completed trials, by fANOVA (Hutter, Hoos and
    Leyton-Brown 2014); None if the trials are too few or all equal."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    completed = study.get_trials(states=[TrialState.COMPLETE])
    if len(completed) < MIN_TRIALS or len({trial.values[0] for trial in completed}) == 1:
        return None
    evaluator = FanovaImportanceEvaluator(seed=0)
    shares = get_param_importances(study, evaluator=evaluator, target=lambda trial: float(trial.values[0]))
    return shares or None


def bars(shares: dict[str, float], label: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.5 + 0.4 * len(shares)), layout="constrained")
    axes = figure.subplots()
    names = list(shares)[::-1]
    drawn = axes.barh(names, [shares[name] for name in names], color=BLUE)
    axes.bar_label(drawn, fmt="{:.0%}", padding=4)
    axes.set(xlim=(0, 1.1 * max(shares.values())), xlabel=label)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.grid(alpha=0.25, axis="x")
    return figure


def front(study: "Study", names: Sequence[str]) -> "Figure":
    """Two objectives of each completed trial, with the Pareto front as a line."""
    from matplotlib.figure import Figure
    from optuna.trial import TrialState

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    points = [trial.values for trial in study.get_trials(states=[TrialState.COMPLETE])]
    _points(axes, points, GREY, "other trials", "o")
    best = sorted((trial.values, trial.number) for trial in study.best_trials)
    first, second = zip(*(values for values, _ in best), strict=True)
    axes.plot(first, second, color=BLUE, marker="o", linewidth=1, label="best trials, with their numbers")
    for values, number in best:
        axes.annotate(str(number), values, xytext=(5, 5), textcoords="offset points")
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    axes.grid(alpha=0.25)
    return figure
