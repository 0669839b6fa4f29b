"""Hydra's composition before the run: what the command and the YAML files give, and where each key comes from."""

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from trainer.problems import ConfigError, Problem, did_you_mean

ROOT = Path(__file__).parents[1]
COMMAND = "command line"


@dataclass(frozen=True)
class Setting:
    """An override, such as `model.dropout=0.2`, and where it was given."""

    line: str
    where: str = COMMAND

    @property
    def key(self) -> str:
        return re.split("[=@]", self.line.lstrip("+~"), maxsplit=1)[0]


class Composer:
    """Composes as `hydra.main` will, one list of overrides after another. Mistakes of the command are set aside in
    `problems`; `forced` are the keys that no YAML file has and that Hydra takes only with "++" before them."""

    def __init__(self, hydra: Hydra, name: str) -> None:
        self.hydra = hydra
        self.name = name
        self.problems: set[Problem] = set()
        self.forced: set[str] = set()

    def parse(self, setting: Setting) -> Override | None:
        """None, and a problem, where the override cannot be read."""
        try:
            return OverridesParser.create(self.hydra.config_loader).parse_override(setting.line)
        except OverrideParseException as error:
            reason = str(error).splitlines()[0]
            self._report(setting.where, setting.line, f"is not KEY=VALUE ({reason}). Quote odd values: KEY='VALUE'.")
            return None

    def compose(self, settings: list[Setting]) -> "Composition":
        """The composition of all settings that Hydra takes. Raises ConfigError where the files alone do not compose."""
        kept = [self._forced(setting) for setting in settings]
        try:
            return Composition(self, kept, self._compose(kept))
        except (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError):
            pass
        kept, config = [], self._compose_files()
        for setting in settings:
            attempts = [setting, Setting("++" + setting.line.lstrip("+"), setting.where)]
            for attempt in attempts[: 1 if setting.line.startswith("~") else 2]:
                try:
                    config = self._compose([*kept, attempt])
                except (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
                    if attempt is setting:
                        problem = self._problem(error, setting)
                else:
                    kept.append(attempt)
                    if attempt is not setting:
                        self.forced.add(setting.key)
                    break
            else:
                self.problems.add(problem)
        return Composition(self, kept, config)

    def _forced(self, setting: Setting) -> Setting:
        return Setting("++" + setting.line, setting.where) if setting.key in self.forced else setting

    def _compose(self, settings: list[Setting]) -> DictConfig:
        return self.hydra.compose_config(
            self.name, [setting.line for setting in settings], RunMode.RUN, from_shell=False
        )

    def _compose_files(self) -> DictConfig:
        try:
            return self._compose([])
        except (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"A setting is wrong:\n  {self._problem(error, None)}") from error

    def _problem(self, error: Exception, setting: Setting | None) -> Problem:
        """What Hydra refused, in the form of the other problems."""
        where, key = (setting.where, setting.key) if setting else (self.file(self.name), "defaults")
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            mark = error.problem_mark
            return Problem(_relative(mark.name), f"line {mark.line + 1}, column {mark.column + 1}", f"{error.problem}.")
        if isinstance(error, MissingConfigException) and error.missing_cfg_file:
            group, _, choice = error.missing_cfg_file.rpartition("/")
            parent = re.match("In '([^']*)'", str(error))
            if parent and parent[1] != self.name:
                where, key = self.file(parent[1]), group
            elif group != key and setting:
                where, key = self.file(f"{key}/{setting.line.partition('=')[2]}"), group
            if not group:
                where, key = COMMAND, "--config-name"
            known = self.hydra.config_loader.get_group_options(group)
            options = sorted(option for option in known if not option.startswith("_"))
            choices = f" The choices are {', '.join(options)}." if options else ""
            return Problem(where, key, f"there is no choice {choice}.{did_you_mean(choice, options)}{choices}")
        if str(error).startswith("Ambiguous value") and setting:
            value = setting.line.partition("=")[2]
            return Problem(where, key, f"{value} is a sweep: add -m. A list is written {key}=[{value}].")
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        return Problem(where, key, str(cause).strip().splitlines()[0].rstrip(".") + ".")

    def file(self, config_path: str) -> str:
        """The file of a config such as "model/mlp", relative to the project where it lies in it."""
        loaded = self.hydra.config_loader.repository.load_config(config_path)  # type: ignore[attr-defined]
        folder = loaded.path.removeprefix("file://") if loaded else "conf"
        return _relative(f"{folder}/{config_path}.yaml")

    def _report(self, where: str, key: str, what: str) -> None:
        self.problems.add(Problem(where, key, what))


@dataclass
class Composition:
    """A composed config with the settings that made it."""

    composer: Composer
    settings: list[Setting]
    config: DictConfig

    def where(self, key: str) -> str:
        """The place that had the last word on a key, or on the nearest key above it."""
        while key:
            place = self._command(key) or self._file(key)
            if place:
                return place
            key = key.rpartition(".")[0]
        return self.composer.file(self.composer.name)

    def _command(self, key: str) -> str | None:
        groups = self.config.hydra.runtime.choices
        for setting in reversed(self.settings):
            whole = setting.key not in groups or "={" in setting.line
            if whole and f"{key}.".startswith(f"{setting.key}."):
                return setting.where
        return None

    def _file(self, key: str) -> str | None:
        loader = self.composer.hydra.config_loader
        for default in reversed(self._defaults):
            package = default.package or ""
            inside = f"{key}.".startswith(f"{package}.") or not package
            if default.config_path is None or not inside:
                continue
            loaded = loader.repository.load_config(default.config_path)  # type: ignore[attr-defined]
            rest = key.removeprefix(package).lstrip(".")
            if loaded is not None and _has(OmegaConf.to_container(loaded.config), rest):
                return self.composer.file(default.config_path)
        return None

    @cached_property
    def _defaults(self) -> list[ResultDefault]:
        lines = [setting.line for setting in self.settings]
        loader = self.composer.hydra.config_loader
        found: list[ResultDefault] = loader.compute_defaults_list(self.composer.name, lines, RunMode.RUN).defaults
        return found

    def resolved(self, folder: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The plain config of a run in `folder`, "???" where nothing is given; and by key what could not be resolved,
        which is null in it."""
        config = self.config.copy()
        with open_dict(config):
            config.hydra.runtime.output_dir = folder
            config.hydra.job.num = 0
            config.hydra.job.id = "0"
        unresolved: dict[str, str] = {}
        instance = HydraConfig.instance()
        before = instance.cfg
        instance.set_config(config)
        try:
            while True:
                try:
                    plain: Any = OmegaConf.to_container(config, resolve=True)
                    return plain, unresolved
                except OmegaConfBaseException as error:
                    unresolved[error.full_key or ""] = str(error).splitlines()[0]
                    OmegaConf.update(config, error.full_key or "", None)
        finally:
            instance.cfg = before


@contextmanager
def composer(arguments: argparse.Namespace) -> Iterator[Composer]:
    """A composer on the files that the command names; Hydra's global state is as before when it ends."""
    version.setbase("1.3")
    folder = ROOT / (arguments.config_path or "conf")
    path = create_config_search_path(str(folder))
    if arguments.config_dir is not None:
        path.prepend(provider="command-line", path=f"file://{Path(arguments.config_dir).absolute()}")
    hydra = Hydra.create_main_hydra2("train", path)
    try:
        yield Composer(hydra, (arguments.config_name or "train").removesuffix(".yaml"))
    finally:
        GlobalHydra.instance().clear()


def _has(tree: Any, key: str) -> bool:
    for name in key.split(".") if key else []:
        if not isinstance(tree, dict) or name not in tree:
            return False
        tree = tree[name]
    return True


def _relative(path: str) -> str:
    return str(Path(path).relative_to(ROOT)) if Path(path).is_relative_to(ROOT) else path
