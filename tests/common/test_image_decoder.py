import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from common.image_decoder import ImageError, decode, decode_column

NOISE = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)


def save(path: Path, mode: str = "RGB", **options: Any) -> Path:
    Image.fromarray(NOISE).convert(mode).save(path, **options)
    return path


def refused(path: Path | str, reason: str) -> None:
    with pytest.raises(ImageError, match=f"^{re.escape(reason)}$"):
        decode(path)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "ppm"])
def test_decoded_pixels_are_equal_to_the_saved_ones(tmp_path: Path, ending: str) -> None:
    color = decode(save(tmp_path / f"color.{ending}"))
    torch.testing.assert_close(color, torch.from_numpy(NOISE).permute(2, 0, 1))
    assert color.is_contiguous()
    gray = decode(save(tmp_path / f"gray.{ending}", "L"))
    torch.testing.assert_close(gray[0], torch.from_numpy(np.array(Image.fromarray(NOISE).convert("L"))))
    assert gray.shape == (1, 30, 20)


def test_a_photograph_is_rotated_by_its_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the image is at the right of the file
    turned = decode(save(tmp_path / "turned.png", exif=exif))
    torch.testing.assert_close(turned, torch.from_numpy(np.rot90(NOISE, -1).copy()).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["P", "1", "LA", "RGBA", "I;16"])
def test_other_modes_are_refused(tmp_path: Path, mode: str) -> None:
    refused(save(tmp_path / "image.png", mode), f"image mode {mode}, neither L nor RGB")


def test_cmyk_is_refused(tmp_path: Path) -> None:
    refused(save(tmp_path / "image.jpg", "CMYK"), "image mode CMYK, neither L nor RGB")


def test_absent_files_and_files_that_are_not_images_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent.png", "no such file")
    refused("nul\0byte", "no such file")
    refused(tmp_path, "not a file")
    refused(tmp_path / ("x" * 5000), "cannot be decoded: File name too long")
    for name, content in {"empty.png": b"", "text.png": b"not an image"}.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "not an image of a supported format (BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP)")


def test_a_truncated_photograph_is_refused(tmp_path: Path, data_dir: Path) -> None:
    whole = (data_dir / "hymenoptera" / "train" / "ants" / "0013035.jpg").read_bytes()
    path = tmp_path / "truncated.jpg"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"^cannot be decoded: image file is truncated \(\d+ bytes not processed\)$"):
        decode(path)


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (20_000, 1, "20,000 x 1 pixels: more than 16,384 per side or 80,000,000 in total"),
        (9_000, 9_000, "9,000 x 9,000 pixels: more than 16,384 per side or 80,000,000 in total"),
        (16_000, 16_000, "more than 80,000,000 pixels"),
    ],
)
def test_a_huge_image_is_refused_by_its_header(tmp_path: Path, width: int, height: int, reason: str) -> None:
    # Only a header: decoding it would report a truncated file.
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    path = tmp_path / "huge.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1) + b"IDAT" + bytes(5))
    refused(path, reason)


def test_a_file_outside_the_data_folder_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "inside").mkdir(parents=True)
    inside, outside = save(root / "inside" / "image.png"), save(tmp_path / "image.png")
    (root / "link.png").symlink_to(outside)
    (root / "inner.png").symlink_to(inside)
    (tmp_path / "alias").symlink_to(root)
    for path in ["inside/image.png", "inside/../inside/image.png", "inner.png", str(inside)]:
        for folder in (root, tmp_path / "alias"):
            assert decode(path, folder).shape == (3, 30, 20)
    for path in ["../image.png", "inside/../../image.png", str(outside), "link.png", "../absent.png", "/", ".."]:
        with pytest.raises(ImageError, match=r"^outside the data folder$"):
            decode(path, root)


def test_a_column_has_its_images_in_order_and_a_reason_for_each_failure(tmp_path: Path) -> None:
    for shade in range(40):
        Image.new("L", (2, 3), shade).save(tmp_path / f"{shade}.png")
    cells = [*(f" {shade}.png" for shade in range(40)), None, " ", "absent.png", "../40.png"]
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    pixels, reasons = decode_column(pl.Series("photo", cells), tmp_path, lambda image: image.expand(1, 3, 2))
    torch.set_num_threads(threads)
    assert pixels[:, 0, 0, 0].tolist() == [*range(40), 0, 0, 0, 0]
    assert pixels.shape == (44, 1, 3, 2)
    assert reasons.name == "photo"
    assert reasons.to_list() == [None] * 42 + ["no such file", "outside the data folder"]
    assert decode_column(pl.Series("photo", [], dtype=pl.String), None, lambda image: image)[0].shape == (0, 1, 1, 1)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), ending=st.sampled_from(["jpg", "png", "gif", "bmp", "tif", "webp"]))
def test_damaged_bytes_give_an_image_or_a_reason(tmp_path: Path, data: st.DataObject, ending: str) -> None:
    path = tmp_path / f"image.{ending}"
    if not path.exists():
        save(path)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        image = decode(damaged)
    except ImageError:
        return
    assert image.shape[0] in (1, 3)
    assert image.dtype == torch.uint8
