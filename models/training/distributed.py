"""What the processes that train one network together share: sums, and with FSDP the weights."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from common.distributed import world_size

BLOCK = 1_000_000
"""Weights from which on a member of a list of modules is gathered by itself: smaller ones are not worth a message."""


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum of what all of them call it with; of one it is the value itself."""
    if world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def scale_loss_for_ddp(loss: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """The loss of this process's rows, a mean, so scaled that the mean of the processes' gradients is the gradient of
    the mean over the rows of all: their numbers of rows differ, and so do the weights of classes.

    `target` (rows,) of the rows; `weights` one a class.
    """
    if world_size() == 1:
        return loss
    own = target.new_tensor(len(target), dtype=torch.float32) if weights is None else weights[target].sum()
    return loss * own * world_size() / all_reduce_sum(own)


def broadcast_buffers(network: nn.Module) -> None:
    """Running statistics are of each process's own rows; those of rank 0 are kept."""
    if world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Leaves each process of the mesh its part of the weights, which are gathered while they are needed (FSDP2).

    Large members of a `ModuleList`, as the blocks of a transformer, are gathered one after the other.
    """
    from torch.distributed.fsdp import fully_shard

    for module in network.modules():
        for block in module if isinstance(module, nn.ModuleList) else ():
            if sum(parameter.numel() for parameter in block.parameters()) >= BLOCK:
                fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
