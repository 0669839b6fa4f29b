"""RealMLP: a perceptron whose parts are tuned for tables together (arXiv 2407.04491), and several of them side by side.

Between inputs and head all is (members, rows, width), so that one product of matrices serves all members.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec
from models.layers.common import Dropout, make_activation
from models.layers.tabular_embedding import TabularEmbedding


class InputScale(nn.Module):
    """A factor for each input: a rate of its own lets it choose among the inputs early.

    Takes (1, rows, width), gives (members, rows, width).
    """

    no_weight_decay = True

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(members, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class NTKLinear(nn.Module):
    """`x @ weight / sqrt(width) + bias` with weights near 1, so that one rate suits layers of any width.

    The NTK parametrisation (arXiv 1806.07572). Takes (members, rows, width), gives (members, rows, size).
    """

    def __init__(self, members: int, width: int, size: int) -> None:
        super().__init__()
        self.gain = width**-0.5
        self.weight = nn.Parameter(torch.randn(members, width, size))
        self.bias = nn.Parameter(torch.zeros(members, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight, alpha=self.gain)

    def start(self, x: Tensor) -> None:
        """Each unit gets deviation 1 over the rows of `x`, and is 0 at a point amid five of them, drawn at random, so
        that activations bend inside the data (arXiv 1903.11482).
        """
        deviation = (x @ self.weight * self.gain).std(1, correction=0, keepdim=True)
        self.weight.div_(torch.where(deviation > 0, deviation, 1.0))
        members, rows, _ = x.shape
        size = self.bias.shape[2]
        # A point's value is the mean of its five rows' values, each with its share.
        share = torch.empty(members, 5, size, device=x.device).exponential_()
        five = torch.randint(rows, (members, 5, size), device=x.device)
        value = (x @ self.weight * self.gain).gather(1, five)
        self.bias.copy_(-(share * value).sum(1, keepdim=True) / share.sum(1, keepdim=True))


class PartActivation(nn.Module):
    """`x + share * (activation(x) - x)` with a learned share for each unit, 1 at the start.

    Takes and gives (members, rows, size).
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
    """RealMLP-TD: scaled inputs, then blocks of linear, activation and dropout for each size in `hidden`, and a head.

    `members`: so many of them, which share nothing but the encoded columns. `activation`: one of torch.nn by name.
    `start` suits the weights to the data; without it they are N(0, 1). Its training (rates by part, coslog4, fading
    decay and dropout) is `experiment=realmlp`.
    Gives (rows, members, outputs) logits or standardised values.
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
        """Suits weights and biases to encoded training rows, a thousand or so, layer by layer."""
        x = self.scale(self.inputs(batch).unsqueeze(0))
        for layer in self.layers:
            if isinstance(layer, NTKLinear):
                layer.start(x)
            x = layer(x)
