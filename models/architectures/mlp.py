"""Multilayer perceptron on encoded columns."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from datamodules.schema import InputSpec
from models.layers.common import Dropout, Init, Norm, initialize, make_activation, make_norm, unit_variance
from models.layers.tabular_embedding import TabularEmbedding


class MLP(nn.Module):
    """A block of linear layer, normalization, activation and dropout per size in `hidden`, then a linear head.

    `inputs` builds the encoder of the columns. `init` is the initialization of hidden weights; "data" scales them in
    `start`. The head keeps torch's small initial weights, so that first predictions are almost uniform.
    Returns (rows, outputs) logits or standardized values.
    """

    def __init__(
        self,
        spec: InputSpec,
        outputs: int,
        *,
        hidden: Sequence[int] = (256, 256),
        activation: str = "relu",
        norm: Norm = "none",
        dropout: float = 0.1,
        init: Init = "he",
        inputs: Callable[[InputSpec], TabularEmbedding] = TabularEmbedding,
    ) -> None:
        super().__init__()
        self.inputs = inputs(spec)
        self.layers = perceptron(self.inputs.width, hidden, outputs, activation, norm, dropout, init)
        self.init = init

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.layers(self.inputs(batch))
        return output

    def start(self, batch: dict[str, Tensor]) -> None:
        """Scales the weights on training rows if `init` is "data"."""
        if self.init == "data":
            unit_variance(self, self.layers, batch)


def perceptron(
    width: int, hidden: Sequence[int], outputs: int, activation: str, norm: Norm, dropout: float, init: Init
) -> nn.Sequential:
    """Returns the layers of an MLP from `width` inputs to `outputs`."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers.append(initialize(nn.Linear(width, size), init))
        if norm != "none":
            layers.append(make_norm(norm, size))
        layers.append(make_activation(activation))
        if dropout > 0:
            layers.append(Dropout(dropout))
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs))
