"""Pictures at the end of a run: how far its probabilities, or its values, can be believed."""

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
"""Of a 95 % interval."""
ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2, "frameon": False}
"""Where a legend stands: no point is under it."""
POINTS = 5000
"""Rows drawn as points."""


@dataclass(frozen=True)
class Bin:
    """Rows whose probability lies from `low` to `high`: how many, their mean probability, and the share of them that
    it came true for."""

    low: float
    high: float
    rows: int
    predicted: float
    observed: float

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share (1927)."""
        spread = Z**2 / self.rows
        middle = (self.observed + spread / 2) / (1 + spread)
        half = (spread * self.observed * (1 - self.observed) + spread**2 / 4) ** 0.5 / (1 + spread)
        return middle - half, middle + half


def reliability(probability: Tensor, happened: Tensor, bins: int = CALIBRATION_BINS) -> list[Bin]:
    """The bins of equal width from 0 to 1 that have rows, of `probability` (rows,) and 0/1 `happened` (rows,)."""
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
    """Mean over the rows of the gap between probability and share in their bin (Naeini et al. 2015)."""
    return sum(bin.rows * abs(bin.predicted - bin.observed) for bin in bins) / sum(bin.rows for bin in bins)


def draw(
    trainer: Trainer, module: SupervisedModule, datamodule: TableDataModule, folder: Path, *, test: bool = True
) -> dict[str, Any] | None:
    """Draws the test rows, or with `test=False` those of validation: reliability.png of classes, predicted.png of
    numbers; TensorBoard gets it too.

    Returns what `spec.json` says of the diagram of classes: the split, whose probability it is, and before and after
    the temperature the error and the bins.
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
    """Observed shares over predicted probabilities, with 95 % intervals, and below how the rows are spread.

    Of the class `positive`, or of the likeliest one. What was `before` the temperature is drawn where that is not 1.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    above.plot((0, 1), (0, 1), color=GREY, linewidth=1, linestyle=":", label="as often as predicted")
    drawn = [("after", after, BLUE, "o")]
    if temperature != 1.0:
        drawn.insert(0, ("before", before, ORANGE, "s"))
    for name, bins, colour, marker in drawn:
        note = f"{name} temperature {temperature:.3g}: " if len(drawn) > 1 else ""
        _curve(above, bins, colour, marker, f"{note}calibration error {calibration_error(bins):.3g}")
        left, right, rows = ([getattr(bin, of) for bin in bins] for of in ("low", "high", "rows"))
        below.hlines(rows, left, right, color=colour, linewidth=1.5)
        if name == "after":
            below.bar(left, rows, np.subtract(right, left), align="edge", color=colour, alpha=0.3)
    if threshold is not None:
        for axes in (above, below):
            label = f"threshold {threshold:.3g}" if axes is above else None
            axes.axvline(threshold, color="black", linewidth=1, linestyle="--", label=label)
    name = _plain(positive or "")
    above.set_ylim(-0.02, 1.02)
    above.set_ylabel(f"observed share of {name}" if name else "observed share of right answers")
    below.set(xlim=(-0.01, 1.01), ylabel="rows", yscale="log")
    below.set_xlabel(f"predicted probability of {name}" if name else "predicted probability of the likeliest class")
    below.set_ylim(bottom=0.7)  # a bar of one row has a height
    below.yaxis.set_major_formatter("{x:,.0f}")
    below.tick_params(axis="y", which="minor", labelleft=False)
    above.legend(**ABOVE)
    figure.suptitle(title)
    for axes in (above, below):
        axes.grid(alpha=0.25)
    return figure


def predicted_figure(answers: Tensor, truth: Tensor, low: float, high: float, title: str = "") -> "Figure":
    """Answers over true values, both (rows,) in the target's units, and the range from `low` to `high` that answers
    are held in. Of more rows than `POINTS` so many are drawn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.subplots()
    chosen = np.arange(len(truth))
    if len(truth) > POINTS:
        chosen = np.random.default_rng(0).choice(len(truth), POINTS, replace=False)
        title += f", {POINTS:,} drawn"
    held = int(((answers <= low) | (answers >= high)).sum())
    axes.scatter(truth[chosen], answers[chosen], s=14, color=BLUE, alpha=0.35, linewidths=0)
    ends = float(min(truth.min(), answers.min())), float(max(truth.max(), answers.max()))
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=":", label="predicted = true")
    for end in (low, high):
        label = f"answers are held from {low:.4g} to {high:.4g}: {held:,} were" if end == low else None
        axes.axhline(end, color=ORANGE, linewidth=1, linestyle="--", label=label)
    axes.set(xlabel="true value", ylabel="predicted value")
    axes.legend(**ABOVE)
    figure.suptitle(title)
    axes.grid(alpha=0.25)
    return figure


def _bins_of(probabilities: Tensor, truth: Tensor, task: str) -> list[Bin]:
    if task == "binary":
        return reliability(probabilities[:, 1], truth)
    confidence, label = probabilities.max(1)
    return reliability(confidence, label == truth)


def _curve(axes: "Axes", bins: Sequence[Bin], colour: str, marker: str, label: str) -> None:
    predicted, observed = [bin.predicted for bin in bins], [bin.observed for bin in bins]
    # A share of 0 or 1 is an end of its interval, but for rounding.
    reach = [
        (max(share - low, 0.0), max(high - share, 0.0))
        for share, (low, high) in zip(observed, (bin.interval() for bin in bins), strict=True)
    ]
    axes.errorbar(
        predicted,
        observed,
        yerr=list(zip(*reach, strict=True)),
        color=colour,
        marker=marker,
        markersize=6,
        linewidth=1.5,
        elinewidth=1,
        capsize=3,
        label=label,
    )


def show(figure: "Figure", path: Path, trainer: Trainer) -> None:
    """Writes the picture as a file, and to TensorBoard under the file's name."""
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
    """A name as text, not as matplotlib's mathematics, and not longer than a line."""
    return (name if len(name) <= 40 else f"{name[:38]} …").replace("$", r"\$")
