"""Average of several artifacts, such as the folds of a cross-validation: the mean of their predictions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.torchscript import quiet
from models.training.prediction_head import labels
from trainer.config.errors import ConfigError
from trainer.export.artifact_file import write_artifact

SAME = ("classes", "task", "name")
"""Entries of the target in which all artifacts must agree."""


class Average(nn.Module):
    """Mean prediction of several artifacts, with the same inputs and outputs as each of them."""

    def __init__(self, pipelines: Sequence[nn.Module], task: str, threshold: float) -> None:
        super().__init__()
        self.pipelines = nn.ModuleList(pipelines)
        self.task = task
        self.threshold = threshold

    def forward(
        self, numbers: dict[str, Tensor], strings: dict[str, list[str]], images: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        name = "value" if self.task == "regression" else "probabilities"
        answers: list[Tensor] = []
        for pipeline in self.pipelines:
            answers += [pipeline(numbers, strings, images)[name]]
        mean = torch.stack(answers).mean(0)
        if self.task == "regression":
            return {"value": mean}
        return {"probabilities": mean, "label": labels(mean, self.task, self.threshold)}


def average(path: Path, artifacts: Sequence[Path], metrics: Mapping[str, float], config: Mapping[str, Any]) -> Path:
    """Writes the average of the artifacts to `path`.

    Its threshold is the mean of their thresholds. `metrics` are passed in, because no row is left on which none of
    them was trained. A level or value is known if one artifact knows it; the reference for drift is from the first
    one. Raises ConfigError if their targets have different classes.
    """
    pipelines, specs, references = [], [], []
    for artifact in artifacts:
        extra = {"spec.json": "", "reference.json": ""}
        with quiet():
            pipelines.append(torch.jit.load(str(artifact), map_location="cpu", _extra_files=extra))
        specs.append(json.loads(extra["spec.json"]))
        references.append(json.loads(extra["reference.json"]))
    first = specs[0]
    for spec in specs:
        if any(spec["target"][key] != first["target"][key] for key in SAME):
            raise ConfigError(
                f"cross_validate: no artifact was written, because the classes of {first['target']['name']!r} differ"
                " between folds. Drop rare classes, or use export=none."
            )
    thresholds = [spec["threshold"] for spec in specs]
    threshold = 0.5 if None in thresholds else sum(thresholds) / len(thresholds)
    facts = {
        "columns": [_merged(columns) for columns in zip(*(spec["columns"] for spec in specs), strict=True)],
        "unused": first["unused"],
        "missing": first["missing"],
        "target": first["target"],
        "threshold": None if None in thresholds else threshold,
        "temperature": None,
        "clamp": None,
        "calibration": None,
    }
    with quiet():
        pipeline = torch.jit.script(Average(pipelines, first["target"]["task"], threshold))
    return write_artifact(path, pipeline, facts, references[0], metrics, config)


def _merged(columns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merges the descriptions of a column in all artifacts."""
    merged = dict(columns[0])
    if "missing" in merged:
        merged["missing"] = any(column["missing"] for column in columns)
    if "min" in merged:
        merged["min"] = min(column["min"] for column in columns)
        merged["max"] = max(column["max"] for column in columns)
    if "levels" in merged:
        merged["levels"] = list(dict.fromkeys(level for column in columns for level in column["levels"]))
    return merged
