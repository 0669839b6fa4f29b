"""What Hydra calls for `cluster=NAME`: it takes plugins of this package alone, and finds them here by itself."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

from trainer.local import LocalLauncher
from trainer.slurm import SlurmLauncher


class Local(LocalLauncher):
    """As a plugin of Hydra."""


class Slurm(SlurmLauncher):
    """As a plugin of Hydra."""


@dataclass
class LocalSettings:
    _target_: str = "hydra_plugins.lathe.Local"
    n_jobs: int | None = None


store = ConfigStore.instance().store
store("local", LocalSettings, group="hydra/launcher", provider="lathe")
store("slurm", SlurmQueueConf(_target_="hydra_plugins.lathe.Slurm"), group="hydra/launcher", provider="lathe")
