"""Selection of the members of an ensemble network on validation rows."""

import torch
from torch import Tensor, nn

from models.training.prediction_head import combine


@torch.no_grad()
def choose_members(output: Tensor, truth: Tensor, loss: nn.Module, task: str, keep: int) -> list[int]:
    """Greedily chooses the `keep` members of `output` (rows, members, k) whose mean has the smallest loss."""
    chosen: list[int] = []
    while len(chosen) < keep:
        candidates = [member for member in range(output.shape[1]) if member not in chosen]
        losses = [float(loss(combine(output[:, [*chosen, member]], task), truth)) for member in candidates]
        chosen.append(candidates[losses.index(min(losses))])
    return sorted(chosen)
