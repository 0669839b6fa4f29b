"""Parameter groups: parameters without weight decay, and factors for optimizer settings by parameter name."""

import inspect
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from common.errors import InputError

Factors = Mapping[str, float]
"""Factors for the optimizer's `lr` and `weight_decay`."""


def split_parameters(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Returns the parameters with weight decay, and the other trainable parameters.

    The others are biases (by name), norms, embeddings and parameters of modules with the attribute `no_weight_decay`.
    """
    excluded = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) or getattr(module, "no_weight_decay", False)
        for parameter in module.parameters()
    }
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            is_weight = parameter.ndim >= 2 and id(parameter) not in excluded and not name.endswith("bias")
            (weights if is_weight else others).append(parameter)
    return weights, others


def parameter_groups(
    network: nn.Module, optimizer: Callable[..., Any], patterns: Mapping[str, Factors]
) -> list[dict[str, Any]]:
    """Returns parameter groups for `optimizer`, a partial with its settings: weights and others per pattern.

    `patterns` match parameter names as a shell matches file names, "a|b" matches a or b; the last matching pattern
    applies. Only weights have weight decay, see `split_parameters`. Each group has a `name` for messages. Raises
    InputError for a pattern that matches no parameter and for a setting that the optimizer does not have.
    """
    settings = inspect.signature(optimizer).parameters
    for setting in {setting for factors in patterns.values() for setting in factors}:
        if setting not in ("lr", "weight_decay") or setting not in settings:
            raise InputError(
                f"param_groups: {setting}: only lr and weight_decay have factors, if the optimizer has them."
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
        raise InputError(f"param_groups: no parameter matches {' or '.join(map(repr, unused))}; parameters: {names}.")
    return list(groups.values())
