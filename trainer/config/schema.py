"""The schema of the whole config: its keys with their types, and which arguments the run itself passes to the nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.config.signatures import Node


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
    """The keys at the top of the config."""

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


ALLOWED_TARGETS = ("datamodules", "models", "trainer", "torch", "torchmetrics", "torchvision", "pytorch_lightning")
"""Packages in which `_target_` may lie; the setting `allowed_targets` adds to them."""
PASSED: dict[str, frozenset[str]] = {
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
"""Arguments that the run passes to a node; the settings must not contain them."""
DEFAULTED: dict[str, frozenset[str]] = {"scheduler": frozenset({"total_steps", "mode"})}
"""Arguments that the run passes if the settings do not contain them."""
PARTIAL = frozenset({"optimizer", "scheduler", "export", "model.inputs", "model.inputs.text"})
"""Nodes that the run calls later, with `_partial_: true`; all others are built before the run."""
DIRECTIVES = {"_target_": str, "_partial_": bool, "_recursive_": bool, "_convert_": str}
"""Keys of a node for Hydra's instantiate, with their types."""
