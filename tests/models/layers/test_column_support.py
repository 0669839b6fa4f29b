"""A network that does not fit the columns: the whole sentence, and that it names networks that there are."""

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from datamodules.schema import InputSpec, Kind
from models.layers.column_support import refuse_columns
from tests.conftest import ROOT
from tests.models.problems import INPUTS, MIXED

NUMBERS = InputSpec(numbers=("size",))
TEXTS = InputSpec(texts=MIXED.texts)
IMAGES = InputSpec(images=MIXED.images)
TABLE: list[Kind] = ["number", "category"]
REFUSED: list[tuple[InputSpec, Sequence[Kind], Kind | None, str]] = [
    (
        INPUTS,
        ["image"],
        None,
        "net takes images alone, and there are numbers and categories: choose model=mlp, linear, tabm, realmlp, resnet,"
        " ft_transformer or tree.",
    ),
    (
        IMAGES,
        TABLE,
        None,
        "net takes numbers and categories alone, and there are images: choose model=cnn, resnet18, torchvision or"
        " fusion.",
    ),
    (
        TEXTS,
        TABLE,
        None,
        "net takes numbers and categories alone, and there are texts: choose model=mlp, linear,"
        " tabm, realmlp, resnet, ft_transformer, text_transformer or pretrained_text.",
    ),
    (
        replace(MIXED, images=()),
        TABLE,
        None,
        "net takes numbers and categories alone, and there are numbers and texts: choose model=mlp, linear,"
        " tabm, realmlp, resnet, ft_transformer or text_transformer, or leave columns out with"
        " data.columns='{title: drop}'.",
    ),
    (
        MIXED,
        ["image"],
        None,
        "net takes images alone, and there are numbers, texts and images: choose model=fusion, or leave columns out"
        " with data.columns='{size: drop, title: drop}'.",
    ),
    (
        NUMBERS,
        ["number", "text"],
        "text",
        "net needs texts, and there are numbers: choose model=mlp, linear, tabm, realmlp, resnet, ft_transformer or"
        " tree, or say which column is a text with data.columns='{NAME: text}'.",
    ),
    (
        InputSpec(),
        TABLE,
        None,
        "net takes numbers and categories alone, and there is no column to learn from: data.columns='{NAME: KIND}' says"
        " what a column is.",
    ),
]


@pytest.mark.parametrize(("spec", "takes", "needs", "message"), REFUSED)
def test_what_is_there_and_what_fits_it_is_said(
    spec: InputSpec, takes: Sequence[Kind], needs: Kind | None, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        refuse_columns(spec, "net", takes, needs)


def test_what_fits_is_taken() -> None:
    refuse_columns(NUMBERS, "net", TABLE)
    refuse_columns(IMAGES, "net", ["image"])
    refuse_columns(MIXED, "net", ["number", "text", "image"], needs="text")


def test_the_networks_that_are_named_are_there() -> None:
    found = [re.search(r"choose model=(.+?)(, or |\.$)", message) for *_, message in REFUSED]
    names = {name for match in found if match for name in re.split(", | or ", match[1])}
    assert len(names) == 13
    assert names <= {file.stem for file in (ROOT / "conf" / "model").iterdir()}
