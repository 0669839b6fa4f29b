"""RealMLP: a perceptron whose parts are tuned for tables together (arXiv 2407.04491)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec
from models.inputs import Inputs
from models.layers import Dropout, make_activation


class Scale(nn.Module):
    """A factor for each input: a rate of its own lets it choose among the inputs early. (rows, width) in and out."""

    spared = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class NTKLinear(nn.Module):
    """`x @ weight / sqrt(width) + bias` with weights near 1, so that one rate suits layers of any width.

    The NTK parametrisation (arXiv 1806.07572). Takes (rows, width), gives (rows, size).
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.gain = width**-0.5
        self.weight = nn.Parameter(torch.randn(width, size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight, alpha=self.gain)

    def start(self, x: Tensor) -> None:
        """Each unit gets deviation 1 over the rows of `x`, and is 0 at a point amid five of them, drawn at random, so
        that activations bend inside the data (arXiv 1903.11482).
        """
        deviation = (x @ self.weight * self.gain).std(0, correction=0)
        self.weight.div_(torch.where(deviation > 0, deviation, 1.0))
        size = len(self.bias)
        share = torch.empty(size, 5, device=x.device).exponential_()
        five = x[torch.randint(len(x), (size, 5), device=x.device)]
        point = torch.einsum("uf,ufw->uw", share / share.sum(1, keepdim=True), five)
        self.bias.copy_(-torch.einsum("uw,wu->u", point, self.weight) * self.gain)


class PartActivation(nn.Module):
    """`x + share * (activation(x) - x)` with a learned share for each unit, 1 at the start. (rows, size) in and out."""

    def __init__(self, activation: str, size: int) -> None:
        super().__init__()
        self.activation = make_activation(activation)
        self.share = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.activation(x)
        return x + self.share * (activated - x)


class RealMLP(nn.Module):
    """RealMLP-TD: scaled inputs, then blocks of linear, activation and dropout for each size in `hidden`, and a head.

    `activation`: one of torch.nn by name. `start` suits the weights to the data; without it they are N(0, 1). Its
    training (rates by part, coslog4, annealed decay and dropout) is `experiment=realmlp`.
    Gives (rows, outputs) logits or standardised values.
    """

    def __init__(
        self,
        spec: InputSpec,
        outputs: int,
        *,
        hidden: Sequence[int] = (256, 256, 256),
        activation: str = "mish",
        dropout: float = 0.15,
        inputs: Callable[[InputSpec], Inputs] = Inputs,
    ) -> None:
        super().__init__()
        self.inputs = inputs(spec)
        self.scale = Scale(self.inputs.width)
        layers: list[nn.Module] = []
        width = self.inputs.width
        for size in hidden:
            layers += [NTKLinear(width, size), PartActivation(activation, size), Dropout(dropout)]
            width = size
        self.layers = nn.Sequential(*layers, NTKLinear(width, outputs))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.layers(self.scale(self.inputs(batch)))
        return output

    @torch.no_grad()
    def start(self, batch: dict[str, Tensor]) -> None:
        """Suits weights and biases to encoded training rows, a thousand or so, layer by layer; no dropout meanwhile."""
        x = self.scale(self.inputs(batch))
        for layer in self.layers:
            if isinstance(layer, NTKLinear):
                layer.start(x)
            if not isinstance(layer, nn.Dropout):
                x = layer(x)
