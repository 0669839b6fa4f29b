"""Plots at the end of a run: reliability diagrams of classifiers, predicted over true values of regressions."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from datamodules.tabular import TableDataModule
from models.training.lightning_module import SupervisedModule
from models.training.metrics import CALIBRATION_BINS
from models.training.prediction_head import all_logits, combine, to_units
from trainer.folders.colors import BLUE, GREY, ORANGE
from trainer.loop.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Z = 1.959964
"""Normal quantile of a 95 % interval."""
LEGEND: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2, "frameon": False}
"""Position of a legend: above the axes, where it covers no points."""
POINTS = 5000
"""Maximum number of points in a scatter plot; more rows are sampled."""


@dataclass(frozen=True)
class Bin:
    """Rows with a probability from `low` to `high`: their number, mean probability, and fraction of positives."""

    low: float
    high: float
    rows: int
    predicted: float
    observed: float

    def interval(self) -> tuple[float, float]:
        """Returns the 95 % interval of the observed fraction (Wilson 1927)."""
        spread = Z**2 / self.rows
        center = (self.observed + spread / 2) / (1 + spread)
        half = (spread * self.observed * (1 - self.observed) + spread**2 / 4) ** 0.5 / (1 + spread)
        return center - half, center + half


def reliability(probability: Tensor, happened: Tensor, bins: int = CALIBRATION_BINS) -> list[Bin]:
    """Returns the non-empty bins of equal width from 0 to 1, for `probability` (rows,) and 0/1 `happened` (rows,)."""
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    probability, happened = probability.double().cpu(), happened.double().cpu()
    index = torch.bucketize(probability, edges[1:-1], right=True)
    rows = torch.bincount(index, minlength=bins)
    predicted = torch.bincount(index, probability, minlength=bins) / rows
    observed = torch.bincount(index, happened, minlength=bins) / rows
    return [
        Bin(float(edges[i]), float(edges[i + 1]), int(rows[i]), float(predicted[i]), float(observed[i]))
        for i in range(bins)
        if rows[i] > 0
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error (Naeini et al. 2015): the gap of each bin, weighted by its rows."""
    return sum(bin.rows * abs(bin.predicted - bin.observed) for bin in bins) / sum(bin.rows for bin in bins)


def draw(
    trainer: Trainer, module: SupervisedModule, datamodule: TableDataModule, folder: Path, *, test: bool = True
) -> dict[str, Any] | None:
    """Plots the test rows, or the validation rows with `test=False`: reliability.png for a classifier, predicted.png
    for a regression. Loggers of TensorBoard get the plot too.

    Returns the entry `calibration` of `spec.json` for a classifier: the split, the class, and error and bins before
    and after the temperature. Returns None for a regression.
    """
    split, loader = ("test", datamodule.test_dataloader()) if test else ("validation", datamodule.val_dataloader())
    output, truth = trainer.outputs(module, loader)
    target, answers = module.target, module.predict(output)
    title = f"{_plain(target.name)} on {len(truth):,} {split} rows"
    if target.task == "regression":
        truth = to_units(truth, target)
        figure = predicted_figure(answers.cpu(), truth.cpu(), module.answer.low, module.answer.high, title)
        show(figure, folder / "predicted.png", trainer)
        return None
    before = torch.softmax(all_logits(combine(output, target.task).float()), 1)
    after_bins, before_bins = (_bins_of(each, truth, target.task) for each in (answers, before))
    binary = target.task == "binary"
    figure = reliability_figure(
        after_bins,
        before_bins,
        temperature=module.answer.temperature,
        threshold=module.threshold if binary else None,
        positive=target.classes[1] if binary else None,
        title=title,
    )
    show(figure, folder / "reliability.png", trainer)
    return {
        "split": split,
        "of": target.classes[1] if binary else "the likeliest class",
        "before": {"error": calibration_error(before_bins), "bins": [asdict(bin) for bin in before_bins]},
        "after": {"error": calibration_error(after_bins), "bins": [asdict(bin) for bin in after_bins]},
    }


def reliability_figure(
    after: Sequence[Bin],
    before: Sequence[Bin],
    *,
    temperature: float,
    threshold: float | None = None,
    positive: str | None = None,
    title: str = "",
) -> "Figure":
    """Observed fractions over predicted probabilities with 95 % intervals, above a histogram of the rows.

    Shows the class `positive`, or the likeliest class if it is None. Bins `before` the temperature are drawn only if
    the temperature is not 1.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    above.plot((0, 1), (0, 1), color=GREY, linewidth=1, linestyle=":", label="as often as predicted")
    curves = [("after", after, BLUE, "o")]
    if temperature != 1.0:
        curves.insert(0, ("before", before, ORANGE, "s"))
    for name, bins, color, marker in curves:
        note = f"{name} temperature {temperature:.3g}: " if len(curves) > 1 else ""
        _curve(above, bins, color, marker, f"{note}calibration error {calibration_error(bins):.3g}")
        left, right, rows = ([getattr(bin, name) for bin in bins] for name in ("low", "high", "rows"))
        below.hlines(rows, left, right, color=color, linewidth=1.5)
        if name == "after":
            below.bar(left, rows, np.subtract(right, left), align="edge", color=color, alpha=0.3)
    if threshold is not None:
        for axes in (above, below):
            label = f"threshold {threshold:.3g}" if axes is above else None
            axes.axvline(threshold, color="black", linewidth=1, linestyle="--", label=label)
    name = _plain(positive or "")
    above.set_ylim(-0.02, 1.02)
    above.set_ylabel(f"observed fraction of {name}" if name else "observed fraction of correct predictions")
    below.set(xlim=(-0.01, 1.01), ylabel="rows", yscale="log")
    below.set_xlabel(f"predicted probability of {name}" if name else "predicted probability of the likeliest class")
    below.set_ylim(bottom=0.7)  # so that a bar of one row is visible
    below.yaxis.set_major_formatter("{x:,.0f}")
    below.tick_params(axis="y", which="minor", labelleft=False)
    above.legend(**LEGEND)
    figure.suptitle(title)
    for axes in (above, below):
        axes.grid(alpha=0.25)
    return figure


def predicted_figure(answers: Tensor, truth: Tensor, low: float, high: float, title: str = "") -> "Figure":
    """Predictions (rows,) over true values (rows,), both in the target's units, and the range from `low` to `high` to
    which predictions are clipped. More than `POINTS` rows are sampled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.subplots()
    chosen = np.arange(len(truth))
    if len(truth) > POINTS:
        chosen = np.random.default_rng(0).choice(len(truth), POINTS, replace=False)
        title += f", {POINTS:,} sampled"
    clipped = int(((answers <= low) | (answers >= high)).sum())
    axes.scatter(truth[chosen], answers[chosen], s=14, color=BLUE, alpha=0.35, linewidths=0)
    ends = float(min(truth.min(), answers.min())), float(max(truth.max(), answers.max()))
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=":", label="predicted = true")
    for end in (low, high):
        label = f"clipped to {low:.4g} ... {high:.4g}: {clipped:,} rows" if end == low else None
        axes.axhline(end, color=ORANGE, linewidth=1, linestyle="--", label=label)
    axes.set(xlabel="true value", ylabel="predicted value")
    axes.legend(**LEGEND)
    figure.suptitle(title)
    axes.grid(alpha=0.25)
    return figure


def _bins_of(probabilities: Tensor, truth: Tensor, task: str) -> list[Bin]:
    if task == "binary":
        return reliability(probabilities[:, 1], truth)
    confidence, label = probabilities.max(1)
    return reliability(confidence, label == truth)


def _curve(axes: "Axes", bins: Sequence[Bin], color: str, marker: str, label: str) -> None:
    predicted, observed = [bin.predicted for bin in bins], [bin.observed for bin in bins]
    # Rounding may put a fraction of 0 or 1 slightly outside its interval.
    errors = [
        (max(fraction - low, 0.0), max(high - fraction, 0.0))
        for fraction, (low, high) in zip(observed, (bin.interval() for bin in bins), strict=True)
    ]
    axes.errorbar(
        predicted,
        observed,
        yerr=list(zip(*errors, strict=True)),
        color=color,
        marker=marker,
        markersize=6,
        linewidth=1.5,
        elinewidth=1,
        capsize=3,
        label=label,
    )


def show(figure: "Figure", path: Path, trainer: Trainer) -> None:
    """Saves the figure as a file, and in TensorBoard under the name of the file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, dpi=100)
    path.write_bytes(buffer.getvalue())
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            pixels = np.asarray(Image.open(buffer).convert("RGB"))
            logger.experiment.add_image(path.stem, pixels, trainer.global_step, dataformats="HWC")


def _plain(name: str) -> str:
    """Shortens a name and escapes $, which matplotlib would read as mathematics."""
    return (name if len(name) <= 40 else f"{name[:38]} …").replace("$", r"\$")
