"""Export of the artifact: a TorchScript file that predicts from raw rows, with a description in extra files."""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.torchscript import quiet
from datamodules.tabular import TableDataModule
from inference.artifact import TOLERANCE
from models.training.lightning_module import SupervisedModule
from models.training.prediction_head import PredictionHead, labels
from trainer.export.artifact_file import ExportError, write_artifact
from trainer.export.selftest import limit_rows, prediction_histogram

log = logging.getLogger(__name__)

PARITY_ROWS = 1024
"""Number of validation rows on which the artifact and the live model are compared."""


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
    return write_artifact(path, pipeline, facts, reference, metrics, config)


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
