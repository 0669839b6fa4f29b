"""One artefact of the folds of a cross-validation: the mean of their answers, each with the features of its fold."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.torchscript import quiet
from models.training.prediction_head import labels
from trainer.config.errors import ConfigError
from trainer.export.export import save

SAME = ("classes", "task", "name")
"""What the targets of all folds must agree in."""


class Average(nn.Module):
    """Raw columns -> the mean of the answers of several artefacts; takes and gives what each of them does."""

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
    """Writes the mean of the artefacts to `path`.

    Its threshold is the mean of theirs, its `metrics` are given: no row is left that none of them trained on. A level
    or a value counts as known where one of them knows it; the reference for drift is the first one's. Raises
    ConfigError where their targets have other classes.
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
                "cross_validate: no artefact was written, because some folds have other classes of"
                f" {first['target']['name']!r} than others: leave rare classes out, or take export=none."
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
    return save(path, pipeline, facts, references[0], metrics, config)


def _merged(columns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A column as all folds together have seen it."""
    merged = dict(columns[0])
    if "missing" in merged:
        merged["missing"] = any(column["missing"] for column in columns)
    if "min" in merged:
        merged["min"] = min(column["min"] for column in columns)
        merged["max"] = max(column["max"] for column in columns)
    if "levels" in merged:
        merged["levels"] = list(dict.fromkeys(level for column in columns for level in column["levels"]))
    return merged
