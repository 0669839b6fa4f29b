"""A network for several kinds of columns: an encoder for each kind, and an MLP on their outputs."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec
from models.architectures.cnn import ImageEncoder
from models.architectures.mlp import perceptron
from models.layers.common import Init, Norm, unit_variance
from models.layers.tabular_embedding import TabularEmbedding


class Fusion(nn.Module):
    """Convolutional encoders of images and `inputs` for all other columns, concatenated as the input of an MLP.

    `channels` and `depth` are arguments of `ImageEncoder`, the others of `MLP`, to which this network is equal if there
    are no images. Returns (rows, outputs) logits or standardized values.
    """

    def __init__(
        self,
        spec: InputSpec,
        outputs: int,
        *,
        hidden: Sequence[int] = (256,),
        activation: str = "relu",
        norm: Norm = "none",
        dropout: float = 0.1,
        init: Init = "he",
        channels: int = 32,
        depth: int = 1,
        inputs: Callable[[InputSpec], TabularEmbedding] = TabularEmbedding,
    ) -> None:
        super().__init__()
        table = replace(spec, images=())
        self.inputs = inputs(table) if table != InputSpec() or not spec.images else None
        self.images = nn.ModuleList(encoders := [ImageEncoder(image, channels, depth) for image in spec.images])
        width = sum(image.width for image in encoders) + (self.inputs.width if self.inputs is not None else 0)
        self.layers = perceptron(width, hidden, outputs, activation, norm, dropout, init)
        self.init = init

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        blocks: list[Tensor] = []
        if self.inputs is not None:
            blocks += [self.inputs(batch)]
        for image in self.images:
            blocks += [image(batch)]
        output: Tensor = self.layers(torch.cat(blocks, 1))
        return output

    def start(self, batch: dict[str, Tensor]) -> None:
        """Scales the weights on training rows if `init` is "data"."""
        if self.init == "data":
            unit_variance(self, self.layers, batch)
