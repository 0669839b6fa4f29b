"""The check of a composed config: every key against the signature of what it configures, and pairs that contradict."""

import dataclasses
import importlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from models.training.metric_names import HIGHER_IS_BETTER, NAMES, THRESHOLD_FOR
from trainer.config import validate_processes
from trainer.config.errors import did_you_mean
from trainer.config.signature_cache import SignatureCache
from trainer.config.signatures import (
    MISSING,
    Arguments,
    Node,
    dataclass_of,
    describe,
    fits,
    holds,
    is_node,
    item_hint,
    literals,
    options,
    show,
)


@dataclass
class Paths:
    data: str
    output: str
    cache: str | None


@dataclass
class Search:
    n_trials: int
    n_jobs: int
    sampler: Literal["tpe", "random", "grid", "cmaes"]
    pruner: Literal["median", "hyperband", "none"]
    objectives: dict[str, Literal["min", "max"]]
    storage: str | None
    overrides: Sequence[str]
    study: str | None
    trial: int | None


@dataclass
class Sweep:
    resume: str | None


@dataclass
class Root:
    """The schema of the whole config."""

    data: Node
    model: Node
    augment: Node | None
    loss: Node
    optimizer: Node
    scheduler: Node | None
    trainer: Node
    callbacks: Mapping[str, Node | None] | None
    logger: Mapping[str, Node | None] | None
    export: Node | None
    paths: Paths
    seed: int
    monitor: str
    mode: Literal["min", "max"]
    l1: float
    threshold: float | str
    calibrate: bool
    param_groups: dict[str, dict[str, float]]
    lr_find: bool
    search: Search | None
    study: str | None
    resume: str | None
    sweep: Sweep
    cross_validate: int | None
    ensemble: int | None
    n_jobs: int | Literal["auto"]
    test: bool
    baselines: bool
    allowed_targets: Sequence[str]


ALLOWED = ("datamodules", "models", "trainer", "torch", "torchmetrics", "torchvision", "pytorch_lightning")
FILLED: dict[str, frozenset[str]] = {
    "model": frozenset({"spec", "outputs"}),
    "model.inputs": frozenset({"spec"}),
    "model.inputs.text": frozenset({"spec"}),
    "augment": frozenset({"spec"}),
    "loss": frozenset({"target"}),
    "optimizer": frozenset({"params"}),
    "scheduler": frozenset({"optimizer"}),
    "export": frozenset({"path", "datamodule", "module", "metrics", "config", "calibration"}),
    "trainer": frozenset({"callbacks", "logger", "default_root_dir"}),
}
"""Arguments that the run gives."""
OFFERED: dict[str, frozenset[str]] = {"scheduler": frozenset({"total_steps", "mode"})}
"""Arguments that the run gives where the settings do not."""
PARTIAL = frozenset({"optimizer", "scheduler", "export", "model.inputs", "model.inputs.text"})
"""Nodes that are called in the course of the run; the others are built before."""
DIRECTIVES = {"_target_": str, "_partial_": bool, "_recursive_": bool, "_convert_": str}


def check(config: dict[str, Any]) -> list[tuple[str, str]]:
    """All problems of a plain config: the full key of each, and what is wrong."""
    checker = Checker(config)
    checker.fields(config, Arguments.of_dataclass(Root), "")
    checker.remembered.keep()
    return [*checker.problems, *out_of_range(config), *contradictions(config, checker.takes)]


class Checker:
    """Walks a plain config beside its schema and collects what does not fit."""

    def __init__(self, config: dict[str, Any]) -> None:
        extra = config.get("allowed_targets")
        self.allowed = [*ALLOWED, *(str(name).rstrip(".") for name in (extra if isinstance(extra, list) else ()))]
        self.problems: list[tuple[str, str]] = []
        self.takes: dict[str, Arguments] = {}
        self.remembered = SignatureCache()

    def fields(self, given: dict[str, Any], takes: Arguments, key: str, filled: frozenset[str] = frozenset()) -> None:
        for name, value in given.items():
            full = _join(key, name)
            if name in filled:
                self._report(full, "is filled in by the run: leave it out.")
            elif name in takes.hints:
                self.value(value, takes.hints[name], full)
            elif not takes.open:
                known = sorted(takes.hints.keys() - filled)
                choices = f" Known are {', '.join(known)}." if known else ""
                self._report(full, "unknown key." + (did_you_mean(str(name), known) or choices))
            else:
                self.value(value, Any, full)
        for name in sorted(takes.required - filled - given.keys()):
            hint = takes.hints[name]
            self._report(_join(key, name), "must be given" + ("." if hint is Any else f", {describe(hint)}."))

    def value(self, value: Any, hint: Any, key: str) -> None:
        if value == MISSING:
            self._report(key, f"must be given, {describe(hint)}: {key}=VALUE.")
        elif is_node(value):
            self.node(value, key)
        elif isinstance(value, dict) and (schema := dataclass_of(hint)) is not None:
            self.fields(value, Arguments.of_dataclass(schema), key)
        elif isinstance(value, dict) and value and Node in options(hint):
            for name in value:
                self._report(_join(key, name), f"nothing takes it: {key} has no _target_. Choose one by {key}=NAME.")
        elif isinstance(value, dict | list) and holds(value, hint):
            for name, child in value.items() if isinstance(value, dict) else enumerate(value):
                self.value(child, item_hint(hint, value, name), _join(key, name))
        elif not fits(value, hint):
            near = did_you_mean(value, literals(hint)) if isinstance(value, str) else ""
            self._report(key, f"must be {describe(hint)}; it is {show(value)}.{near}")

    def node(self, node: dict[str, Any], key: str) -> None:
        """A node against the signature of its target."""
        path = node["_target_"]
        for name, hint in DIRECTIVES.items():
            if name in node:
                self.value(node[name], hint, _join(key, name))
        partial = node.get("_partial_") is True
        if key in PARTIAL:
            if not partial:
                self._report(_join(key, "_partial_"), "must be true: the run itself calls it.")
        elif partial and ("." not in key or key.rpartition(".")[0] in ("callbacks", "logger")):
            self._report(_join(key, "_partial_"), "must be false: the run takes it built.")
        if not isinstance(path, str) or path == MISSING:
            return
        package = path.partition(".")[0]
        if "." not in path:
            self._report(_join(key, "_target_"), f"must be a module and a name in it; it is {show(path)}.")
            return
        if not self._allowed(path):
            allowed = f"Allowed are {', '.join(self.allowed)}; allowed_targets=[{package}] adds to them."
            near = did_you_mean(package, self.allowed)
            self._report(_join(key, "_target_"), f"{path} is outside the allowed packages.{near} {allowed}")
            return
        try:
            takes = self.arguments(path)
        except ImportError as error:
            self._report(_join(key, "_target_"), str(error))
            return
        self.takes[key] = takes
        offered = OFFERED.get(key, frozenset())
        takes = dataclasses.replace(takes, required=takes.required - offered)
        given = {name: value for name, value in node.items() if name not in DIRECTIVES}
        self.fields(given, takes, key, FILLED.get(key, frozenset()))

    def arguments(self, path: str) -> Arguments:
        """What a target takes. Raises ImportError where there is none of this name."""
        found = self.remembered.get(path)
        if found is None:
            found = Arguments.of(locate(path))
            if path.partition(".")[0] in ALLOWED:  # Of other packages nobody knows when they change.
                self.remembered.add(path, found)
        return found

    def _allowed(self, path: str) -> bool:
        return any(f"{path}.".startswith(f"{prefix}.") for prefix in self.allowed)

    def _report(self, key: str, what: str) -> None:
        self.problems.append((key, what))


def locate(path: str) -> Any:
    """The class or function of this name. Raises ImportError with the cause in its own words."""
    from trainer.config.fast_imports import fast_imports  # what is remembered need not wait for it

    module, _, name = path.rpartition(".")
    try:
        with fast_imports():
            found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # Whatever the module raises.
        raise ImportError(f"cannot import {module}: {type(error).__name__}: {error}") from error
    if not callable(found):
        near = did_you_mean(name, dir(sys.modules[module]))
        raise ImportError(f"{module} has no class or function {name}.{near}")
    return found


def out_of_range(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Numbers and names that no run can use."""
    for key, highest, words in (
        ("seed", 2**32 - 1, "from 0 to 4294967295"),
        ("l1", sys.float_info.max, "finite, 0 or more"),
    ):
        value = config.get(key)
        if isinstance(value, int | float) and not 0 <= value <= highest:
            yield key, f"must be {words}; it is {show(value)}."
    for key in ("cross_validate", "ensemble"):
        runs = config.get(key)
        if isinstance(runs, int) and runs < 2:
            yield key, f"must be 2 or more; it is {runs}."
    search, trainer = (node if isinstance(node := config.get(key), dict) else {} for key in ("search", "trainer"))
    for key in ("n_trials", "n_jobs"):
        number = search.get(key)
        if isinstance(number, int) and number < 1:
            yield f"search.{key}", f"must be 1 or more; it is {number}."
    objectives = search.get("objectives")
    if isinstance(objectives, dict) and (monitor := config.get("monitor")) in objectives:
        yield "search.objectives", f"{monitor} is the monitor, which is compared anyway: leave it out."
    storage = search.get("storage")
    if isinstance(storage, str) and re.search("://[^/]*:[^/]*@", storage):
        yield (
            "search.storage",
            "a password in it would be written into the folder of every trial: leave it to the driver of the database,"
            " which reads PGPASSWORD or ~/.pgpass for PostgreSQL.",
        )
    for key, count in (("n_jobs", config.get("n_jobs")), ("trainer.threads", trainer.get("threads"))):
        if isinstance(count, int) and count < 1:
            yield key, f"must be 1 or more, or auto; it is {count}."
    threshold = config.get("threshold")
    if isinstance(threshold, int | float) and not 0 <= threshold <= 1:
        yield "threshold", f"must be from 0 to 1; it is {show(threshold)}."
    if isinstance(threshold, str) and threshold not in THRESHOLD_FOR and not threshold.startswith("f1/"):
        near = did_you_mean(threshold, THRESHOLD_FOR)
        yield (
            "threshold",
            f"none is chosen for {threshold}.{near} It may be a number, {', '.join(THRESHOLD_FOR)} or f1/CLASS.",
        )


def contradictions(config: dict[str, Any], takes: Mapping[str, Arguments]) -> Iterator[tuple[str, str]]:
    """Settings that are each right, but not together."""
    if config.get("cross_validate") is not None:
        yield from _cross_validation(config)
    model = config.get("model")
    words = isinstance(model, dict) and model.get("_target_") == "models.architectures.word2vec.Word2Vec"
    if config.get("ensemble") is not None and words:
        yield "ensemble", "the vectors of Word2Vec cannot be averaged: leave it out."
    for key in ("cross_validate", "ensemble"):
        if config.get(key) is not None and config.get("resume") is not None:
            yield (
                "resume",
                f"goes on with one run, not with {key}: give the command again with hydra.run.dir=FOLDER, and the runs"
                " that are done are left out.",
            )
    yield from validate_processes.problems(config)
    if config.get("lr_find") is True and "optimizer" in takes and "lr" not in takes["optimizer"].hints:
        yield "lr_find", f"{config['optimizer']['_target_']} takes no lr to be found: leave lr_find out."
    trainer = config.get("trainer")
    nodes = {"": config} | {f"callbacks.{name}": node for name, node in (config.get("callbacks") or {}).items()}
    for key, node in nodes.items():
        if isinstance(node, dict):
            yield from _monitor(key, node.get("monitor"), node.get("mode"))
    if isinstance(trainer, dict):
        if trainer.get("accelerator") == "cpu" and trainer.get("precision") in ("16-mixed", "16", 16):
            yield "trainer.precision", "16-mixed is for GPUs, but trainer.accelerator=cpu: take bf16-mixed or 32-true."
        if trainer.get("limit_val_batches") == 0 and str(config.get("monitor")).startswith("val/"):
            yield (
                "trainer.limit_val_batches",
                f"0 leaves nothing to measure monitor={config['monitor']} on: take 1 or more, or monitor=train/loss.",
            )
        endless = trainer.get("max_epochs") == -1 and trainer.get("max_steps", -1) == -1
        needs = "scheduler" in takes and "total_steps" in takes["scheduler"].required
        if endless and needs and "total_steps" not in config["scheduler"]:
            yield (
                "scheduler",
                f"{config['scheduler']['_target_']} needs the length of the run, but trainer.max_epochs and"
                " trainer.max_steps are both -1: set one, or take scheduler=none.",
            )


def _cross_validation(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a cross-validation sets itself."""
    data = config.get("data")
    split = data.get("split") if isinstance(data, dict) else None
    if not isinstance(split, dict):
        yield "cross_validate", "needs data.split, which this data has not."
    elif split.get("fold") is not None:
        yield "data.split.fold", f"is set by cross_validate={config['cross_validate']} for each run: leave it out."
    if config.get("test") is False:
        yield "test", "false leaves out what cross_validate is for: take test=true."
    if config.get("ensemble") is not None:
        yield "ensemble", "cannot be joined with cross_validate, whose artefact averages its folds: leave one out."


def _monitor(key: str, monitor: Any, mode: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(monitor, str):
        return
    metrics = {name for names in NAMES.values() for name in names}
    logged = ["train/loss", "val/loss", *(f"val/{name}" for name in sorted(metrics))]
    if monitor not in logged and not monitor.startswith("val/f1/"):
        near = did_you_mean(monitor, logged)
        yield _join(key, "monitor"), f"no model logs {monitor}.{near} It may be {', '.join(logged)} or val/f1/CLASS."
        return
    better = "max" if monitor.split("/")[1] in HIGHER_IS_BETTER else "min"
    if mode in ("min", "max") and mode != better:
        yield _join(key, "mode"), f"{mode} contradicts monitor={monitor}, of which {better} is better: mode={better}."


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)
