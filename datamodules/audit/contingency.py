"""Contingency tables of the values of a column by target and split, and the measures of the audit."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from datamodules.schema import Task

BINS = 64
"""Maximum number of bins of a number column; the edges are quantiles of the training rows."""
MAX_LEVELS = 4096
"""Maximum number of levels of a category; rarer ones count as one."""
MAX_CLASSES = 20
"""Maximum number of classes of the target; rarer ones count as one."""
SAMPLE = 16_384
"""Approximate number of values that bin edges are computed from."""
EXACT = 1e-3
"""Maximum unexplained share of the target's variance for an exact linear combination, to allow for rounding."""
SPLITS = ("training", "validation", "test")


@dataclass(frozen=True)
class Outcome:
    """The target and split of each row, as arrays for counting. Either `classes` or `values` is empty."""

    split: np.ndarray
    """int64 (rows,): 0 train, 1 validation, 2 test."""
    classes: np.ndarray
    """int64 (rows,): the code of the class, the most frequent first."""
    values: np.ndarray
    """float64 (rows,): the standardized regression target."""

    @classmethod
    def of(cls, target: pl.Series, task: Task, split: np.ndarray) -> "Outcome":
        """The outcome for a clean target."""
        if task == "regression":
            values = target.cast(pl.Float64).to_numpy()
            return cls(split, np.empty(0, np.int64), (values - values.mean()) / (values.std() or 1.0))
        classes = target.alias("class").value_counts(sort=True)["class"]
        codes = target.cast(pl.Enum(classes)).to_physical().cast(pl.Int64).to_numpy()
        return cls(split, np.minimum(codes, MAX_CLASSES - 1), np.empty(0))

    def table(self, codes: np.ndarray, *, ordered: bool) -> "Table":
        """The contingency table of a column; `codes` holds the value of each row, from 0."""
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
        """The outcome of the rows of a mask, bool (rows,)."""
        classes, values = (part[rows] if len(part) else part for part in (self.classes, self.values))
        return Outcome(self.split[rows], classes, values)

    def agreement(self, groups: np.ndarray) -> float:
        """Chance-corrected agreement in the target of two rows of one group: 0 by chance, 1 always.

        It is defined as Cohen's kappa or, for a regression, as the correlation within groups. `groups`: int64 (rows,).
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

    def neighbor_agreement(self, order: np.ndarray) -> float:
        """The `agreement` of rows that are adjacent in `order`."""
        if len(self.classes):
            classes = self.classes[order]
            return self._beyond_chance(float((classes[1:] == classes[:-1]).mean()))
        values = self.values[order]
        return float((values[1:] * values[:-1]).mean())

    def is_sorted(self) -> bool:
        """Returns whether the rows are sorted by the target, or consist of a few sorted parts."""
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
    """The contingency table of a column.

    `rows`, int64 (values, 3 splits), is the number of rows. `target` is the number of rows of each class, (values, 3,
    classes), or the sum and the sum of squares of a regression target, (values, 3, 2). `ordered` is true for bins and
    false for levels.
    """

    rows: np.ndarray
    target: np.ndarray
    ordered: bool

    @cached_property
    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """`target` of the training rows, and of the evaluated (validation and test) rows."""
        return self.target[:, 0], self.target[:, 1:].sum(1)

    def auroc(self) -> float:
        """AUROC of the column alone, the minimum over the classes (one class against the rest).

        It is fitted on the training rows and evaluated on the others.
        """
        fitted, evaluated = self.halves
        rates = (fitted + fitted.sum(0) / fitted.sum()) / (fitted.sum(1, keepdims=True) + 1)
        areas = []
        for rate, positive in zip(rates.T, evaluated.T, strict=True):
            rank = np.unique(rate, return_inverse=True)[1]
            positives = np.bincount(rank, weights=positive)
            negatives = np.bincount(rank, weights=evaluated.sum(1) - positive)
            if positives.any() and negatives.any():
                below = np.cumsum(negatives) - negatives / 2
                areas.append(float((positives * below).sum() / positives.sum() / negatives.sum()))
        return min(areas, default=0.5)

    def skill(self) -> float:
        """The share of the errors of a constant prediction that the column alone removes.

        It is fitted on the training rows and evaluated on the others, and vice versa; the minimum is returned.
        """
        skills = []
        for fitted, evaluated in (self.halves, self.halves[::-1]):
            right = evaluated[np.arange(len(evaluated)), fitted.argmax(1)].sum()
            constant = evaluated.sum(0).max()
            skills.append(float((right - constant) / max(evaluated.sum() - constant, 1)))
        return min(skills)

    def explained(self) -> float:
        """R2 of the mean target of each value, fitted on the training rows and evaluated on the others."""
        count, (total, squares) = self.rows[:, 1:].sum(1), self.halves[1].T
        fitted = self.halves[0][:, 0]
        means = (fitted + fitted.sum() / self.rows[:, 0].sum()) / (self.rows[:, 0] + 1)
        error = (squares - 2 * means * total + means**2 * count).sum()
        variance = squares.sum() - total.sum() ** 2 / max(count.sum(), 1)
        return float(1 - error / variance) if variance > 0 else 0.0

    def distance(self, other: int) -> float:
        """Distance between the distributions in training and in another split.

        For bins it is the Kolmogorov-Smirnov distance (the largest difference of cumulative shares), for levels the
        total variation (half the sum of absolute differences).
        """
        shares = self.rows / np.maximum(self.rows.sum(0), 1)
        difference = shares[:, 0] - shares[:, other]
        return float(abs(np.cumsum(difference)).max() if self.ordered else abs(difference).sum() / 2)

    def chance_distance(self, other: int, risk: float) -> float:
        """Upper bound of the distance of random splits, exceeded with probability `risk` at most.

        It is Massart's bound for bins, and the mean plus McDiarmid's bound for levels.
        """
        rows = self.rows[:, [0, other]]
        inverse = (1 / np.maximum(rows.sum(0), 1)).sum()
        if self.ordered:
            return float(np.sqrt(np.log(2 / risk) / 2 * inverse))
        shares = rows.sum(1) / rows.sum()
        mean = np.sqrt(shares * (1 - shares) * inverse / (2 * np.pi)).sum()
        return float(mean + np.sqrt(np.log(1 / risk) / 2 * inverse))


def number_codes(values: pl.Series, train: np.ndarray) -> np.ndarray:
    """The bin of each number, in ascending order; the last bin is for missing. `train`: bool (rows,)."""
    numbers: np.ndarray = values.to_numpy()
    present = numbers[train & ~np.isnan(numbers)]
    present = present[:: len(present) // SAMPLE + 1]
    if not len(present):
        return np.asarray(np.isnan(numbers), dtype=np.int64)
    bins = min(BINS, max(2, len(present) // 4))
    edges = np.unique(np.quantile(present, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    codes = np.asarray(np.searchsorted(edges, numbers))
    codes[np.isnan(numbers)] = len(edges) + 1
    return codes


def level_codes(text: pl.Series) -> np.ndarray:
    """The code of each level, the most frequent first; the last two are for missing and for rarer levels."""
    levels = text.alias("level").drop_nulls().value_counts(sort=True)["level"].head(MAX_LEVELS)
    codes = text.cast(pl.Enum(levels), strict=False).to_physical().cast(pl.Int64)
    codes = codes.set(codes.is_null() & text.is_not_null(), len(levels) + 1).fill_null(len(levels))
    return np.asarray(codes)


def linear_parts(numbers: np.ndarray, target: np.ndarray, train: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The columns of which the target is a linear combination, and the coefficients with the constant last.

    Both are empty if there is none. Fitted on the training rows and evaluated on the others. `numbers` is float64
    (rows, columns) without missing values.
    """
    with np.errstate(over="ignore"):
        mean, scale = numbers[train].mean(0), numbers[train].std(0)
    chosen = np.flatnonzero((scale > 1e-9 * abs(mean)) & np.isfinite(scale))
    center, spread = target[train].mean(), target[train].std()
    for least in (1e-2, 0.0):  # all columns, then only those with an effect
        if not len(chosen) or train.sum() < 2 * len(chosen) + 20:
            return [], np.empty(0)
        fitted = (numbers[np.ix_(train, chosen)] - mean[chosen]) / scale[chosen]
        gram = fitted.T @ fitted / len(fitted) + 1e-10 * np.eye(len(chosen))
        slopes = np.linalg.solve(gram, fitted.T @ (target[train] - center) / len(fitted))
        relevant = abs(slopes) > least * spread
        chosen, slopes = chosen[relevant], slopes[relevant] / scale[chosen[relevant]]
    constant = center - mean[chosen] @ slopes
    rest = target[~train]
    error = rest - numbers[np.ix_(~train, chosen)] @ slopes - constant
    if not len(rest) or (error**2).sum() > EXACT * ((rest - rest.mean()) ** 2).sum():
        return [], np.empty(0)
    return chosen.tolist(), np.append(slopes, constant)
