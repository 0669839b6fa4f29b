"""Shared code of cross-validation and ensembles: child runs, each in its own folder below the run folder."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from trainer.config.errors import ConfigError
from trainer.config.renamed import load_config
from trainer.folders.layout import LAST, checkpoints
from trainer.folders.status import lock_folder


def child_config(config: DictConfig, folder: Path, changes: Mapping[str, Any]) -> DictConfig:
    """Returns the config of the child run in `folder`, which resumes from its last checkpoint if there is one.

    Raises ConfigError if the run was started with other settings.
    """
    own = config.copy()
    for key, value in changes.items():
        OmegaConf.update(own, key, value, force_add=True)
    own.resume = str(folder / LAST) if (folder / LAST).exists() else None
    _check_same(own, folder)
    return own


def check_unchanged(config: DictConfig, folder: Path, free: Collection[str] = ()) -> None:
    """Raises ConfigError if a run in the folder was started with other settings. Those in `free` may change."""
    if checkpoints(folder):
        _check_same(config, folder, free)


def summary(runs: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Mean and standard deviation (n - 1) of each metric; NaN if a run lacks it."""
    metrics: dict[str, float] = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        values = [math.nan if (value := run.get(name)) is None else value for run in runs]
        metrics[name] = float(np.mean(values))
        metrics[f"{name}/std"] = float(np.std(values, ddof=1))
    return metrics


@contextmanager
def child_run_context(folder: Path) -> Iterator[None]:
    """Locks the folder and makes it `${hydra:runtime.output_dir}`, where callbacks and loggers write."""
    folder.mkdir(exist_ok=True)
    instance = HydraConfig.instance()
    before: Any = instance.cfg
    changed = before.copy()
    with read_write(changed.hydra), open_dict(changed.hydra):
        changed.hydra.runtime.output_dir = str(folder)
    instance.set_config(changed)
    try:
        with lock_folder(folder):
            yield
    finally:
        instance.cfg = before


def _check_same(config: DictConfig, folder: Path, free: Collection[str] = ()) -> None:
    if not (folder / "config.yaml").exists():
        return
    before: Any = OmegaConf.to_container(load_config(folder / "config.yaml"))
    now: Any = OmegaConf.to_container(config, resolve=True)
    keys = sorted((before.keys() | now.keys()) - {"resume", "n_jobs", *free})
    changed = [key for key in keys if before.get(key) != now.get(key)]
    if changed:
        raise ConfigError(
            f"{folder} was started with other values of {', '.join(changed)} (see its config.yaml): restore them, or"
            " choose another hydra.run.dir."
        )
