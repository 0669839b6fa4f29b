"""What cross-validation and ensembles share: several runs, each in a folder of its own below the run's."""

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
    """The config of the run in `folder`, which goes on where it was broken off.

    Raises ConfigError where it was begun with other settings.
    """
    own = config.copy()
    for key, value in changes.items():
        OmegaConf.update(own, key, value, force_add=True)
    own.resume = str(folder / LAST) if (folder / LAST).exists() else None
    _check_same(own, folder)
    return own


def check_begun(config: DictConfig, folder: Path, free: Collection[str] = ()) -> None:
    """Raises ConfigError where one of the runs in the folder was begun with other settings, but for those that are
    `free`."""
    if checkpoints(folder):
        _check_same(config, folder, free)


def summary(runs: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Mean and deviation of each metric, NaN where a run has none."""
    metrics: dict[str, float] = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        values = [math.nan if (value := run.get(name)) is None else value for run in runs]
        metrics[name] = float(np.mean(values))
        metrics[f"{name}/std"] = float(np.std(values, ddof=1))
    return metrics


@contextmanager
def child_run_context(folder: Path) -> Iterator[None]:
    """`${hydra:runtime.output_dir}`, where callbacks and loggers write, is this folder, which no other run may use."""
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
            f"{folder} was begun with other settings of {', '.join(changed)} (its config.yaml): leave them"
            " as they were, or choose another hydra.run.dir."
        )
