"""What a network's output means: the one function that turns it into answers, in training and in the artefact."""

import torch
from torch import Tensor


def answer(output: Tensor, task: str, mean: float, scale: float) -> Tensor:
    """Output (rows, k) -> probabilities (rows, classes), or values (rows,) in the target's units. Scriptable.

    A binary network gives one logit, that of class 1; class 0 has logit 0.
    """
    if task == "regression":
        return output[:, 0].float() * scale + mean
    return torch.softmax(all_logits(output).float(), dim=1)


def all_logits(output: Tensor) -> Tensor:
    """One logit a class: (rows, classes) from (rows, classes), or (rows, 2) from the (rows, 1) of a binary network."""
    return torch.nn.functional.pad(output, [1, 0]) if output.shape[1] == 1 else output
