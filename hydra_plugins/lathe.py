"""What Hydra calls for `cluster=NAME` and `search=NAME`: it takes plugins of this package alone, and finds them here by
itself."""

import sys
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

from trainer.sweep.local_launcher import LocalLauncher
from trainer.sweep.slurm_launcher import SlurmLauncher


class Local(LocalLauncher):
    """As a plugin of Hydra."""


class Slurm(SlurmLauncher):
    """As a plugin of Hydra."""


class Search(BasicSweeper):
    """`trainer.search.sweeper` as a plugin of Hydra."""

    def sweep(self, arguments: list[str]) -> None:
        from trainer.search import sweeper

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        lines = [*self._parse_config(), *arguments]
        sweeper.Search(self.config, self.launcher, self.hydra_context.config_loader, lines, run_trial).run()


def run_trial(arguments: list[str]) -> None:
    """Runs a trial of a search in this process, as `python train.py` does."""
    import train  # here, because train.py makes Hydra import this module
    from trainer.command.prepare import prepare

    sys.argv[1:] = prepare(arguments)
    train.start()


@dataclass
class LocalSettings:
    _target_: str = "hydra_plugins.lathe.Local"
    n_jobs: int | None = None


store = ConfigStore.instance().store
store("local", LocalSettings, group="hydra/launcher", provider="lathe")
store("slurm", SlurmQueueConf(_target_="hydra_plugins.lathe.Slurm"), group="hydra/launcher", provider="lathe")
