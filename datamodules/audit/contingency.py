"""What the audit measures: how the target and the splits spread over the values of one column."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from datamodules.schema import Task

BINS = 64
"""Of a column of numbers, at most: quantiles of the training rows."""
MOST_LEVELS = 4096
"""Of a category; the rarer ones count as one."""
MOST_CLASSES = 20
"""Of the target; the rarer ones count as one."""
SAMPLE = 16_384
"""Values that the edges of the bins are taken of."""
EXACT = 1e-3
"""Share of the target's variance that a linear combination may miss, as rounding does."""
SPLITS = ("training", "validation", "test")


@dataclass(frozen=True)
class Outcome:
    """The target and the split of each row, in the form that is counted. One of `classes` and `values` is empty."""

    split: np.ndarray
    """int64 (rows,): 0 train, 1 validation, 2 test."""
    classes: np.ndarray
    """int64 (rows,): the code of the class, the commonest first."""
    values: np.ndarray
    """float64 (rows,): of a regression, standardised."""

    @classmethod
    def of(cls, target: pl.Series, task: Task, split: np.ndarray) -> "Outcome":
        if task == "regression":
            values = target.cast(pl.Float64).to_numpy()
            return cls(split, np.empty(0, np.int64), (values - values.mean()) / (values.std() or 1.0))
        classes = target.alias("class").value_counts(sort=True)["class"]
        codes = target.cast(pl.Enum(classes)).to_physical().cast(pl.Int64).to_numpy()
        return cls(split, np.minimum(codes, MOST_CLASSES - 1), np.empty(0))

    def table(self, codes: np.ndarray, *, ordered: bool) -> "Table":
        """`codes`: the value of each row, from 0."""
        cells = codes * 3 + self.split
        size = 3 * (int(codes.max()) + 1)
        rows = np.bincount(cells, minlength=size).reshape(-1, 3)
        if len(self.classes):
            width = int(self.classes.max()) + 1
            counts = np.bincount(cells * width + self.classes, minlength=size * width)
            return Table(rows, counts.reshape(-1, 3, width), ordered)
        sums = [np.bincount(cells, weights=self.values**power, minlength=size) for power in (1, 2)]
        return Table(rows, np.stack(sums, -1).reshape(-1, 3, 2), ordered)

    def among(self, rows: np.ndarray) -> "Outcome":
        """Of some rows, bool (rows,)."""
        classes, values = (part[rows] if len(part) else part for part in (self.classes, self.values))
        return Outcome(self.split[rows], classes, values)

    def agreement(self, groups: np.ndarray) -> float:
        """How much more than by chance two rows of one group agree in the target, 0 by chance and 1 always: as Cohen's
        kappa, or for a regression the correlation within groups. `groups`: int64 (rows,).
        """
        size = np.bincount(groups)
        pairs = float((size * (size - 1.0)).sum())
        if not pairs:
            return 0.0
        if len(self.classes):
            width = int(self.classes.max()) + 1
            together = np.unique(groups * width + self.classes, return_counts=True)[1]
            return self._beyond_chance(float((together * (together - 1.0)).sum() / pairs))
        sums, squares = (np.bincount(groups, weights=self.values**power) for power in (1, 2))
        return float((sums**2 - squares).sum() / pairs)

    def neighbour_agreement(self, order: np.ndarray) -> float:
        """As `agreement`, of rows that follow each other in `order`."""
        if len(self.classes):
            classes = self.classes[order]
            return self._beyond_chance(float((classes[1:] == classes[:-1]).mean()))
        values = self.values[order]
        return float((values[1:] * values[:-1]).mean())

    def is_sorted(self) -> bool:
        """Whether the rows come in the order of the target, or in a few such parts."""
        if len(self.classes):
            changes = int((np.diff(self.classes) != 0).sum())
            return changes < min(10 * (int(self.classes.max()) + 1), 0.1 * len(self.classes))
        steps = np.diff(self.values)
        return bool(max((steps >= 0).mean(), (steps <= 0).mean()) > 0.95)

    def _beyond_chance(self, agree: float) -> float:
        chance = float(((np.bincount(self.classes) / len(self.classes)) ** 2).sum())
        return (agree - chance) / (1 - chance) if chance < 1 else 0.0


@dataclass(frozen=True)
class Table:
    """`rows`: int64 (values, 3 splits); `target`: of each of them the rows of each class, (values, 3, classes), or the
    sum and the sum of squares of a regression's target, (values, 3, 2); `ordered`: bins, not levels.
    """

    rows: np.ndarray
    target: np.ndarray
    ordered: bool

    @cached_property
    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """`target` of the training rows, and of the others."""
        return self.target[:, 0], self.target[:, 1:].sum(1)

    def auroc(self) -> float:
        """How well the column alone ranks rows by class: the area under the ROC curve of each class against the rest;
        of several classes, that of the one told apart worst. Fitted on the training rows and judged on the others.
        """
        fitted, judged = self.halves
        rates = (fitted + fitted.sum(0) / fitted.sum()) / (fitted.sum(1, keepdims=True) + 1)
        areas = []
        for rate, positive in zip(rates.T, judged.T, strict=True):
            place = np.unique(rate, return_inverse=True)[1]
            positives = np.bincount(place, weights=positive)
            negatives = np.bincount(place, weights=judged.sum(1) - positive)
            if positives.any() and negatives.any():
                below = np.cumsum(negatives) - negatives / 2
                areas.append(float((positives * below).sum() / positives.sum() / negatives.sum()))
        return min(areas, default=0.5)

    def skill(self) -> float:
        """The share of a constant answer's errors that the column alone removes: fitted on the training rows and judged
        on the others, and the other way round; the smaller.
        """
        skills = []
        for fitted, judged in (self.halves, self.halves[::-1]):
            right = judged[np.arange(len(judged)), fitted.argmax(1)].sum()
            constant = judged.sum(0).max()
            skills.append(float((right - constant) / max(judged.sum() - constant, 1)))
        return min(skills)

    def explained(self) -> float:
        """The share of the target's variance (R2) that the means of the values explain. Fitted on the training rows and
        judged on the others.
        """
        count, (total, squares) = self.rows[:, 1:].sum(1), self.halves[1].T
        fitted = self.halves[0][:, 0]
        means = (fitted + fitted.sum() / self.rows[:, 0].sum()) / (self.rows[:, 0] + 1)
        error = (squares - 2 * means * total + means**2 * count).sum()
        variance = squares.sum() - total.sum() ** 2 / max(count.sum(), 1)
        return float(1 - error / variance) if variance > 0 else 0.0

    def distance(self, other: int) -> float:
        """Between the distributions in training and in another split: Kolmogorov-Smirnov (the largest difference of the
        cumulative shares) of bins, total variation (half the sum of the differences) of levels.
        """
        shares = self.rows / np.maximum(self.rows.sum(0), 1)
        difference = shares[:, 0] - shares[:, other]
        return float(abs(np.cumsum(difference)).max() if self.ordered else abs(difference).sum() / 2)

    def chance_distance(self, other: int, risk: float) -> float:
        """The distance that splits drawn at random exceed with probability `risk` at most: Massart's bound, or the mean
        and McDiarmid's bound of what exceeds it.
        """
        rows = self.rows[:, [0, other]]
        inverse = (1 / np.maximum(rows.sum(0), 1)).sum()
        if self.ordered:
            return float(np.sqrt(np.log(2 / risk) / 2 * inverse))
        shares = rows.sum(1) / rows.sum()
        mean = np.sqrt(shares * (1 - shares) * inverse / (2 * np.pi)).sum()
        return float(mean + np.sqrt(np.log(1 / risk) / 2 * inverse))


def number_codes(values: pl.Series, train: np.ndarray) -> np.ndarray:
    """The bin of each number, ascending; the last is that of missing ones. `train`: bool (rows,)."""
    numbers: np.ndarray = values.to_numpy()
    known = numbers[train & ~np.isnan(numbers)]
    known = known[:: len(known) // SAMPLE + 1]
    if not len(known):
        return np.asarray(np.isnan(numbers), dtype=np.int64)
    bins = min(BINS, max(2, len(known) // 4))
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    codes = np.asarray(np.searchsorted(edges, numbers))
    codes[np.isnan(numbers)] = len(edges) + 1
    return codes


def level_codes(text: pl.Series) -> np.ndarray:
    """The place of each level among the commonest; the last are that of missing ones and that of rarer levels."""
    levels = text.alias("level").drop_nulls().value_counts(sort=True)["level"].head(MOST_LEVELS)
    codes = text.cast(pl.Enum(levels), strict=False).to_physical().cast(pl.Int64)
    codes = codes.set(codes.is_null() & text.is_not_null(), len(levels) + 1).fill_null(len(levels))
    return np.asarray(codes)


def linear_parts(numbers: np.ndarray, target: np.ndarray, train: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The columns of which the target is a linear combination, and their coefficients, the constant last; none where it
    is not. Fitted on the training rows and judged on the others. `numbers`: float64 (rows, columns), none missing.
    """
    with np.errstate(over="ignore"):
        mean, scale = numbers[train].mean(0), numbers[train].std(0)
    chosen = np.flatnonzero((scale > 1e-9 * abs(mean)) & np.isfinite(scale))
    centre, spread = target[train].mean(), target[train].std()
    for least in (1e-2, 0.0):  # all columns; then again those that matter
        if not len(chosen) or train.sum() < 2 * len(chosen) + 20:
            return [], np.empty(0)
        fitted = (numbers[np.ix_(train, chosen)] - mean[chosen]) / scale[chosen]
        gram = fitted.T @ fitted / len(fitted) + 1e-10 * np.eye(len(chosen))
        slopes = np.linalg.solve(gram, fitted.T @ (target[train] - centre) / len(fitted))
        matter = abs(slopes) > least * spread
        chosen, slopes = chosen[matter], slopes[matter] / scale[chosen[matter]]
    constant = centre - mean[chosen] @ slopes
    rest = target[~train]
    error = rest - numbers[np.ix_(~train, chosen)] @ slopes - constant
    if not len(rest) or (error**2).sum() > EXACT * ((rest - rest.mean()) ** 2).sum():
        return [], np.empty(0)
    return chosen.tolist(), np.append(slopes, constant)
