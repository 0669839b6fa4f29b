"""Hydra's composition before the run: what the command and the YAML files give, and where each key comes from."""

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
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_store import ConfigStore
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
from trainer.config.settings import COMMAND, ROOT, Setting

# Hydra copies the store, of which there is one, for every composition and every choice that help lists, and changes no
# copy: half of the time that help takes.
_store: Any = ConfigStore
_store.__deepcopy__ = lambda store, memo: store

REFUSALS = (HydraException, OmegaConfBaseException, ValueError, AssertionError, yaml.YAMLError)
"""What composing raises where the settings are to blame."""


class Composer:
    """Composes as `hydra.main` will, one list of overrides after another. Mistakes of the command are set aside in
    `problems`; `forced` are the keys that no YAML file has and that Hydra takes only with "++" before them."""

    def __init__(self, hydra: Hydra, name: str) -> None:
        self.hydra = hydra
        self.name = name
        self.problems: set[Problem] = set()
        self.forced: set[str] = set()
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def parse(self, setting: Setting) -> Override | None:
        """None where it cannot be read, which composing reports."""
        try:
            return OverridesParser.create(self.hydra.config_loader).parse_overrides([setting.line])[0]
        except HydraException:
            return None

    def sweeps(self, setting: Setting) -> bool:
        """Whether it gives several values, one a job."""
        override = self.parse(setting)
        return override is not None and override.is_sweep_override()

    def jobs(self, base: "Composition", command: list[Setting]) -> list[list[Setting]]:
        """Jobs of a sweep in which each value of each swept key occurs, of numbers in a row the ends; not their
        product."""
        values = [each for setting in self.of_sweep(base, command) if (each := self._values(setting))]
        first = [each[0] for each in values]
        others = [[*first[:at], value, *first[at + 1 :]] for at, each in enumerate(values) for value in each[1:]]
        return [first, *others]

    def of_sweep(self, base: "Composition", command: list[Setting]) -> list[Setting]:
        """The settings of all jobs: those of the files that the command does not give, and the command's."""
        keys = {setting.key for setting in command}
        swept = OmegaConf.select(base.config, "hydra.sweeper.params") or {}
        of_files = [
            Setting(f"{key}={value}", base.where(f"hydra.sweeper.params.{key}"))
            for key, value in swept.items()
            if key not in keys
        ]
        return [*of_files, *command]

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
            self.problems.add(Problem(setting.where, setting.key, "sweeps over nothing: no value is left."))
        return [Setting(f"{override.get_key_element()}={value}", setting.where) for value in values]

    def compose(self, settings: list[Setting]) -> "Composition":
        """The composition of all settings that Hydra takes. Raises ConfigError where the files alone do not compose."""
        kept = [self.spelled(setting) for setting in settings]
        try:
            return Composition(self, kept, self._compose(kept))
        except REFUSALS:
            pass
        kept, config = [], self._compose_files()
        for setting in settings:
            attempts = [setting, Setting("++" + setting.line.lstrip("+"), setting.where)]
            for attempt in attempts[: 1 if setting.line.startswith("~") else 2]:
                try:
                    config = self._compose([*kept, attempt])
                except REFUSALS as error:
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

    def spelled(self, setting: Setting) -> Setting:
        """The setting as Hydra takes it."""
        return Setting("++" + setting.line.lstrip("+"), setting.where) if setting.key in self.forced else setting

    def _compose(self, settings: list[Setting]) -> DictConfig:
        lines = tuple(setting.line for setting in settings)
        if lines not in self._composed:  # a tenth of a second each
            self._composed[lines] = self.hydra.compose_config(self.name, list(lines), RunMode.RUN, from_shell=False)
        return self._composed[lines]

    def _compose_files(self) -> DictConfig:
        try:
            return self._compose([])
        except REFUSALS as error:
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
            given = setting.line.partition("=")[2] if setting else ""
            if (group, choice) == (key, given):
                pass  # The setting itself names it.
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
            return Problem(where, key, f"{value} is a sweep: add -m. A list is written {key}=[{value}].")
        if isinstance(error, OverrideParseException) and setting:
            reason = str(error).splitlines()[0]
            return Problem(where, setting.line, f"is not KEY=VALUE ({reason}). Quote odd values: KEY='VALUE'.")
        if (inside := re.match("In '([^']*)': .* raised while composing config:\n(.*)", str(error))) is not None:
            full = re.search("full_key: (.*)", str(error))
            return Problem(self.file(inside[1]), full[1] if full else key, f"{inside[2]}.")
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        return Problem(where, key, str(cause).strip().splitlines()[0].rstrip(".") + ".")

    def file(self, config_path: str) -> str:
        """The file of a config such as "model/mlp", relative to the project where it lies in it."""
        loaded = self.hydra.config_loader.repository.load_config(config_path)  # type: ignore[attr-defined]
        folder = loaded.path.removeprefix("file://") if loaded else "conf"
        return _relative(f"{folder}/{config_path}.yaml")


@dataclass
class Composition:
    """A composed config with the settings that made it."""

    composer: Composer
    settings: list[Setting]
    config: DictConfig

    def where(self, key: str) -> str:
        """The place that had the last word on a key, or on the nearest key above it, or on one below."""
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

    def references(self, key: str) -> set[str]:
        """The keys whose values stand in the value of a key, as `${monitor}` does."""
        value: Any = OmegaConf.to_container(self.config)
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return set(re.findall(r"\$\{([\w.]+)\}", value)) if isinstance(value, str) else set()

    def unknown_to_hydra(self) -> Iterator[tuple[str, str]]:
        """Keys below `hydra` that it does not read, and what is wrong with them."""
        nodes = [("hydra", self.config.hydra)]
        for key, node in nodes:
            fields = getattr(OmegaConf.get_type(node), "__dataclass_fields__", {})
            for name, child in node.items_ex(resolve=False):
                full = f"{key}.{name}"
                if fields and name not in fields and full != "hydra.env":  # which is in Hydra's own files alone
                    yield full, "unknown key." + did_you_mean(name, fields)
                elif isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                    nodes.append((full, child))

    @contextmanager
    def _in_run(self, folder: str, number: int = 0) -> Iterator[DictConfig]:
        """A copy of the config, while `${hydra:...}` stands for what it does in a run in `folder`."""
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
        """Where Hydra will write: the folder of a run, the folder of a sweep; and where runs are looked for."""
        with self._in_run("") as config:
            return config.hydra.run.dir, config.hydra.sweep.dir, config.paths.output

    def subfolder(self, number: int) -> str:
        """Of the job of this number, in the folder of the sweep."""
        with self._in_run("", number) as config:
            return str(config.hydra.sweep.subdir)

    def resolved(self, folder: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The plain config of a run in `folder`, "???" where nothing is given; and by key what could not be resolved,
        which is null in it."""
        unresolved: dict[str, str] = {}
        with self._in_run(folder) as typed:
            config = OmegaConf.create(OmegaConf.to_container(typed))  # Any key of it may be null.
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
    """Hydra's flags and the overrides of a command line; without `arguments`, of this process."""
    return get_args_parser().parse_args(arguments)


@contextmanager
def composer(arguments: argparse.Namespace) -> Iterator[Composer]:
    """A composer on the files that the command names; Hydra's global state is as before when it ends."""
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


def _relative(path: str) -> str:
    return str(Path(path).relative_to(ROOT)) if Path(path).is_relative_to(ROOT) else path
