"""Builds objects from the nodes of the config, and reports errors of their constructors with the key of the node."""

import functools
from collections.abc import Callable
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from common.errors import InputError
from datamodules.schema import TargetSpec
from models.training.metric_names import NAMES
from trainer.config.errors import ConfigError, did_you_mean
from trainer.config.hydra_internals import full_key


def check_monitor(monitor: str, target: TargetSpec) -> None:
    """Raises ConfigError if no model logs the metric `monitor` for this target."""
    names = ["train/loss", "val/loss", *(f"val/{name}" for name in NAMES[target.task])]
    if target.task != "regression":
        names += [f"val/f1/{name}" for name in target.classes]
    if monitor not in names:
        raise ConfigError(
            f"monitor: {monitor!r} is not logged for the target {target.name!r} ({target.task})."
            f"{did_you_mean(monitor, names)} It may be {', '.join(names)}."
        )


def instantiate(node: DictConfig | None, **arguments: Any) -> Any:
    """Calls the `_target_` of a node with its other keys, as plain Python containers, and `arguments`.

    Returns None for a null or empty node, a function for a node with `_partial_`, and for a node without `_target_` a
    dict of what its child nodes build, without those that are null. Raises ConfigError with the full key of the node if
    the constructor rejects an argument.
    """
    if not node:
        return None
    if "_target_" not in node:
        built = {str(name): instantiate(child) for name, child in node.items()}
        return {name: value for name, value in built.items() if value is not None}
    key = full_key(node)
    # The arguments are passed in a call of our own: Hydra would convert dataclasses among them to configs.
    build = _settings_errors(key, functools.partial(hydra.utils.instantiate, node, _convert_="all", _partial_=True))()
    build = _settings_errors(key, build)
    return build if node.get("_partial_") else build(**arguments)


def _settings_errors(key: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function so that its errors about arguments become ConfigErrors with the key."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        from lightning_fabric.utilities.exceptions import MisconfigurationException  # here, because it imports torch

        try:
            return function(*args, **kwargs)
        except (InstantiationException, MisconfigurationException, TypeError, ValueError) as error:
            cause: BaseException = error
            while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
                cause = cause.__cause__
            if isinstance(cause, InputError):
                raise cause from None
            if not isinstance(cause, InstantiationException | MisconfigurationException | TypeError | ValueError):
                raise
            message = str(cause)
            raise ConfigError(message if message.startswith(key) else f"{key}: {message}") from cause

    return call
