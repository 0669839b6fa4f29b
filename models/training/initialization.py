"""Initialization of a network from training rows."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
START_ROWS = 4096
"""Number of training rows passed to the `start` of a network that has no attribute `start_rows`."""


@runtime_checkable
class Starts(Protocol):
    """A network that initializes itself from data before training."""

    def start(self, batch: Batch) -> None: ...


def start_network(network: nn.Module, sample: Callable[[int], Batch]) -> None:
    """Calls `network.start` if there is one, in eval mode without gradients; leaves the network in training mode.

    `sample` returns a batch with the given number of training rows.
    """
    if not isinstance(network, Starts):
        return
    batch = sample(getattr(network, "start_rows", START_ROWS))
    network.eval()
    with torch.no_grad():
        network.start(batch)
    network.train()
