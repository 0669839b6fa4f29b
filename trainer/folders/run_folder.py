"""Files that a run writes into its folder, in addition to checkpoints and events."""

import json
import math
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import polars as pl
import torch
from omegaconf import DictConfig, OmegaConf

from common.atomic_write import atomic_write
from datamodules.audit.audit import Finding, to_json
from inference.writers import as_input_error, writing

PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "polars",
    "scikit-learn",
    "numpy",
)


def write_begun(folder: Path, config: DictConfig) -> None:
    """Writes what is needed to repeat the run: the resolved config, versions, machine, and the state of the code."""
    _write(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    facts = {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "cuda": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "git": {"commit": _git("rev-parse", "HEAD"), "changed": _git("status", "--porcelain").splitlines()},
    }
    _write(folder / "environment.json", json.dumps(facts, indent=2))


def write_quarantine(folder: Path, quarantine: pl.DataFrame | None) -> None:
    """Writes the rejected rows, if there are any."""
    if quarantine is not None and len(quarantine):
        with writing(str(folder / "quarantine.parquet")) as write:
            write(quarantine)


def write_audit(folder: Path, findings: Sequence[Finding] | None) -> None:
    """Writes all findings of the audit, of which the log has the first; None if the audit did not run."""
    if findings is not None:
        _write(folder / "audit.json", to_json(findings))


def write_metrics(folder: Path, metrics: Mapping[str, float]) -> None:
    """Writes the metrics as one flat JSON object; an undefined metric (NaN) is null."""
    plain = {name: value if math.isfinite(value) else None for name, value in sorted(metrics.items())}
    _write(folder / "metrics.json", json.dumps(plain, indent=2))


def read_metrics(folder: Path) -> dict[str, float]:
    """The metrics of a finished run; empty if the run has not finished."""
    path = folder / "metrics.json"
    if not path.exists():
        return {}
    return {name: math.nan if value is None else value for name, value in json.loads(path.read_text()).items()}


def _write(path: Path, text: str) -> None:
    with as_input_error(str(path)):
        atomic_write(path, text.encode())


def _git(*arguments: str) -> str:
    root = Path(__file__).parents[2]
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
