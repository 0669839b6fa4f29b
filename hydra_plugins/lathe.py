"""Plugins for `cluster=NAME` and `search=NAME`. Hydra finds plugins only in this package."""

import sys
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

from trainer.config.hydra_internals import BasicSweeper, swept_settings
from trainer.sweep.local_launcher import LocalLauncher
from trainer.sweep.slurm_launcher import SlurmLauncher


class Local(LocalLauncher):
    """`trainer.sweep.local_launcher` as a plugin of Hydra."""


class Slurm(SlurmLauncher):
    """`trainer.sweep.slurm_launcher` as a plugin of Hydra."""


class Search(BasicSweeper):
    """`trainer.search.sweeper` as a plugin of Hydra."""

    def sweep(self, arguments: list[str]) -> None:
        from trainer.search import sweeper  # here, because Hydra imports its plugins for every command

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        lines = [*swept_settings(self), *arguments]
        sweeper.Search(self.config, self.launcher, self.hydra_context.config_loader, lines, run_trial).run()


def run_trial(arguments: list[str]) -> None:
    """Runs a trial of a search in this process, as `python train.py` does."""
    import train  # here, because train.py makes Hydra import this module
    from trainer.command.prepare import prepare

    sys.argv[1:] = prepare(arguments)
    train.start()


@dataclass
class LocalSettings:
    """Settings of `cluster=local`."""

    _target_: str = "hydra_plugins.lathe.Local"
    n_jobs: int | None = None


store = ConfigStore.instance().store
store("local", LocalSettings, group="hydra/launcher", provider="lathe")
store("slurm", SlurmQueueConf(_target_="hydra_plugins.lathe.Slurm"), group="hydra/launcher", provider="lathe")
