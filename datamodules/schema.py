"""Data types shared by data preparation and models: columns, the inputs of a network, the target. No torch."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from common.errors import InputError

Kind = Literal["number", "category", "text", "date", "identifier", "constant", "image", "drop"]
Task = Literal["binary", "multiclass", "regression"]

FEATURE_KINDS: tuple[Kind, ...] = ("number", "category", "text", "date", "image")
"""Kinds of columns that are inputs of the network; other columns are reported and left out."""


@dataclass(frozen=True)
class Column:
    """A column of the raw table: its kind, and the reason for it."""

    name: str
    kind: Kind
    reason: str
    day_first: bool = False
    """For dates such as 31/01/2024: whether the day comes before the month."""


@dataclass(frozen=True)
class TextSpec:
    """A text column as an input of a network: token ids, where 0 is an unknown token."""

    name: str
    tokens: tuple[str, ...]
    """The vocabulary in order of the ids, which start at 1."""
    idf: tuple[float, ...]
    """Smoothed inverse document frequency of each token in the training rows, as in scikit-learn."""


@dataclass(frozen=True)
class ImageSpec:
    """An image column as an input of a network: uint8 images of one shape."""

    name: str
    shape: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...]
    """Mean of each channel over the training images, scaled to 0..1; `deviation` is the standard deviation."""
    deviation: tuple[float, ...]


@dataclass(frozen=True)
class InputSpec:
    """The encoded columns of a batch, which is all that `models` knows about the data.

    A batch is a dict with these tensors:

    - `numbers`, float32 (rows, len(numbers) + len(indicators)): the encoded values, then a 0/1 column for each number
      that is missing in some training row.
    - `codes`, int32 (rows, len(categories)): the level of each category, where 0 is an unknown level.
    - `tokens.NAME`, int32 (all tokens of the rows,), for each text, and `offsets.NAME`, int64 (rows + 1,): the start
      of each row in the tokens, and the end of the last row.
    - `images.NAME`, uint8 (rows, C, H, W), for each image column.
    """

    numbers: tuple[str, ...] = ()
    indicators: tuple[str, ...] = ()
    categories: tuple[tuple[str, int], ...] = ()
    """Name and number of levels, including the unknown level."""
    edges: tuple[tuple[float, ...], ...] = ()
    """Ascending bin edges of the encoded training values of each number."""
    texts: tuple[TextSpec, ...] = ()
    images: tuple[ImageSpec, ...] = ()


def input_spec(plain: Mapping[str, Any]) -> InputSpec:
    """Restores an InputSpec from the JSON form of its `dataclasses.asdict`."""
    fields = {name: _tuples(value) for name, value in plain.items() if name not in ("texts", "images")}
    texts = tuple(TextSpec(**{name: _tuples(value) for name, value in text.items()}) for text in plain["texts"])
    images = tuple(ImageSpec(**{name: _tuples(value) for name, value in image.items()}) for image in plain["images"])
    return InputSpec(**fields, texts=texts, images=images)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class TargetSpec:
    """The target: classes in order of their codes with their counts in training, or the mean and scale that
    standardize it, and the smallest and largest training value."""

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
        """Number of outputs of the network: one logit, one logit per class, or one value."""
        return len(self.classes) if self.task == "multiclass" else 1


def target_spec(plain: Mapping[str, Any]) -> TargetSpec:
    """Restores a TargetSpec from the JSON form of its `dataclasses.asdict`."""
    return TargetSpec(**{name: _tuples(value) for name, value in plain.items()})


def drop_setting(names: Iterable[str]) -> str:
    """The setting that drops these columns, as typed in a shell."""
    return f"data.columns='{{{', '.join(f'{as_key(name)}: drop' for name in names)}}}'"


def as_key(name: str) -> str:
    """A name, escaped as a key for Hydra."""
    return re.sub(r"[\\()\[\]{}:=,]", r"\\\g<0>", name)


class DataError(InputError):
    """Data that cannot be used as they are; the message says what is wrong, where, and what to do."""


SEPARATING = r"[\s.,;:!?'\"`_-]+"
"""Blanks and punctuation, which do not distinguish classes; signs such as those in "<=50K" and ">50K" do."""

OWN = "lathe."
"""Prefix of the names of columns that Lathe adds to a table."""

COPY = OWN + "copy"
"""Column with equal numbers for rows that are exact copies of each other."""


def feature_columns(columns: Iterable[Column], target: str) -> list[Column]:
    """The columns that are inputs of the network."""
    return [column for column in columns if column.kind in FEATURE_KINDS and column.name != target]


def count(number: int, what: str) -> str:
    """Formats a number and a noun: "1 row", "2,000 rows"."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")
