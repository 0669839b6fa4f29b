"""Communication between the processes that train one network: sums, buffers and, with FSDP, weights."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from common.distributed import world_size

MIN_SHARD_SIZE = 1_000_000
"""Minimum number of weights of a block that is gathered separately; smaller ones are not worth a message."""


def all_reduce_sum(value: Tensor) -> Tensor:
    """Returns the sum of `value` over all processes; with one process, the value itself."""
    if world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def scale_loss_for_ddp(loss: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Scales the mean loss of this process so that DDP's mean gradient is that of the mean over all rows.

    Processes may differ in their number of rows and sum of class weights. `target`: (rows,); `weights`: (classes,).
    """
    if world_size() == 1:
        return loss
    own = target.new_tensor(len(target), dtype=torch.float32) if weights is None else weights[target].sum()
    return loss * own * world_size() / all_reduce_sum(own)


def broadcast_buffers(network: nn.Module) -> None:
    """Copies buffers of rank 0 to all processes: each has running statistics of its own rows."""
    if world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shards the weights over the processes of the mesh; they are gathered when needed (FSDP2).

    Large members of a `ModuleList`, such as the blocks of a transformer, are gathered separately.
    """
    from torch.distributed.fsdp import fully_shard  # here, because it is slow to import

    for module in network.modules():
        for block in module if isinstance(module, nn.ModuleList) else ():
            if sum(parameter.numel() for parameter in block.parameters()) >= MIN_SHARD_SIZE:
                fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
