"""Writes a scripted pipeline and its description as one file, `model.pt`."""

import hashlib
import io
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.atomic_write import atomic_write
from common.errors import InputError
from common.torchscript import quiet
from inference.artifact import FORMAT
from trainer.export.model_card import model_card
from trainer.export.selftest import selftest
from trainer.folders.layout import resume_command


class ExportError(InputError):
    """The artifact could not be written. No partial file is left."""


def write_artifact(
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
