"""Self-test and reference histogram of an artifact."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.preparation.encode import HEAD
from datamodules.tabular import TableDataModule
from inference.artifact import pattern

SELFTEST_ROWS = 64
SELFTEST_TOKENS = 8
"""Number of words in a synthetic text."""
PIXELS = 32_000_000
"""Maximum number of pixels in one batch; the activations of the network are many times larger."""


def selftest(
    pipeline: nn.Module, reference: Mapping[str, Any], images: Mapping[str, tuple[int, int, int]]
) -> dict[str, Any]:
    """Returns synthetic rows, sampled column by column from the reference, and the predictions of the pipeline.

    `images`: the shape (C, H, W) of each image column.
    """
    generator = torch.Generator().manual_seed(0)
    numbers: dict[str, Tensor] = {}
    strings: dict[str, list[str]] = {}
    for name, column in reference["numbers"].items():
        knots = torch.tensor(column["knots"], dtype=torch.float64)
        rank = torch.rand(SELFTEST_ROWS, generator=generator, dtype=torch.float64) * (len(knots) - 1)
        low = rank.floor().long()
        values = torch.lerp(knots[low], knots[(low + 1).clamp_max(len(knots) - 1)], rank - low)
        values[torch.rand(SELFTEST_ROWS, generator=generator) < column["missing"]] = torch.nan
        numbers[name] = values
    for name, column in reference["categories"].items():
        levels = [*column["levels"], ""]
        shares = torch.tensor([*column["levels"].values(), 0], dtype=torch.float64)
        shares = shares / shares.sum().clamp_min(1) * (1 - column["missing"])
        shares[-1] = column["missing"] if column["levels"] else 1.0
        codes = torch.multinomial(shares, SELFTEST_ROWS, replacement=True, generator=generator)
        strings[name] = [levels[code] for code in codes.tolist()]
    for name, column in reference["texts"].items():
        tokens = list(column["tokens"]) or [""]
        words = torch.randint(len(tokens), (SELFTEST_ROWS, SELFTEST_TOKENS), generator=generator)
        strings[name] = [" ".join(tokens[token] for token in row) for row in words.tolist()]
    answers = pipeline(numbers, strings, {name: pattern(SELFTEST_ROWS, shape) for name, shape in images.items()})
    return {
        "numbers": {name: [None if x != x else x for x in column.tolist()] for name, column in numbers.items()},
        "strings": strings,
        "answers": {name: values.tolist() for name, values in answers.items()},
    }


def prediction_histogram(pipeline: nn.Module, datamodule: TableDataModule) -> dict[str, Any]:
    """Returns the histogram of the predictions for the first validation rows: of values, or of confidences and
    labels."""
    answers = pipeline(*datamodule.raw("val", limit_rows(datamodule, HEAD)))
    target = datamodule.target
    if target.task == "regression":
        counts, edges = torch.histogram(answers["value"].double().cpu(), bins=20)
        return {"edges": edges.tolist(), "counts": counts.long().tolist()}
    confidence = answers["probabilities"].double().max(1).values
    counts, edges = torch.histogram(confidence, bins=20, range=(0.0, 1.0))
    labels = torch.bincount(answers["label"], minlength=len(target.classes)).tolist()
    return {
        "edges": edges.tolist(),
        "counts": counts.long().tolist(),
        "labels": dict(zip(target.classes, labels, strict=True)),
    }


def limit_rows(datamodule: TableDataModule, rows: int) -> int:
    """Returns `rows`, or fewer if rows have large images."""
    pixels = sum(math.prod(image.shape) for image in datamodule.inputs.images)
    return max(SELFTEST_ROWS, min(rows, PIXELS // pixels)) if pixels else rows
