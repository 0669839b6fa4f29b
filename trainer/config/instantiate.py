"""Settings: what is checked before a run, and how their nodes become objects."""

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


def check_monitor(monitor: str, target: TargetSpec) -> None:
    """Raises ConfigError where no model logs `monitor` for this target."""
    names = ["train/loss", "val/loss", *(f"val/{name}" for name in NAMES[target.task])]
    if target.task != "regression":
        names += [f"val/f1/{name}" for name in target.classes]
    if monitor not in names:
        raise ConfigError(
            f"monitor: {monitor!r} is not logged for the target {target.name!r} ({target.task})."
            f"{did_you_mean(monitor, names)} It may be {', '.join(names)}."
        )


def instantiate(node: DictConfig | None, **arguments: Any) -> Any:
    """Builds what the node's `_target_` says, of plain Python containers; None for a null or an empty node.

    `_partial_` nodes give a function. A node without `_target_` gives a dict of what its nodes build, those that are
    null left out. What a constructor refuses is a ConfigError with the node's full key.
    """
    if not node:
        return None
    if "_target_" not in node:
        built = {str(name): instantiate(child) for name, child in node.items()}
        return {name: value for name, value in built.items() if value is not None}
    key = node._get_full_key(None)
    # The arguments are given at the call: Hydra itself would turn dataclasses among them into configs.
    build = _settings_errors(key, functools.partial(hydra.utils.instantiate, node, _convert_="all", _partial_=True))()
    build = _settings_errors(key, build)
    return build if node.get("_partial_") else build(**arguments)


def _settings_errors(key: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with the same signature, whose refusals are ConfigErrors."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        from lightning_fabric.utilities.exceptions import MisconfigurationException

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
