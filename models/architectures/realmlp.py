"""RealMLP: an MLP with tuned defaults for tables (arXiv 2407.04491), optionally as an ensemble.

Hidden layers work on (members, rows, width), so that one batched matrix product computes all members.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec
from models.layers.common import Dropout, make_activation
from models.layers.tabular_embedding import TabularEmbedding


class InputScale(nn.Module):
    """Learned factor per input; with a higher learning rate it selects inputs early in training.

    (1, rows, width) -> (members, rows, width).
    """

    no_weight_decay = True

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(members, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class NTKLinear(nn.Module):
    """Linear layer in NTK parametrization (arXiv 1806.07572): `x @ weight / sqrt(width) + bias`.

    Weights are initially N(0, 1), so that one learning rate suits layers of any width.
    (members, rows, width) -> (members, rows, size).
    """

    def __init__(self, members: int, width: int, size: int) -> None:
        super().__init__()
        self.gain = width**-0.5
        self.weight = nn.Parameter(torch.randn(members, width, size))
        self.bias = nn.Parameter(torch.zeros(members, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight, alpha=self.gain)

    def start(self, x: Tensor) -> None:
        """Scales each unit to standard deviation 1 on the rows of `x`, with a bias such that its zero lies in the data.

        The zero is at a random convex combination of five random rows (arXiv 1903.11482).
        """
        deviation = (x @ self.weight * self.gain).std(1, correction=0, keepdim=True)
        self.weight.div_(torch.where(deviation > 0, deviation, 1.0))
        members, rows, _ = x.shape
        size = self.bias.shape[2]
        # The value at the convex combination is the weighted mean of the values of its five rows.
        share = torch.empty(members, 5, size, device=x.device).exponential_()
        five = torch.randint(rows, (members, 5, size), device=x.device)
        value = (x @ self.weight * self.gain).gather(1, five)
        self.bias.copy_(-(share * value).sum(1, keepdim=True) / share.sum(1, keepdim=True))


class PartActivation(nn.Module):
    """Parametric activation: `x + share * (activation(x) - x)` with a learned share per unit, initially 1.

    (members, rows, size) -> (members, rows, size).
    """

    no_weight_decay = True

    def __init__(self, activation: str, members: int, size: int) -> None:
        super().__init__()
        self.activation = make_activation(activation)
        self.share = nn.Parameter(torch.ones(members, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.activation(x)
        return x + self.share * (activated - x)


class RealMLP(nn.Module):
    """RealMLP-TD: scaled inputs, a block of linear layer, activation and dropout per size in `hidden`, and a head.

    `members`: number of networks, which share only the encoded columns. `activation`: a name in torch.nn. `start`
    initializes the weights from data; otherwise they are N(0, 1). `experiment=realmlp` has the recommended training
    (learning rates per parameter group, coslog4, annealed weight decay and dropout).
    Returns (rows, members, outputs) logits or standardized values.
    """

    def __init__(
        self,
        spec: InputSpec,
        outputs: int,
        *,
        members: int = 1,
        hidden: Sequence[int] = (256, 256, 256),
        activation: str = "mish",
        dropout: float = 0.15,
        inputs: Callable[[InputSpec], TabularEmbedding] = TabularEmbedding,
    ) -> None:
        super().__init__()
        if members < 1:
            raise ValueError(f"model.members={members}: must be at least 1.")
        self.inputs = inputs(spec)
        width = self.inputs.width
        self.scale = InputScale(members, width)
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [NTKLinear(members, width, size), PartActivation(activation, members, size), Dropout(dropout)]
            width = size
        self.layers = nn.Sequential(*layers, NTKLinear(members, width, outputs))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.layers(self.scale(self.inputs(batch).unsqueeze(0)))
        return output.transpose(0, 1)

    def start(self, batch: dict[str, Tensor]) -> None:
        """Initializes weights and biases layer by layer on training rows (about a thousand)."""
        x = self.scale(self.inputs(batch).unsqueeze(0))
        for layer in self.layers:
            if isinstance(layer, NTKLinear):
                layer.start(x)
            x = layer(x)
