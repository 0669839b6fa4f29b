"""Composes the config before the run, and finds the file or argument that each key comes from."""

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from trainer.config.errors import ConfigError, Problem, did_you_mean, raise_all
from trainer.config.hydra_internals import Hydra, create_config_search_path, get_args_parser, has_value, load_file
from trainer.config.settings import COMMAND, ROOT, Setting, relative_to_root

COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, ValueError, AssertionError, yaml.YAMLError)
"""Exceptions that composing raises for wrong settings."""


class Composer:
    """Composes lists of overrides in the way of `hydra.main`.

    `problems` collects the mistakes of the command; `forced` are keys that are in no YAML file, so that Hydra accepts
    them only with "++".
    """

    def __init__(self, hydra: Hydra, name: str) -> None:
        self.hydra = hydra
        self.name = name
        self.problems: set[Problem] = set()
        self.forced: set[str] = set()
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def parse(self, setting: Setting) -> Override | None:
        """The parsed override; None if it is not valid, which composing reports."""
        try:
            return OverridesParser.create(self.hydra.config_loader).parse_overrides([setting.line])[0]
        except HydraException:
            return None

    def is_sweep(self, setting: Setting) -> bool:
        """Returns whether a setting has several values, one for each job."""
        override = self.parse(setting)
        return override is not None and override.is_sweep_override()

    def jobs(self, base: "Composition", command: list[Setting]) -> list[list[Setting]]:
        """Jobs that contain each value of each swept key at least once, not their product; the ends of ranges."""
        values = [each for setting in self.sweep_settings(base, command) if (each := self._values(setting))]
        first = [each[0] for each in values]
        others = [[*first[:at], value, *first[at + 1 :]] for at, each in enumerate(values) for value in each[1:]]
        return [first, *others]

    def sweep_settings(self, base: "Composition", command: list[Setting]) -> list[Setting]:
        """The settings of a sweep: the command, and `hydra.sweeper.params` of the files for other keys."""
        keys = {setting.key for setting in command}
        swept = OmegaConf.select(base.config, "hydra.sweeper.params") or {}
        from_files = [
            Setting(f"{key}={value}", base.where(f"hydra.sweeper.params.{key}"))
            for key, value in swept.items()
            if key not in keys
        ]
        return [*from_files, *command]

    def _values(self, setting: Setting) -> list[Setting]:
        override = self.parse(setting)
        if override is None or not override.is_sweep_override():
            return [setting]
        if not override.is_discrete_sweep():
            interval = override.value()
            assert isinstance(interval, IntervalSweep)
            values = [str(interval.start), str(interval.end)]
        else:
            values = list(override.sweep_string_iterator())
            if override.is_range_sweep():
                values = list(dict.fromkeys([*values[:1], *values[-1:]]))
        if not values:
            self.problems.add(Problem(setting.where, setting.key, "has no value to sweep over."))
        return [Setting(f"{override.get_key_element()}={value}", setting.where) for value in values]

    def compose(self, settings: list[Setting]) -> "Composition":
        """Composes the settings that Hydra accepts; the others become `problems`.

        Raises ConfigError if the files alone cannot be composed.
        """
        kept = [self.with_prefix(setting) for setting in settings]
        try:
            return Composition(self, kept, self._compose(kept))
        except COMPOSE_ERRORS:
            pass
        kept, config = [], self._compose_files()
        for setting in settings:
            attempts = [setting, Setting("++" + setting.line.lstrip("+"), setting.where)]
            for attempt in attempts[: 1 if setting.line.startswith("~") else 2]:
                try:
                    config = self._compose([*kept, attempt])
                except COMPOSE_ERRORS as error:
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

    def with_prefix(self, setting: Setting) -> Setting:
        """The setting with "++" if Hydra needs it."""
        return Setting("++" + setting.line.lstrip("+"), setting.where) if setting.key in self.forced else setting

    def _compose(self, settings: list[Setting]) -> DictConfig:
        lines = tuple(setting.line for setting in settings)
        if lines not in self._composed:  # each takes a tenth of a second
            self._composed[lines] = self.hydra.compose_config(self.name, list(lines), RunMode.RUN, from_shell=False)
        return self._composed[lines]

    def _compose_files(self) -> DictConfig:
        try:
            return self._compose([])
        except COMPOSE_ERRORS as error:
            raise ConfigError(f"A setting is wrong:\n  {self._problem(error, None)}") from error

    def _problem(self, error: Exception, setting: Setting | None) -> Problem:
        """The problem that an error of Hydra or OmegaConf describes."""
        where, key = (setting.where, setting.key) if setting else (self.file(self.name), "defaults")
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            mark = error.problem_mark
            return Problem(
                relative_to_root(mark.name), f"line {mark.line + 1}, column {mark.column + 1}", f"{error.problem}."
            )
        if isinstance(error, MissingConfigException) and error.missing_cfg_file:
            group, _, choice = error.missing_cfg_file.rpartition("/")
            parent = re.match("In '([^']*)'", str(error))
            given = setting.line.partition("=")[2] if setting else ""
            if (group, choice) == (key, given):
                pass  # the setting itself names the choice
            elif parent and parent[1] != self.name:
                where, key = self.file(parent[1]), group
            elif group != key and setting:
                where, key = self.file(f"{key}/{given}"), group
            if not group:
                where, key = COMMAND, "--config-name"
            known = self.hydra.config_loader.get_group_options(group)
            options = sorted(option for option in known if not option.startswith("_"))
            choices = f" The choices are {', '.join(options)}." if options else ""
            return Problem(where, key, f"there is no choice {choice}.{did_you_mean(choice, options)}{choices}")
        if str(error).startswith("Ambiguous value") and setting:
            value = setting.line.partition("=")[2]
            return Problem(where, key, f"{value} is a sweep: add -m. For a list write {key}=[{value}].")
        if isinstance(error, OverrideParseException) and setting:
            reason = str(error).splitlines()[0]
            return Problem(where, setting.line, f"is not KEY=VALUE ({reason}). Quote special characters: KEY='VALUE'.")
        if (inside := re.match("In '([^']*)': .* raised while composing config:\n(.*)", str(error))) is not None:
            full = re.search("full_key: (.*)", str(error))
            return Problem(self.file(inside[1]), full[1] if full else key, f"{inside[2]}.")
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        return Problem(where, key, str(cause).strip().splitlines()[0].rstrip(".") + ".")

    def file(self, config_path: str) -> str:
        """The file of a config such as "model/mlp"; relative if it is in the project."""
        loaded = load_file(self.hydra, config_path)
        folder = loaded.path.removeprefix("file://") if loaded else "conf"
        return relative_to_root(f"{folder}/{config_path}.yaml")


@dataclass
class Composition:
    """A composed config with the settings it was composed from."""

    composer: Composer
    settings: list[Setting]
    config: DictConfig

    def where(self, key: str) -> str:
        """The file or argument that set a key last; else the one of the nearest key above, or of a key below."""
        below = [setting.where for setting in self.settings if setting.key.startswith(f"{key}.")]
        while key:
            node = key.rpartition(".")[0]
            for each in (key, f"{node}._target_"):
                place = self._command(each) or self._file(each)
                if place:
                    return place
            key = node
        return below[-1] if below else self.composer.file(self.composer.name)

    def _command(self, key: str) -> str | None:
        groups = self.config.hydra.runtime.choices
        for setting in reversed(self.settings):
            is_value = setting.key not in groups or "={" in setting.line
            if is_value and f"{key}.".startswith(f"{setting.key}."):
                return setting.where
        return None

    def _file(self, key: str) -> str | None:
        for default in reversed(self._defaults):
            package = default.package or ""
            in_package = f"{key}.".startswith(f"{package}.") or not package
            if default.config_path is None or not in_package:
                continue
            loaded = load_file(self.composer.hydra, default.config_path)
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

    def references(self, key: str) -> set[str]:
        """The keys that the value of a key refers to, such as `${monitor}`."""
        value: Any = OmegaConf.to_container(self.config)
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return set(re.findall(r"\$\{([\w.]+)\}", value)) if isinstance(value, str) else set()

    def unknown_to_hydra(self) -> Iterator[tuple[str, str]]:
        """Yields the keys below `hydra` that Hydra does not know, and what is wrong with them."""
        nodes = [("hydra", self.config.hydra)]
        for key, node in nodes:
            fields = getattr(OmegaConf.get_type(node), "__dataclass_fields__", {})
            for name, child in node.items_ex(resolve=False):
                full = f"{key}.{name}"
                if fields and name not in fields and full != "hydra.env":  # only Hydra's own files have it
                    yield full, "unknown key." + did_you_mean(name, fields)
                elif isinstance(child, DictConfig) and has_value(child):
                    nodes.append((full, child))

    @contextmanager
    def _run_context(self, folder: str, number: int = 0) -> Iterator[DictConfig]:
        """A copy of the config; meanwhile `${hydra:...}` resolves as in a run in `folder`."""
        config = self.config.copy()
        with open_dict(config):
            config.hydra.runtime.output_dir = folder
            config.hydra.job.num = number
            config.hydra.job.id = str(number)
        instance = HydraConfig.instance()
        before = instance.cfg
        instance.set_config(config)
        try:
            yield config
        finally:
            instance.cfg = before

    def folders(self) -> tuple[str, str, str]:
        """The folder of a run, the folder of a sweep, and the folder in which resume=auto searches for runs."""
        with self._run_context("") as config:
            return config.hydra.run.dir, config.hydra.sweep.dir, config.paths.output

    def subfolder(self, number: int) -> str:
        """The folder of job `number`, relative to the folder of the sweep."""
        with self._run_context("", number) as config:
            return str(config.hydra.sweep.subdir)

    def resolved(self, folder: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The plain config of a run in `folder`, and the errors of values that cannot be resolved, by key.

        In the config, these values are null, and required values that are not given are "???".
        """
        unresolved: dict[str, str] = {}
        with self._run_context(folder) as typed:
            config = OmegaConf.create(OmegaConf.to_container(typed))  # without types: any value may become null
            while True:
                try:
                    plain: Any = OmegaConf.to_container(config, resolve=True)
                    del plain["hydra"]
                    return plain, unresolved
                except OmegaConfBaseException as error:
                    key = error.full_key or ""
                    if not key or key in unresolved:
                        raise ConfigError(f"A setting is wrong:\n  {error}") from error
                    unresolved[key] = str(error).splitlines()[0] + "."
                    OmegaConf.update(config, key, None, force_add=True)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses Hydra's flags and the overrides of a command line, by default of this process."""
    return get_args_parser().parse_args(arguments)


@contextmanager
def composer(arguments: argparse.Namespace) -> Iterator[Composer]:
    """A composer for the config files that the command names; restores Hydra's global state at the end."""
    version.setbase("1.3")
    folder = ROOT / (arguments.config_path or "conf")
    folders = {"--config-path": folder, "--config-dir": Path(arguments.config_dir or ROOT)}
    raise_all(Problem(COMMAND, key, f"there is no folder {at}.") for key, at in folders.items() if not at.is_dir())
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
