"""Private names of Hydra and OmegaConf: the only module that uses them. Checked with hydra-core 1.3.8, omegaconf 2.3.1.

Importing it changes two things in Hydra for the whole process: copies of its config store, and the reading of files.
"""

from typing import TYPE_CHECKING, Any

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from trainer.config.renamed import rename_config
from trainer.config.settings import relative_to_root

if TYPE_CHECKING:
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

__all__ = [
    "BasicLauncher",
    "BasicSweeper",
    "Hydra",
    "create_config_search_path",
    "full_key",
    "get_args_parser",
    "has_value",
    "load_file",
    "swept_settings",
]


def __getattr__(name: str) -> Any:
    """Looks up Hydra's plugins at each use: Hydra executes their modules again when it searches for plugins."""
    if name == "BasicLauncher":
        from hydra._internal.core_plugins.basic_launcher import BasicLauncher

        return BasicLauncher
    if name == "BasicSweeper":
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        return BasicSweeper
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def full_key(node: DictConfig) -> str:
    """The key of a node from the root of its config, such as "callbacks.checkpoint"."""
    return str(node._get_full_key(None))


def has_value(node: DictConfig) -> bool:
    """Returns whether a node is neither null nor missing."""
    return not node._is_none() and not node._is_missing()


def load_file(hydra: Hydra, config_path: str) -> ConfigResult | None:
    """The content of a config such as "model/mlp", and the folder that has it; None where there is no such file."""
    loaded: ConfigResult | None = hydra.config_loader.repository.load_config(config_path)  # type: ignore[attr-defined]
    return loaded


def swept_settings(sweeper: "BasicSweeper") -> list[str]:
    """The overrides in `hydra.sweeper.params`."""
    lines: list[str] = sweeper._parse_config()
    return lines


# Hydra copies the store for every composition and for every choice that --help lists, half of the time that --help
# takes. There is one store, and no copy is changed.
_store: Any = ConfigStore
_store.__deepcopy__ = lambda store, memo: store

_load_config = ConfigRepository.load_config


def _load_renamed(repository: ConfigRepository, config_path: str) -> ConfigResult | None:
    """Loads a config as before; in one from a YAML file, replaces old names (`trainer.config.renamed`)."""
    loaded = _load_config(repository, config_path)
    if loaded is not None and loaded.path.startswith("file://") and isinstance(loaded.config, DictConfig):
        plain: Any = OmegaConf.to_container(loaded.config)
        is_root = "/" not in config_path or loaded.header.get("package") == "_global_"
        where = f"{loaded.path.removeprefix('file://')}/{config_path.removesuffix('.yaml')}.yaml"
        renamed = rename_config(plain, relative_to_root(where), is_root=is_root)
        if renamed != plain:
            loaded.config = OmegaConf.create(renamed)
    return loaded


_repository: Any = ConfigRepository
_repository.load_config = _load_renamed
