"""An ensemble of several networks on the same rows."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Stacks the outputs of networks, or of their members, to (rows, members, k); `combine` averages them.

    The networks must have the same number of members, so that each has the same weight.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        outputs: list[Tensor] = []
        for network in self.networks:
            output = network(batch)
            if output.ndim == 2:
                output = output.unsqueeze(1)
            outputs += [output]
        return torch.cat(outputs, 1)
