"""Image files as a table: lists a folder, chooses the shape of a column, and decodes it."""

import os
from functools import partial
from pathlib import Path
from typing import Literal

import polars as pl
from torch import Tensor

from common import image_decoder
from common.cells import as_text
from common.image_decoder import ImageError
from datamodules.features.images import fit
from datamodules.schema import DataError

Shape = tuple[int, int, int]
"""Channels, height, width."""

SAMPLE = 64
"""Number of images that a shape is chosen from."""
MAX_SIDE = 128
"""Maximum side of a chosen shape: fast enough to train on two cores, and sufficient for most photographs."""

CLUTTER = {"desktop.ini", "Thumbs.db", "__MACOSX"}
"""Files of operating systems, which are ignored like names that start with a dot."""


def decode_column(paths: pl.Series, root: Path | None, shape: Shape) -> tuple[Tensor, pl.Series]:
    """Decodes and resizes a column, see `common.image_decoder.decode_column`."""
    return image_decoder.decode_column(paths, root, partial(_fit_one, shape=shape))


def choose_shape(paths: pl.Series, root: Path | None, size: Literal["auto"] | int | tuple[int, int] = "auto") -> Shape:
    """Chooses the shape of a column from a sample: RGB if any image is, and `size` (of a square, or height and width).

    "auto" is the size of the images if it is the same for all and small; otherwise a square with the median of their
    shorter sides, rounded down to a multiple of 32 between 32 and 128. Raises DataError if no image can be read.
    """
    given = as_text(paths).str.strip_chars().replace("", None).drop_nulls()
    shapes: list[Shape] = []
    reasons: list[str] = []
    for path in given.gather_every(max(1, len(given) // SAMPLE)).head(SAMPLE):
        try:
            channels, height, width = image_decoder.decode(path, root).shape
            shapes.append((channels, height, width))
        except ImageError as error:
            reasons.append(f"{path}: {error}")
    if not shapes:
        first = reasons[0] if reasons else "all paths are missing"
        where = "" if root is None else f"; paths are relative to {root}"
        raise DataError(f"column {paths.name!r}: none of the {len(reasons)} images tried can be read: {first}{where}")
    channels = max(channels for channels, _, _ in shapes)
    if size != "auto":
        return (channels, size, size) if isinstance(size, int) else (channels, *size)
    sizes = {(height, width) for _, height, width in shapes}
    if len(sizes) == 1 and max(map(max, sizes)) <= MAX_SIDE:
        return (channels, *sizes.pop())
    middle = sorted(min(height, width) for _, height, width in shapes)[len(shapes) // 2]
    side = min(MAX_SIDE, max(32, middle // 32 * 32))
    return (channels, side, side)


def list_images(folder: Path) -> pl.DataFrame:
    """The files in a folder of class folders: `image`, the path in the folder; `label`, the name of the class folder.

    Files outside class folders have no label; hidden files are left out. Raises DataError without class folders.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    rows: list[tuple[str, str | None]] = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _is_clutter(name)]
        parents = Path(parent).relative_to(folder).parts
        label = parents[0] if parents else None
        rows += [("/".join((*parents, name)), label) for name in files if not _is_clutter(name)]
    if not any(label for _, label in rows):
        raise DataError(
            f"{folder} contains no images in class folders. Arrange them as CLASS/IMAGE, or as train/CLASS/IMAGE,"
            " val/CLASS/IMAGE and test/CLASS/IMAGE"
        )
    try:
        return pl.DataFrame(sorted(rows), {"image": pl.String, "label": pl.String}, orient="row")
    except UnicodeEncodeError as error:
        raise DataError(f"{folder}: the file name {os.fsencode(error.object)!r} is not UTF-8; rename it") from None


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name in CLUTTER


def _fit_one(image: Tensor, shape: Shape) -> Tensor:
    return fit(image.unsqueeze(0), shape)[0]
