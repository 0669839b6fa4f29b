"""Reads IDX files, the format of MNIST and similar data sets."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from datamodules.schema import DataError


def read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file, plain or gzip, as a uint8 array.

    The format is two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a big-endian
    32-bit number, then the values in C order (LeCun, "The MNIST database").

    Raises:
        DataError: The file is absent or damaged, or its values are not bytes.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged, download it again: {error}") from None
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(
            f"{path} is not an IDX file: it does not start with two zero bytes, a type and a number of dimensions"
        )
    if content[2] != 8:
        raise DataError(f"{path}: values of type {content[2]:#04x}; only unsigned bytes (0x08) are supported")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[offset : offset + 4], "big") for offset in range(4, start, 4)]
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path} is damaged, download it again: its header promises {expected:,} bytes, but it has {len(content):,}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
