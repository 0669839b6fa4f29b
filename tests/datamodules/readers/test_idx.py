import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from datamodules.readers.idx import read_idx
from datamodules.schema import DataError

SMALL = b"\0\0\x08\x02\0\0\0\x02\0\0\0\x03abcdef"


def test_fashion_mnist_has_the_published_statistics(data_dir: Path) -> None:
    images = read_idx(data_dir / "fashion_mnist" / "train-images-idx3-ubyte.gz")
    labels = read_idx(data_dir / "fashion_mnist" / "train-labels-idx1-ubyte.gz")
    assert images.shape == (60_000, 28, 28)
    assert images.mean() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert images.std() / 255 == pytest.approx(0.3530, abs=5e-5)
    assert np.bincount(labels).tolist() == [6_000] * 10
    assert labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_plain_and_compressed_files_are_equal(tmp_path: Path, compress: type[bytes]) -> None:
    path = tmp_path / "small"
    path.write_bytes(compress(SMALL))
    array = read_idx(path)
    assert array.dtype == np.uint8
    assert array.flags.writeable  # otherwise torch warns
    assert array.tolist() == [[97, 98, 99], [100, 101, 102]]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", " is not an IDX file: it does not start with two zero bytes, a type and a number of dimensions"),
        (b"\x89PNG", " is not an IDX file: it does not start with two zero bytes, a type and a number of dimensions"),
        (b"\0\0\x0d\x01\0\0\0\x01abcd", ": values of type 0x0d; only unsigned bytes (0x08) are supported"),
        (SMALL[:-1], " is damaged, download it again: its header promises 18 bytes, but it has 17"),
        (SMALL + b"\0", " is damaged, download it again: its header promises 18 bytes, but it has 19"),
        (SMALL[:7], " is damaged, download it again: its header promises 12 bytes, but it has 7"),
        (
            b"\0\0\x08\x01" + b"\xff" * 4,
            " is damaged, download it again: its header promises 4,294,967,303 bytes, but it has 8",
        ),
        (
            gzip.compress(SMALL, mtime=0)[:-9],
            " is damaged, download it again: Compressed file ended before the end-of-stream marker was reached",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{re.escape(str(path) + why)}$"):
        read_idx(path)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images"
    with pytest.raises(DataError, match=f"^{re.escape(f'{path} cannot be read: No such file or directory')}$"):
        read_idx(path)
