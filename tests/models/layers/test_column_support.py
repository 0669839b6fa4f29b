"""Errors for columns that a network does not support, and the networks that they recommend."""

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
        "net supports only images, but there are numbers and categories: use model=mlp, linear, tabm, realmlp, resnet,"
        " ft_transformer or tree.",
    ),
    (
        IMAGES,
        TABLE,
        None,
        "net supports only numbers and categories, but there are images: use model=cnn, resnet18, torchvision or"
        " fusion.",
    ),
    (
        TEXTS,
        TABLE,
        None,
        "net supports only numbers and categories, but there are texts: use model=mlp, linear,"
        " tabm, realmlp, resnet, ft_transformer, text_transformer or pretrained_text.",
    ),
    (
        replace(MIXED, images=()),
        TABLE,
        None,
        "net supports only numbers and categories, but there are numbers and texts: use model=mlp, linear,"
        " tabm, realmlp, resnet, ft_transformer or text_transformer, or drop columns with"
        " data.columns='{title: drop}'.",
    ),
    (
        MIXED,
        ["image"],
        None,
        "net supports only images, but there are numbers, texts and images: use model=fusion, or drop columns"
        " with data.columns='{size: drop, title: drop}'.",
    ),
    (
        NUMBERS,
        ["number", "text"],
        "text",
        "net needs texts, but there are numbers: use model=mlp, linear, tabm, realmlp, resnet, ft_transformer or"
        " tree, or declare a text column with data.columns='{NAME: text}'.",
    ),
    (
        InputSpec(),
        TABLE,
        None,
        "net supports only numbers and categories, but there are no input columns: set data.columns='{NAME: KIND}'.",
    ),
]


@pytest.mark.parametrize(("spec", "takes", "needs", "message"), REFUSED)
def test_the_error_names_the_columns_and_supporting_networks(
    spec: InputSpec, takes: Sequence[Kind], needs: Kind | None, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        refuse_columns(spec, "net", takes, needs)


def test_supported_columns_are_accepted() -> None:
    refuse_columns(NUMBERS, "net", TABLE)
    refuse_columns(IMAGES, "net", ["image"])
    refuse_columns(MIXED, "net", ["number", "text", "image"], needs="text")


def test_the_recommended_networks_exist() -> None:
    found = [re.search(r"use model=(.+?)(, or |\.$)", message) for *_, message in REFUSED]
    names = {name for match in found if match for name in re.split(", | or ", match[1])}
    assert len(names) == 13
    assert names <= {file.stem for file in (ROOT / "conf" / "model").iterdir()}
