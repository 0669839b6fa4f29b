"""The image columns of a table: decoded once, to uint8 of one shape per column; failures have a reason."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import polars as pl
from torch import Tensor

from datamodules.features.images import fit
from datamodules.preparation.clean import DecodedImages
from datamodules.readers.image_files import Shape, choose_shape, decode_column
from datamodules.readers.read import CHUNK, Raw

PIECE = 4 * 10**6
"""Bytes of images that are encoded at a time."""


class ImageColumns:
    """The image columns and their shapes.

    `size` is the side of a square, (height, width), or "auto", which depends on the first images.
    """

    def __init__(self, size: Literal["auto"] | int | tuple[int, int]) -> None:
        self.size = size
        self.shapes: dict[str, Shape] = {}

    def infer_shapes(self, raw: Raw, names: Sequence[str]) -> None:
        """Sets the shape of each image column from the first rows."""
        for name in names:
            if name in raw.images:
                channels, height, width = raw.images[name].shape[1:]
                self.shapes[name] = (channels, height, width)
            else:
                self.shapes[name] = choose_shape(raw.frame[name], raw.root, self.size)

    def pieces(self, chunks: Iterator[tuple[int, int, Raw]]) -> Iterator[tuple[int, int, Raw]]:
        """Cuts chunks so that their images stay small; a piece is numbered (chunk number << 16) + position."""
        size = sum(math.prod(shape) for shape in self.shapes.values())
        rows = min(max(PIECE // size, 1), CHUNK) if size else CHUNK
        for file, number, raw in chunks:
            for piece, first in enumerate(range(0, max(len(raw.frame), 1), rows)):
                images = {name: pixels[first : first + rows] for name, pixels in raw.images.items()}
                bad = raw.bad if piece == 0 else raw.bad.clear()
                yield file, (number << 16) + piece, Raw(raw.frame.slice(first, rows), bad, images)

    def decode(self, raw: Raw) -> dict[str, DecodedImages]:
        """The decoded images of each image column."""
        images: dict[str, DecodedImages] = {}
        for name, shape in self.shapes.items():
            if name in raw.images:
                pixels = fit(raw.images[name], shape)
                reasons = pl.repeat(None, len(raw.frame), dtype=pl.String, eager=True)
            else:
                pixels, reasons = decode_column(raw.frame[name], raw.root, shape)
            images[name] = DecodedImages(pixels, reasons, _digests(pixels))
        return images


def _digests(pixels: Tensor) -> pl.Series:
    digests = [hashlib.blake2b(image, digest_size=16).hexdigest() for image in pixels.numpy()]
    return pl.Series(digests, dtype=pl.String)
