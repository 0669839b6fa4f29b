"""Parameters in groups: what weight decay spares, and factors of the optimizer's settings by name."""

import inspect
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from common.errors import InputError

Factors = Mapping[str, float]
"""Of the optimizer's own `lr` and `weight_decay`."""


def split_parameters(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights, which are to be kept small; and all others that are trained: biases (by name), scales of norms,
    embeddings, and those of modules with the attribute `no_weight_decay`."""
    spared = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) or getattr(module, "no_weight_decay", False)
        for parameter in module.parameters()
    }
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            is_weight = parameter.ndim >= 2 and id(parameter) not in spared and not name.endswith("bias")
            (weights if is_weight else others).append(parameter)
    return weights, others


def parameter_groups(
    network: nn.Module, optimizer: Callable[..., Any], patterns: Mapping[str, Factors]
) -> list[dict[str, Any]]:
    """Groups for `optimizer`, a partial with its settings: one for each pair of factors, weights apart from others.

    `patterns` match names of parameters as a shell matches files, "a|b" what a or b matches; the last that matches a
    parameter counts. Others than weights have no weight decay. Each group has a `name` for messages. Raises InputError
    for a pattern that matches nothing, or where the optimizer has no such setting.
    """
    settings = inspect.signature(optimizer).parameters
    for setting in {setting for factors in patterns.values() for setting in factors}:
        if setting not in ("lr", "weight_decay") or setting not in settings:
            raise InputError(
                f"param_groups: {setting}: lr and weight_decay can be multiplied, where the optimizer has them."
            )
    weights = {id(parameter) for parameter in split_parameters(network)[0]}
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    used: set[str] = set()
    for name, parameter in network.named_parameters():
        matching = [key for key in patterns if any(fnmatchcase(name, each) for each in key.split("|"))]
        used.update(matching)
        if not parameter.requires_grad:
            continue
        pattern, is_weight = (matching or ["*"])[-1], id(parameter) in weights
        if (pattern, is_weight) not in groups:
            factors = patterns.get(pattern, {})
            group: dict[str, Any] = {"params": [], "name": f"{pattern} ({'weights' if is_weight else 'others'})"}
            if "lr" in factors:
                group["lr"] = settings["lr"].default * factors["lr"]
            if "weight_decay" in settings:
                decay = settings["weight_decay"].default * factors.get("weight_decay", 1.0)
                group["weight_decay"] = decay if is_weight else 0.0
            groups[pattern, is_weight] = group
        groups[pattern, is_weight]["params"].append(parameter)
    if unused := [pattern for pattern in patterns if pattern not in used]:
        names = ", ".join(name for name, _ in network.named_parameters())
        raise InputError(f"param_groups: no parameter is named {' or '.join(map(repr, unused))}; there are {names}.")
    return list(groups.values())
