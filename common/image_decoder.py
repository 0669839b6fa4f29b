"""Image files -> pixels. Shared by training and serving."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from common.cells import as_text
from common.errors import InputError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted formats; Pillow knows others that run external programs or are rare and little tested."""

MAX_SIDE = 16_384
MAX_PIXELS = 80_000_000
"""Limits that are checked in the header before decoding, since a small file can contain a huge image."""


class ImageError(InputError):
    """A file that cannot be used as an image; the message is a short reason."""


def decode(path: str | Path, root: Path | None = None) -> Tensor:
    """Decodes the first image of a file, upright by its EXIF orientation: uint8 (C, H, W), C = 1 (gray) or 3 (RGB).

    With a `root`, the path is relative to it.

    Raises:
        ImageError: The file is outside the root, absent, not an image, truncated or damaged, too large, or neither gray
            nor RGB with 8 bits. Transparency and palettes are refused, since they can be flattened in several ways.
    """
    try:
        if root is not None:
            path = (root / path).resolve()
            if not path.is_relative_to(root.resolve()):
                raise ImageError("outside the data folder")
        if not Path(path).is_file():
            raise ImageError("not a file" if Path(path).exists() else "no such file")
        with Image.open(path, formats=FORMATS) as image:
            _check(image)
            image.load()
            upright = ImageOps.exif_transpose(image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"not an image of a supported format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow raises many kinds for damaged files, even SyntaxError and KeyError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(f"cannot be decoded: {reason}") from None
    pixels = torch.frombuffer(bytearray(upright.tobytes()), dtype=torch.uint8)
    return pixels.view(upright.height, upright.width, -1).permute(2, 0, 1).contiguous()


def decode_column(paths: pl.Series, root: Path | None, fit: Callable[[Tensor], Tensor]) -> tuple[Tensor, pl.Series]:
    """Decodes the files of a column in several threads; `fit` resizes each image to the shape of the column.

    Returns uint8 (rows, C, H, W), and for each row the reason why it has no image, or null. A missing path (null or
    blank) gives a black image and no reason.
    """
    pixels = fit(torch.zeros(1, 1, 1, dtype=torch.uint8)).repeat(len(paths), 1, 1, 1)

    def decode_row(row: int, path: str | None) -> str | None:
        try:
            if path:
                pixels[row] = fit(decode(path, root))
        except ImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # Pillow releases the GIL while it decodes
        reasons = list(pool.map(decode_row, range(len(paths)), as_text(paths).str.strip_chars()))
    return pixels, pl.Series(paths.name, reasons, dtype=pl.String)


def _check(image: Image.Image) -> None:
    if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{image.width:,} x {image.height:,} pixels: more than {MAX_SIDE:,} per side or {MAX_PIXELS:,} in total"
        )
    if image.mode not in ("L", "RGB"):
        raise ImageError(f"image mode {image.mode}, neither L nor RGB")
