"""FSDP: weights, gradients and the optimizer's state are sharded across processes; checkpoints are not."""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

IMPLEMENTATION = ("fused", "foreach")
"""Optimizer settings that choose an implementation; they differ for sharded and for whole weights."""


class Sharded(ModelParallelStrategy):
    """torch's `fully_shard` (FSDP2) over `world` processes. A checkpoint is one file, as written by one process."""

    def __init__(self, world: int) -> None:
        super().__init__(data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        # Lightning would number the parameters in the order of the network; an optimizer numbers them by group.
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        named: Any = get_optimizer_state_dict(self._network(), optimizer, options=options)
        if not self.is_global_zero:
            return {}
        return _renamed(named, {name: number for number, name in enumerate(_parameters(named["param_groups"]))})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint: dict[str, Any] = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
        network, options = self._network(), StateDictOptions(full_state_dict=True)
        set_model_state_dict(network, checkpoint["state_dict"], options=options)
        names = {parameter: name for name, parameter in network.named_parameters()}
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            ordered = [names[parameter] for parameter in _parameters(optimizer.param_groups)]
            named = _renamed(saved, dict(zip(_parameters(saved["param_groups"]), ordered, strict=True)))
            for group, other in zip(named["param_groups"], optimizer.param_groups, strict=True):
                group.update({name: other[name] for name in IMPLEMENTATION if name in other})
                other.update({name: value for name, value in group.items() if name != "params"})
            if named["state"]:  # plain SGD has none
                # Not strict, because a parameter that never had a gradient has no state.
                options = StateDictOptions(full_state_dict=True, strict=False)
                set_optimizer_state_dict(network, optimizer, named, options=options)
        return checkpoint

    def _network(self) -> nn.Module:
        assert self.model is not None
        return self.model


def _parameters(groups: list[dict[str, Any]]) -> list[Any]:
    """The parameters of an optimizer, or their names or numbers, in its order."""
    return [parameter for group in groups for parameter in group["params"]]


def _renamed(state: dict[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns an optimizer's state with its parameters renamed."""
    groups = [{**group, "params": [names[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[name]: values for name, values in state["state"].items()}, "param_groups": groups}
