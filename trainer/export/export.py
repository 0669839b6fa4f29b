"""The artefact: one TorchScript file that takes raw rows and answers, with its description beside the code."""

import copy
import hashlib
import io
import json
import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.atomic_write import atomic_write
from common.errors import InputError
from common.torchscript import quiet
from datamodules.preparation.pipeline import HEAD
from datamodules.tabular import TableDataModule
from inference.artifact import FORMAT, TOLERANCE, pattern
from models.training.lightning_module import SupervisedModule
from models.training.prediction_head import PredictionHead, labels
from trainer.export.model_card import model_card
from trainer.folders.layout import resume_command

log = logging.getLogger(__name__)

PARITY_ROWS = 1024
SELFTEST_ROWS = 64
PIXELS = 32_000_000
"""Of the images that go through the network at once: its activations are many times as large."""
SELFTEST_TOKENS = 8
"""Words of a made-up text."""


class ExportError(InputError):
    """The artefact was not written; what was wrong, and that nothing was left behind."""


class Pipeline(nn.Module):
    """Raw columns -> answers: the whole way of a row, scripted into the artefact."""

    def __init__(self, features: nn.Module, network: nn.Module, answer: PredictionHead, threshold: float) -> None:
        super().__init__()
        self.features = features
        self.network = network
        self.answer = answer
        self.task = answer.task
        self.threshold = threshold

    def forward(
        self, numbers: dict[str, Tensor], strings: dict[str, list[str]], images: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """`numbers`: float64 or int64 (rows,), NaN for missing; `strings`: a cell a row, "" for missing; `images`:
        uint8 (rows, C, H, W). Returns `probabilities` (rows, classes) and `label` int64 (rows,), or `value` (rows,).
        """
        answers = self.answer(self.network(self.features(numbers, strings, images)))
        if self.task == "regression":
            return {"value": answers}
        return {"probabilities": answers, "label": labels(answers, self.task, self.threshold)}


def export(
    path: Path,
    datamodule: TableDataModule,
    module: SupervisedModule,
    metrics: Mapping[str, float],
    config: Mapping[str, Any],
    calibration: Mapping[str, Any] | None,
) -> Path:
    """Scripts the trained pipeline and writes it to `path` with its extra files, whole or not at all.

    `calibration`: of classes, what `plots.draw` returns. Raises ExportError where the artefact and the live
    model differ on validation rows, or the disk does not take it.
    """
    target, answer = datamodule.target, module.answer.cpu()
    threshold, regression = module.threshold, target.task == "regression"
    network = copy.deepcopy(module.network).cpu().eval().requires_grad_(False)
    with quiet():
        pipeline = torch.jit.script(Pipeline(datamodule.features, network, answer, threshold))
    _check_parity(pipeline, datamodule, module)

    described = datamodule.describe()
    reference = described["reference"] | {"predictions": _histogram(pipeline, datamodule)}
    facts = {
        "columns": described["columns"],
        "unused": described["unused"],
        "missing": list(datamodule.missing),
        "target": described["target"],
        "threshold": threshold if target.task == "binary" else None,
        "temperature": None if regression else answer.temperature,
        "clamp": [answer.low, answer.high] if regression else None,
        "calibration": calibration,
    }
    return save(path, pipeline, facts, reference, metrics, config)


def save(
    path: Path,
    pipeline: nn.Module,
    facts: Mapping[str, Any],
    reference: Mapping[str, Any],
    metrics: Mapping[str, float],
    config: Mapping[str, Any],
) -> Path:
    """Writes a scripted pipeline and its extra files; `facts`: what `spec.json` says of columns, target and answers."""
    spec = {
        "format": FORMAT,
        **facts,
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
        "versions": {name: version(name) for name in ("torch", "pytorch-lightning", "polars")},
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    shapes = {column["name"]: tuple(column["shape"]) for column in facts["columns"] if column["kind"] == "image"}
    extra = {
        "spec.json": json.dumps(spec),
        "reference.json": json.dumps(reference),
        "selftest.json": json.dumps(_selftest(pipeline, reference, shapes)),
        "card.md": model_card(spec, config),
    }
    buffer = io.BytesIO()
    with quiet():
        torch.jit.save(pipeline, buffer, _extra_files=extra)
    try:
        atomic_write(path, buffer.getbuffer())
    except OSError as error:
        raise ExportError(
            f"{path}: the artefact ({buffer.tell() / 1e6:.2f} MB) was not written: {error.strerror}. Nothing was left"
            f" behind; make room, then go on with: {resume_command(path.parent)}"
        ) from error
    return path


def _rows(datamodule: TableDataModule, most: int) -> int:
    """So many rows, fewer where they have large images."""
    pixels = sum(math.prod(image.shape) for image in datamodule.inputs.images)
    return max(SELFTEST_ROWS, min(most, PIXELS // pixels)) if pixels else most


def _check_parity(pipeline: nn.Module, datamodule: TableDataModule, module: SupervisedModule) -> None:
    """Compares the artefact on raw validation rows with the live model on the encoded ones."""
    rows = _rows(datamodule, PARITY_ROWS)
    raw = datamodule.raw("val", rows)
    batch = {name: values.to(module.device) for name, values in datamodule.head("val", rows).items()}
    was_training = module.training
    module.eval()
    with torch.inference_mode():
        live = module.predict(module(batch)).cpu()
        answers = pipeline(*raw)
    module.train(was_training)
    artefact = answers["value" if datamodule.target.task == "regression" else "probabilities"]
    unit = datamodule.target.scale if datamodule.target.task == "regression" else 1.0
    difference = float((artefact - live).abs().max() / unit)
    if not difference <= TOLERANCE:  # NaN fails too
        raise ExportError(
            f"The artefact and the live model differ by {difference:.2g} on validation rows (at most {TOLERANCE:.0e} is"
            " allowed), so no artefact was written: a layer of the network does something else when it is scripted."
        )


def _histogram(pipeline: nn.Module, datamodule: TableDataModule) -> dict[str, Any]:
    """How the answers to the first validation rows are spread: values, or confidences and labels."""
    answers = pipeline(*datamodule.raw("val", _rows(datamodule, HEAD)))
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


def _selftest(
    pipeline: nn.Module, reference: Mapping[str, Any], images: Mapping[str, tuple[int, int, int]]
) -> dict[str, Any]:
    """Made-up rows, drawn column by column from the reference, with the answers that they must get."""
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
        drawn = torch.multinomial(shares, SELFTEST_ROWS, replacement=True, generator=generator)
        strings[name] = [levels[code] for code in drawn.tolist()]
    for name, column in reference["texts"].items():
        tokens = list(column["tokens"]) or [""]
        drawn = torch.randint(len(tokens), (SELFTEST_ROWS, SELFTEST_TOKENS), generator=generator)
        strings[name] = [" ".join(tokens[token] for token in row) for row in drawn.tolist()]
    answers = pipeline(numbers, strings, {name: pattern(SELFTEST_ROWS, shape) for name, shape in images.items()})
    return {
        "numbers": {name: [None if x != x else x for x in column.tolist()] for name, column in numbers.items()},
        "strings": strings,
        "answers": {name: values.tolist() for name, values in answers.items()},
    }
