"""Settings and artifacts for use from Python; `trainer.main.train` runs what `compose` returns.

from trainer import compose, load, train

result = train(compose("data=adult", "model=mlp"))
answers = load(result.folder / "model.pt").predict(frame)
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from trainer.command.prepare import prepare
from trainer.config.composer import composer, parse_arguments
from trainer.config.errors import ConfigError
from trainer.config.settings import Setting

if TYPE_CHECKING:
    from inference.artifact import Artifact
    from models.training.lightning_module import SupervisedModule


@dataclass(frozen=True)
class Result:
    """Result of a run. `metrics` are those of metrics.json, `value` is the monitored one, `folder` is the run folder;
    `module` has the best weights, and is None for a cross-validation or an ensemble."""

    metrics: dict[str, float]
    value: float
    folder: Path
    module: "SupervisedModule | None"


def compose(*overrides: str) -> DictConfig:
    """The checked config of one run, as train.py composes it; its node `hydra` holds the run folder.

    Raises ConfigError with all mistakes in the settings.
    """
    options = parse_arguments(prepare(overrides))
    with composer(options) as composing:
        base = composing.compose([Setting(line) for line in options.overrides])
        if base.config.hydra.mode is RunMode.MULTIRUN:
            raise ConfigError("compose: these settings are a sweep; compose one run, or use python train.py -m.")
        folder = str(Path(base.folders()[0]).absolute())
        config = base.config.copy()
    with open_dict(config):
        config.hydra.runtime.output_dir = folder
        config.hydra.job.num, config.hydra.job.id = 0, "0"
    return config


def load(path: str | Path) -> "Artifact":
    """A trained model from a model.pt; see `Artifact.predict`. Raises ArtifactError where the file cannot be used."""
    from inference.artifact import Artifact  # here, because the check of the settings does not wait for torch

    return Artifact.load(path)


@contextmanager
def hydra_context(config: DictConfig) -> Iterator[tuple[DictConfig, Path]]:
    """The config without its node `hydra`, and the run folder; `${hydra:...}` refers to that node meanwhile.

    In a process that Hydra has not started, messages go to train.log, and to the console if no handler receives them.
    """
    if "hydra" not in config:  # Hydra has started this process
        yield config, Path(HydraConfig.get().runtime.output_dir)
        return
    instance = HydraConfig.instance()
    before = instance.cfg
    instance.set_config(config)
    own = config.copy()
    with open_dict(own):
        del own["hydra"]
    folder = Path(config.hydra.runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _log_to(folder / "train.log"):
            yield own, folder
    finally:
        instance.cfg = before


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handlers: list[logging.Handler] = [file] if root.handlers else [file, logging.StreamHandler(sys.stdout)]
    root.setLevel(min(level, logging.INFO))
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
        file.close()
