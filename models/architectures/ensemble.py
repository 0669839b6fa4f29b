"""Several networks that answer the same rows."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Gives (rows, members, k): the answers of all networks, or of their members, side by side; their mean of
    probabilities or values is the answer. The networks are of one kind, so that each counts alike."""

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
