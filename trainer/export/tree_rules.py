"""Hard trees as if/else rules on raw cells: conditions in the units and names of the columns, as text and JSON."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from common.errors import InputError
from datamodules.schema import TargetSpec
from datamodules.tabular import TableDataModule
from models.architectures.tree import HardTrees, Tree

SHOWN_LEVELS = 8
"""Maximum number of levels of a condition in the text; JSON has all."""


@dataclass(frozen=True)
class Condition:
    """A test of one raw cell: a number greater than `above`, a missing number (`above` is None), or one of `levels`."""

    column: str
    above: float | None = None
    missing: bool = False
    """Whether a missing number counts as greater."""
    levels: tuple[str, ...] | None = None
    """Levels of a category; "" is a missing cell."""
    negated: bool = False
    """The condition is true for all other levels instead, including unseen ones."""
    codes: frozenset[int] = frozenset()
    """Codes of a category for which the condition is true."""
    size: int = 0
    """Number of codes of the category."""

    def plain(self) -> dict[str, Any]:
        """The condition in rules.json."""
        if self.levels is not None:
            return {"column": self.column, "not_in" if self.negated else "in": list(self.levels)}
        if self.above is None:
            return {"column": self.column, "is_missing": True}
        return {"column": self.column, "above": self.above, "missing": self.missing}

    def __str__(self) -> str:
        if self.levels is not None:
            names = [level or "(missing)" for level in self.levels[:SHOWN_LEVELS]]
            if len(self.levels) > SHOWN_LEVELS:
                names.append(f"... ({len(self.levels)} in total)")
            one = len(self.levels) == 1
            relation = ("is not" if one else "is none of") if self.negated else ("is" if one else "is one of")
            return f"{self.column} {relation} {', '.join(names)}"
        if self.above is None:
            return f"{self.column} is missing"
        return f"{self.column} > {number(self.above)}"


@dataclass(frozen=True)
class Rules:
    """The score of a row is `base` plus the values of its leaf in each tree. The binary digits of the leaf's index are
    the results of the conditions of the tree. Scores are logits, or the value in the target's units.
    """

    target: TargetSpec
    threshold: float
    conditions: list[list[Condition]]
    trees: HardTrees
    """The same trees on encoded rows. Values are rounded as they are printed."""
    rows: Tensor
    """Number of training rows in each leaf, (trees, leaves)."""
    medians: Mapping[str, float]
    """Replacements of missing numbers, by column."""

    def plain(self) -> dict[str, Any]:
        """Content of rules.json."""
        return {
            "format": 1,
            "target": self.target.name,
            "task": self.target.task,
            "classes": list(self.target.classes),
            "threshold": self.threshold if self.target.task == "binary" else None,
            "medians": dict(self.medians),
            "base": self.trees.bias.tolist(),
            "trees": [
                {"conditions": [condition.plain() for condition in tree], "values": values, "rows": rows}
                for tree, values, rows in zip(
                    self.conditions, self.trees.responses.tolist(), self.rows.tolist(), strict=True
                )
            ],
        }

    def lines(self) -> Iterator[str]:
        """Lines of rules.txt."""
        target, base = self.target, self.values(self.trees.bias.tolist(), signed=False)
        if target.task == "regression":
            yield f"{target.name} is {base} plus one value from each tree."
        elif target.task == "binary":
            yield (
                f"The score of {target.classes[1]} ({target.name}) is {base} plus one value from each tree. Its"
                f" probability is 1 / (1 + exp(-score)); it is the label if this is at least {number(self.threshold)}."
            )
        else:
            yield (
                f"The scores of {target.name} are {base} plus the values from each tree. The label has the largest"
                " score; the probabilities are exp(score), divided by their sum."
            )
        used = {condition.column for tree in self.conditions for condition in tree if condition.above is not None}
        if used:
            medians = [f"{name} {number(value)}" for name, value in self.medians.items() if name in used]
            yield f"A missing number is replaced by the median: {', '.join(medians)}."
        for index, conditions in enumerate(self.conditions):
            yield f"\nTree {index + 1}"
            yield from self._branch(index, conditions, 0, {}, "  ")

    def _branch(
        self,
        tree: int,
        conditions: list[Condition],
        leaf: int,
        possible: dict[tuple[str, bool], int],
        indent: str,
        depth: int = 0,
    ) -> Iterator[str]:
        """Lines of a subtree. `possible`: the cells of each column that can reach it, as a bit mask; conditions that
        the mask already decides are left out.
        """
        below = len(conditions) - depth
        rows = int(self.rows[tree, leaf << below : (leaf + 1) << below].sum())
        if below == 0 or rows == 0:  # `prune` gave all leaves without rows the same values
            values = self.values(self.trees.responses[tree, leaf << below].tolist())
            yield f"{indent}{values}  ({rows:,} {'row' if rows == 1 else 'rows'})"
            return
        condition = conditions[depth]
        true, every = cells(condition, conditions)
        key = (condition.column, condition.above is None)
        here = possible.get(key, every)
        outcomes = [(answer, left) for answer, left in ((1, here & true), (0, here & ~true)) if left]
        for answer, left in outcomes:
            inner = indent
            if len(outcomes) == 2:
                yield f"{indent}if {condition}" if answer else f"{indent}else"
                inner += "  "
            yield from self._branch(tree, conditions, 2 * leaf + answer, possible | {key: left}, inner, depth + 1)

    def values(self, values: Sequence[float], signed: bool = True) -> str:
        """Formats the values of a leaf, with the name of the class if there are several."""
        form = f"{'+' if signed else ''}.{max(decimal_places(self.target), 0)}f"
        shown = [format(value, form) for value in values]
        if len(shown) == 1:
            return shown[0]
        return ", ".join(f"{name} {value}" for name, value in zip(self.target.classes, shown, strict=True))


def number(value: float) -> str:
    """Formats a number with as few digits as possible."""
    return repr(value).removesuffix(".0")


def cells(condition: Condition, conditions: list[Condition]) -> tuple[int, int]:
    """Returns two bit masks of the cells that the conditions of a tree distinguish in the column of `condition`: those
    for which it is true, and all."""
    if condition.levels is not None:
        return sum(1 << code for code in condition.codes), (1 << condition.size) - 1
    if condition.above is None:
        return 1, 3
    bounds = sorted({o.above for o in conditions if o.column == condition.column and o.above is not None})
    every_cell = (1 << len(bounds) + 1) - 1
    return every_cell & ~((2 << bounds.index(condition.above)) - 1), every_cell


class Reader:
    """Translates conditions on encoded inputs to conditions on raw cells."""

    def __init__(self, datamodule: TableDataModule, network: Tree) -> None:
        self.spec = datamodule.inputs
        self.encoder = cast(Any, datamodule.features).numbers
        self.inputs = network.inputs
        self.names = [level_names(datamodule, name, index) for index, (name, _) in enumerate(self.spec.categories)]
        self.medians: dict[str, float] = dict(zip(self.spec.numbers, self.encoder.fill.tolist(), strict=True))
        wide = self.inputs.wide.tolist()
        size = self.inputs.embedding.embedding_dim if self.inputs.embedding is not None else 0
        numbers = [("number", index) for index in self.inputs.numbers_plain.tolist()]
        narrow = [("category", index) for index in self.inputs.column.tolist()]
        self.sources = numbers + narrow + [("category", index) for index in wide for _ in range(size)]

    def read(self, column: int, threshold: float, values: Tensor) -> tuple[Condition, float]:
        """Translates the condition that input `column` is greater than `threshold`, which lies within its `values`.

        Returns the condition on the raw cell, and an encoded threshold that splits `values` in the same way and all
        other values exactly as the raw condition does.
        """
        kind, index = self.sources[column]
        if kind == "category":
            return self._category(index, column, threshold), threshold
        if index >= len(self.spec.numbers):
            return Condition(self.spec.indicators[index - len(self.spec.numbers)]), threshold
        below, above = values[values <= threshold].max(), values[values > threshold].min()
        raw = shortest(
            last_number(lambda x: self.encode(index, x) <= below), last_number(lambda x: self.encode(index, x) < above)
        )
        encoded = float(self.encode(index, torch.tensor([raw], dtype=torch.float64)))
        missing = float(self.encode(index, torch.tensor([math.nan], dtype=torch.float64))) > encoded
        return Condition(self.spec.numbers[index], raw, missing), encoded

    def encode(self, index: int, values: Tensor) -> Tensor:
        # A value that data.replace replaces would not be encoded in its place, so take the next float.
        replaced = torch.isin(values, self.encoder.old)
        values = torch.where(replaced, values.nextafter(torch.tensor(math.inf, dtype=values.dtype)), values)
        encoded: Tensor = self.encoder({self.spec.numbers[index]: values}, len(values))[:, index]
        return encoded

    def _category(self, index: int, column: int, threshold: float) -> Condition:
        name, levels = self.spec.categories[index]
        codes = torch.zeros(levels, len(self.spec.categories), dtype=torch.int32)
        codes[:, index] = torch.arange(levels)
        numbers = torch.zeros(levels, len(self.spec.numbers) + len(self.spec.indicators))
        above = self.inputs({"numbers": numbers, "codes": codes})[:, column] > threshold
        true = frozenset(above.nonzero()[:, 0].tolist())
        unseen = 0 in true
        named = [level for code, level in self.names[index].items() if (code in true) != unseen]
        return Condition(name, levels=tuple(named), negated=unseen, codes=true, size=levels)


def level_names(datamodule: TableDataModule, name: str, index: int) -> dict[int, str]:
    """Returns the levels of a category by code, without code 0; "" is a missing cell."""
    categories = cast(Any, datamodule.features).categories
    if categories.buckets[index] > 0:
        raise InputError(
            f"rare levels of '{name}' are hashed to {categories.buckets[index]} codes, so rules cannot name them. Train"
            " with data.hash_buckets=0."
        )
    codes: dict[str, int] = categories.levels[index]
    described = {column["name"]: column for column in datamodule.describe()["columns"]}
    names = {codes[level]: level for level in ("", *described[name]["levels"]) if codes.get(level, 0) > 0}
    return dict(sorted(names.items()))


def last_number(holds: Callable[[Tensor], Tensor]) -> float:
    """Returns the largest float64 within +-1e100 for which `holds`, which must be true up to it and false above."""
    # Bisection over bit patterns: as integers with a separate sign, they have the order of the floats.
    high = int(torch.tensor([1e100], dtype=torch.float64).view(torch.int64))
    low = -high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if bool(holds(float_of_bits(middle))) else (low, middle)
    return float(float_of_bits(low))


def float_of_bits(bits: int) -> Tensor:
    """Returns the float64 (1,) with the bit pattern |bits| and the sign of `bits`."""
    size = torch.tensor([abs(bits)]).view(torch.float64)
    return -size if bits < 0 else size


def shortest(low: float, high: float) -> float:
    """Returns the number with the fewest digits between `low` and `high`, close to their middle."""
    middle = low + (high - low) / 2
    rounded = (float(f"{middle:.{digits}g}") for digits in range(1, 18))
    return next((value for value in rounded if low <= value <= high), low)


def decimal_places(target: TargetSpec) -> int:
    """Number of decimals of a printed value: a thousandth of the target's scale."""
    return 3 - math.floor(math.log10(target.scale))


def in_units(trees: HardTrees, target: TargetSpec) -> HardTrees:
    """Converts the scores to the target's units and rounds them to a thousandth of its scale."""
    rounded = [
        torch.tensor(
            [round(value, decimal_places(target)) for value in values.flatten().tolist()], dtype=torch.float64
        ).view(values.shape)
        for values in (trees.responses * target.scale, trees.bias * target.scale + target.mean)
    ]
    return replace(trees, responses=rounded[0], bias=rounded[1])
