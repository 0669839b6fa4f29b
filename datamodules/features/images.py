"""Resizes images to the shape of their column."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Images(nn.Module):
    """Resizes image columns to their shapes, in training and in the artifact."""

    # TorchScript cannot infer the type of an empty list.
    names: list[str]
    shapes: list[tuple[int, int, int]]

    def __init__(self, names: Sequence[str], shapes: Sequence[tuple[int, int, int]]) -> None:
        """`shapes` holds the channels (1 or 3), height and width of each column."""
        super().__init__()
        self.names = list(names)
        self.shapes = list(shapes)

    @torch.jit.export
    def fit(self, name: str, image: Tensor) -> Tensor:
        """One image of a column: uint8 (C0, H0, W0) of any size -> uint8 (C, H, W)."""
        return fit(image.unsqueeze(0), self.shapes[self.names.index(name)])[0]

    def forward(self, images: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
        """uint8 (rows, C0, H0, W0) of any size -> `images.NAME` uint8 (rows, C, H, W); an absent column is black."""
        fitted: dict[str, Tensor] = {}
        for i, name in enumerate(self.names):
            channels, height, width = self.shapes[i]
            if name in images:
                fitted["images." + name] = fit(images[name], self.shapes[i])
            else:
                fitted["images." + name] = torch.zeros((rows, channels, height, width), dtype=torch.uint8)
        return fitted


def fit(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """uint8 (rows, 1 or 3, H0, W0) -> uint8 (rows, C, H, W): the largest center crop of the same proportions, resized.

    This equals the usual "resize the shorter side, then center crop", but crops first, so that a long and narrow image
    needs little memory. Resizing is bilinear with antialiasing, as in Pillow. RGB becomes gray by ITU-R 601, and gray
    becomes RGB by repetition. Images that already have the shape are returned unchanged.
    """
    channels, height, width = shape
    if images.dtype != torch.uint8 or images.dim() != 4 or images.size(1) not in (1, 3):
        raise ValueError(f"images must be uint8 (rows, 1 or 3, height, width), not {images.dtype} {images.shape}")
    full_height, full_width = images.size(2), images.size(3)
    # The size of the crop, rounded to the nearest pixel.
    part_height = max(1, min(full_height, (full_width * height + width // 2) // width))
    part_width = max(1, min(full_width, (full_height * width + height // 2) // height))
    top, left = (full_height - part_height) // 2, (full_width - part_width) // 2
    images = images[:, :, top : top + part_height, left : left + part_width]
    if part_height != height or part_width != width:
        rows, planes = images.size(0), images.size(1)
        if height == 1 and width == 1:  # torch 2.15 cannot resize an RGB image to one pixel, but each of its planes
            images = images.reshape(rows * planes, 1, part_height, part_width)
        images = F.interpolate(images.contiguous(), (height, width), mode="bilinear", antialias=True)
        images = images.reshape(rows, planes, height, width)
    if images.size(1) == channels:
        return images
    if channels == 3:
        return images.repeat(1, 3, 1, 1)
    # The weights 0.299, 0.587 and 0.114 times 65,536: integers give the same result on every machine.
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32).view(1, 3, 1, 1)
    return (((images * weights).sum(1, keepdim=True) + 32768) >> 16).to(torch.uint8)
