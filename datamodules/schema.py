"""What a column is, what the target is, and what a network needs to know of the data. Plain values, no torch."""

from dataclasses import dataclass, field
from typing import Literal

from serving.errors import InputError

Kind = Literal["number", "category", "text", "date", "identifier", "constant", "image", "drop"]
Task = Literal["binary", "multiclass", "regression"]

FEATURE_KINDS: tuple[Kind, ...] = ("number", "category")
"""Kinds that reach the network; the others are reported and left out."""


@dataclass(frozen=True)
class Column:
    """A column of the raw table: what it is, and why that was concluded."""

    name: str
    kind: Kind
    reason: str


@dataclass(frozen=True)
class InputSpec:
    """The encoded columns as a network sees them: the one thing `models` knows of the data.

    A batch holds `numbers`, float32 (rows, len(numbers) + len(indicators)): the encoded values, then one 0/1 column
    for each number that was missing somewhere in training; and `codes`, int32 (rows, len(categories)), where 0 is an
    unknown level.
    """

    numbers: tuple[str, ...] = ()
    indicators: tuple[str, ...] = ()
    categories: tuple[tuple[str, int], ...] = ()
    """Name and number of levels, unknown counted."""
    edges: tuple[tuple[float, ...], ...] = ()
    """For each number the edges of bins that hold its encoded training values, ascending."""


@dataclass(frozen=True)
class TargetSpec:
    """The target: classes in code order with their counts in training, or the mean and scale that standardise it."""

    name: str
    task: Task
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = field(default=())
    mean: float = 0.0
    scale: float = 1.0

    @property
    def outputs(self) -> int:
        """Columns that the network must give: one logit, one logit a class, or one value."""
        return len(self.classes) if self.task == "multiclass" else 1


class DataError(InputError):
    """Data that cannot be used as it is; the message says what is wrong, where, and what to do."""
