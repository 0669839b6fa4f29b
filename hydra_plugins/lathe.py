"""What Hydra calls for `search=NAME`: it takes plugins of this package alone, and finds them here by itself."""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class Search(BasicSweeper):
    """`trainer.search.Search` as a sweeper of Hydra."""

    def sweep(self, arguments: list[str]) -> None:
        from trainer import search

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        lines = [*self._parse_config(), *arguments]
        search.Search(self.config, self.launcher, self.hydra_context.config_loader, lines).run()
