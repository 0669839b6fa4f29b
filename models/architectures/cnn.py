"""Convolutional network on images, trained from scratch."""

import torch
from torch import Tensor, nn

from datamodules.schema import ImageSpec, InputSpec
from models.layers.column_support import refuse_columns
from models.layers.common import BatchNorm, Dropout
from models.layers.tabular_embedding import Pixels


class ImageEncoder(nn.Module):
    """An image column -> float (rows, `width`): stages that halve the image, then global average pooling.

    A stage has `depth` times a 3 x 3 convolution, batch norm and ReLU, with max pooling after the first convolution.
    There are as many stages as leave at least two pixels on the shorter side: three for 28 pixels, six for 224. The
    number of channels is `channels` in the first stage and doubles in each of the next three.
    """

    def __init__(self, spec: ImageSpec, channels: int, depth: int) -> None:
        super().__init__()
        self.pixels = Pixels(spec)
        inner, height, width = spec.shape
        stages = max(1, min(height, width).bit_length() - 2)
        layers: list[nn.Module] = []
        for stage in range(stages):
            outer = channels * 2 ** min(stage, 3)
            for step in range(depth):
                layers.append(nn.Conv2d(inner, outer, 3, padding=1, bias=False))
                if step == 0:  # before the norm, which then has a quarter of the pixels
                    layers.append(nn.MaxPool2d(2, ceil_mode=True))
                layers += [BatchNorm(outer), nn.ReLU()]
                inner = outer
        # Convolutions are fastest in channels_last format.
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.width = inner

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        pixels = self.pixels(batch).contiguous(memory_format=torch.channels_last)
        output: Tensor = self.layers(pixels).mean((2, 3))
        return output


class CNN(nn.Module):
    """`ImageEncoder` for each image column, dropout, and a linear head on the concatenated vectors.

    Returns (rows, outputs) logits or standardized values. Raises ValueError for columns other than images.
    """

    def __init__(
        self, spec: InputSpec, outputs: int, *, channels: int = 32, depth: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        refuse_columns(spec, "cnn", ["image"])
        encoders = [ImageEncoder(image, channels, depth) for image in spec.images]
        self.images = nn.ModuleList(encoders)
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(sum(encoder.width for encoder in encoders), outputs)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        vectors: list[Tensor] = []
        for image in self.images:
            vectors += [image(batch)]
        output: Tensor = self.head(self.dropout(torch.cat(vectors, 1)))
        return output
