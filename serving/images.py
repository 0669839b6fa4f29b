"""Image files -> pixels: the one reader that training and serving share."""

from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from serving.errors import InputError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are tried; Pillow knows others that run programs or are rarely seen and little tested."""

MAX_SIDE = 16_384
MAX_PIXELS = 80_000_000
"""Limits that the header is held to before anything is decoded: a small file can hold a huge image."""


class ImageError(InputError):
    """A file that gives no image; the message says why, in a few words."""


def decode(path: str | Path) -> Tensor:
    """The image in a file, upright by its EXIF orientation: uint8 (C, H, W), C = 1 (grey) or 3 (RGB), its own size.

    Of a file with several images the first. ImageError for a file that is absent, no image, truncated or damaged, too
    large, or neither grey nor RGB with 8 bits: transparency or a palette can be flattened in more ways than one.
    """
    try:
        if not Path(path).is_file():
            raise ImageError("no such file" if not Path(path).exists() else "not a file")
        with Image.open(path, formats=FORMATS) as image:
            _check(image)
            image.load()
            upright = ImageOps.exif_transpose(image)
    except InputError:
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


def _check(image: Image.Image) -> None:
    if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{image.width:,} x {image.height:,} pixels: more than {MAX_SIDE:,} a side or {MAX_PIXELS:,} in all"
        )
    if image.mode not in ("L", "RGB"):
        raise ImageError(f"image mode {image.mode}, neither L nor RGB")
