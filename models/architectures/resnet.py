"""ResNet for tables: an MLP with residual connections."""

from collections.abc import Callable

from torch import Tensor, nn

from datamodules.schema import InputSpec
from models.layers.common import BatchNorm, Dropout
from models.layers.tabular_embedding import TabularEmbedding


class Block(nn.Module):
    """Residual block of two linear layers, (rows, size) -> (rows, `hidden`) -> (rows, size)."""

    def __init__(self, size: int, hidden: int, dropout: float, residual_dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            BatchNorm(size),
            nn.Linear(size, hidden),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(hidden, size),
            Dropout(residual_dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.layers(x)
        return x + added


class ResNet(nn.Module):
    """A linear layer to `size` values, `blocks` residual blocks, batch norm, ReLU and a linear head (arXiv 2106.11959).

    `dropout` applies to the `hidden` values in a block, `residual_dropout` to its output before the addition. `inputs`
    builds the encoder of the columns. Returns (rows, outputs) logits or standardized values.
    """

    def __init__(
        self,
        spec: InputSpec,
        outputs: int,
        *,
        size: int = 192,
        blocks: int = 2,
        hidden: int = 384,
        dropout: float = 0.25,
        residual_dropout: float = 0.0,
        inputs: Callable[[InputSpec], TabularEmbedding] = TabularEmbedding,
    ) -> None:
        super().__init__()
        self.inputs = inputs(spec)
        self.layers = nn.Sequential(
            nn.Linear(self.inputs.width, size),
            *(Block(size, hidden, dropout, residual_dropout) for _ in range(blocks)),
            BatchNorm(size),
            nn.ReLU(),
            nn.Linear(size, outputs),
        )

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.layers(self.inputs(batch))
        return output
