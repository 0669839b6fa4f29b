"""Export of the artifact: a TorchScript file that predicts from raw rows, with a description in extra files."""

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
from datamodules.tabular import TableDataModule
from inference.artifact import FORMAT, TOLERANCE
from models.training.lightning_module import SupervisedModule
from models.training.prediction_head import PredictionHead, labels
from trainer.export.model_card import model_card
from trainer.export.selftest import limit_rows, prediction_histogram, selftest
from trainer.folders.layout import resume_command

log = logging.getLogger(__name__)

PARITY_ROWS = 1024
"""Number of validation rows on which the artifact and the live model are compared."""


class ExportError(InputError):
    """The artifact could not be written. No partial file is left."""


class Pipeline(nn.Module):
    """Features, network and prediction head: maps raw columns to predictions. It is scripted into the artifact."""

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
        """`numbers`: float64 or int64 (rows,), NaN for missing; `strings`: one cell per row, "" for missing;
        `images`: uint8 (rows, C, H, W). Returns `probabilities` (rows, classes) and `label` int64 (rows,), or `value`
        (rows,).
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
    """Scripts the trained pipeline and writes it atomically to `path`, with its extra files.

    `calibration`: return value of `plots.draw`. Raises ExportError if the artifact and the live model differ on
    validation rows, or if the file cannot be written.
    """
    target, answer = datamodule.target, module.answer.cpu()
    threshold, regression = module.threshold, target.task == "regression"
    network = copy.deepcopy(module.network).cpu().eval().requires_grad_(False)
    with quiet():
        pipeline = torch.jit.script(Pipeline(datamodule.features, network, answer, threshold))
    _check_parity(pipeline, datamodule, module)

    described = datamodule.describe()
    reference = described["reference"] | {"predictions": prediction_histogram(pipeline, datamodule)}
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
    """Writes a scripted pipeline and its extra files. `facts`: entries of `spec.json` for columns, target and so on."""
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
        "selftest.json": json.dumps(selftest(pipeline, reference, shapes)),
        "card.md": model_card(spec, config),
    }
    buffer = io.BytesIO()
    with quiet():
        torch.jit.save(pipeline, buffer, _extra_files=extra)
    try:
        atomic_write(path, buffer.getbuffer())
    except OSError as error:
        raise ExportError(
            f"{path}: the artifact ({buffer.tell() / 1e6:.2f} MB) was not written: {error.strerror}. No partial file is"
            f" left. Free disk space, then continue with: {resume_command(path.parent)}"
        ) from error
    return path


def _check_parity(pipeline: nn.Module, datamodule: TableDataModule, module: SupervisedModule) -> None:
    """Compares the artifact on raw validation rows with the live model on the encoded rows."""
    rows = limit_rows(datamodule, PARITY_ROWS)
    raw = datamodule.raw("val", rows)
    batch = {name: values.to(module.device) for name, values in datamodule.head("val", rows).items()}
    was_training = module.training
    module.eval()
    with torch.inference_mode():
        live = module.predict(module(batch)).cpu()
        answers = pipeline(*raw)
    module.train(was_training)
    scripted = answers["value" if datamodule.target.task == "regression" else "probabilities"]
    unit = datamodule.target.scale if datamodule.target.task == "regression" else 1.0
    difference = float((scripted - live).abs().max() / unit)
    if not difference <= TOLERANCE:  # NaN fails too
        raise ExportError(
            f"The artifact was not written: on validation rows it differs from the live model by {difference:.2g} (at"
            f" most {TOLERANCE:.0e} is allowed). A layer of the network computes something else when scripted."
        )
