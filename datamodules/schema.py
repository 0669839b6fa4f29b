"""What a column is, what the target is, and what a network needs to know of the data. Plain values, no torch."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from common.errors import InputError

Kind = Literal["number", "category", "text", "date", "identifier", "constant", "image", "drop"]
Task = Literal["binary", "multiclass", "regression"]

FEATURE_KINDS: tuple[Kind, ...] = ("number", "category", "text", "date", "image")
"""Kinds that reach the network; the others are reported and left out."""


@dataclass(frozen=True)
class Column:
    """A column of the raw table: what it is, and why that was concluded."""

    name: str
    kind: Kind
    reason: str
    day_first: bool = False
    """Of a column of dates such as 31/01/2024, whether the day comes before the month."""


@dataclass(frozen=True)
class TextSpec:
    """A text column as a network sees it: token ids, where 0 is an unknown token."""

    name: str
    tokens: tuple[str, ...]
    """The vocabulary, in the order of the ids from 1 on."""
    idf: tuple[float, ...]
    """For each token, the logarithm that says how rare it is among the training rows (scikit-learn's, smooth)."""


@dataclass(frozen=True)
class ImageSpec:
    """An image column as a network sees it: uint8 of one shape."""

    name: str
    shape: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...]
    """Of each channel, in 0..1, over the training images."""
    deviation: tuple[float, ...]


@dataclass(frozen=True)
class InputSpec:
    """The encoded columns as a network sees them: the one thing `models` knows of the data.

    A batch holds `numbers`, float32 (rows, len(numbers) + len(indicators)): the encoded values, then one 0/1 column
    for each number that was missing somewhere in training; `codes`, int32 (rows, len(categories)), where 0 is an
    unknown level; for each text `tokens.NAME`, int32 (all tokens of the rows,), with `offsets.NAME`, int64
    (rows + 1,), where each row begins and the last one ends; for each image `images.NAME`, uint8 (rows, C, H, W).
    """

    numbers: tuple[str, ...] = ()
    indicators: tuple[str, ...] = ()
    categories: tuple[tuple[str, int], ...] = ()
    """Name and number of levels, unknown counted."""
    edges: tuple[tuple[float, ...], ...] = ()
    """For each number the edges of bins that hold its encoded training values, ascending."""
    texts: tuple[TextSpec, ...] = ()
    images: tuple[ImageSpec, ...] = ()


def input_spec(plain: Mapping[str, Any]) -> InputSpec:
    """An InputSpec from what JSON makes of its `dataclasses.asdict`."""
    fields = {name: _tuples(value) for name, value in plain.items() if name not in ("texts", "images")}
    texts = tuple(TextSpec(**{name: _tuples(value) for name, value in text.items()}) for text in plain["texts"])
    images = tuple(ImageSpec(**{name: _tuples(value) for name, value in image.items()}) for image in plain["images"])
    return InputSpec(**fields, texts=texts, images=images)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class TargetSpec:
    """The target: classes in code order with their counts in training, or the mean and scale that standardise it, and
    the smallest and the largest value in training."""

    name: str
    task: Task
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = field(default=())
    mean: float = 0.0
    scale: float = 1.0
    low: float = -math.inf
    high: float = math.inf

    @property
    def outputs(self) -> int:
        """Columns that the network must give: one logit, one logit a class, or one value."""
        return len(self.classes) if self.task == "multiclass" else 1


def target_spec(plain: Mapping[str, Any]) -> TargetSpec:
    """A TargetSpec from what JSON makes of its `dataclasses.asdict`."""
    return TargetSpec(**{name: _tuples(value) for name, value in plain.items()})


def drop_setting(names: Iterable[str]) -> str:
    """What leaves these columns out, as it is typed in a shell."""
    return f"data.columns='{{{', '.join(f'{as_key(name)}: drop' for name in names)}}}'"


def as_key(name: str) -> str:
    """A name as Hydra takes it for a key."""
    return re.sub(r"[\\()\[\]{}:=,]", r"\\\g<0>", name)


class DataError(InputError):
    """Data that cannot be used as it is; the message says what is wrong, where, and what to do."""


SEPARATING = r"[\s.,;:!?'\"`_-]+"
"""Blanks and punctuation that tell no classes apart, unlike the signs of "<=50K" and ">50K"."""


OWN = "lathe."
"""Begins the names of columns that are Lathe's own, not the table's."""


COPY = OWN + "copy"
"""Equal for rows that are exact copies of each other."""


def count(number: int, what: str) -> str:
    """ "1 row", "2,000 rows"."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")
