"""Image files -> pixels: the one reader that training and serving share."""

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
"""Formats that are tried; Pillow knows others that run programs or are rarely seen and little tested."""

MAX_SIDE = 16_384
MAX_PIXELS = 80_000_000
"""Limits that the header is held to before anything is decoded: a small file can hold a huge image."""


class ImageError(InputError):
    """A file that gives no image; the message says why, in a few words."""


def decode(path: str | Path, root: Path | None = None) -> Tensor:
    """The image in a file, upright by its EXIF orientation: uint8 (C, H, W), C = 1 (grey) or 3 (RGB), its own size.

    Of a file with several images the first. With a `root` the path is relative to it. ImageError for a file outside
    the root, absent, no image, truncated or damaged, too large, or neither grey nor RGB with 8 bits: transparency or a
    palette can be flattened in more ways than one.
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
        raise ImageError(f"no image of a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow raises a dozen kinds for damaged files, SyntaxError and KeyError among them
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(f"cannot be decoded: {reason}") from None
    pixels = torch.frombuffer(bytearray(upright.tobytes()), dtype=torch.uint8)
    return pixels.view(upright.height, upright.width, -1).permute(2, 0, 1).contiguous()


def decode_column(paths: pl.Series, root: Path | None, fit: Callable[[Tensor], Tensor]) -> tuple[Tensor, pl.Series]:
    """Decodes the files of a column, several at a time; `fit` brings each image to the column's shape.

    Returns uint8 (rows, C, H, W), and for each row the reason why there is no image, null where there is one. A path
    that is missing (null or blank) has a black image and no reason.
    """
    pixels = fit(torch.zeros(1, 1, 1, dtype=torch.uint8)).repeat(len(paths), 1, 1, 1)

    def decode_row(row: int, path: str | None) -> str | None:
        try:
            if path:
                pixels[row] = fit(decode(path, root))
        except ImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # Pillow decodes outside the interpreter's lock
        reasons = list(pool.map(decode_row, range(len(paths)), as_text(paths).str.strip_chars()))
    return pixels, pl.Series(paths.name, reasons, dtype=pl.String)


def _check(image: Image.Image) -> None:
    if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{image.width:,} x {image.height:,} pixels: more than {MAX_SIDE:,} a side or {MAX_PIXELS:,} in all"
        )
    if image.mode not in ("L", "RGB"):
        raise ImageError(f"image mode {image.mode}, neither L nor RGB")
