import re
from pathlib import Path

import polars as pl
import pytest
import torch
from PIL import Image

from common.image_decoder import decode
from datamodules.features.images import Images
from datamodules.readers.image_files import choose_shape, decode_column, list_images
from datamodules.schema import DataError

NO_CLASSES = (
    "{} contains no images in class folders. Arrange them as CLASS/IMAGE, or as train/CLASS/IMAGE, val/CLASS/IMAGE and"
    " test/CLASS/IMAGE"
)


def save(folder: Path, *sizes: tuple[int, int], mode: str = "L") -> pl.Series:
    """Black images of these widths and heights."""
    for index, size in enumerate(sizes):
        Image.new(mode, size).save(folder / f"{mode}{index}.png")
    return pl.Series("photo", [f"{mode}{index}.png" for index in range(len(sizes))])


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def refused(folder: Path, message: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        list_images(folder)


def test_ants_and_bees_are_listed_with_the_reason_of_the_unusable_file(data_dir: Path) -> None:
    folder = data_dir / "hymenoptera" / "train"
    frame = list_images(folder)
    assert frame.group_by("label").len().sort("label").rows() == [("ants", 72), ("bees", 60)]
    assert frame["image"].is_sorted()
    shape = choose_shape(frame["image"], folder)
    assert shape == (3, 128, 128)
    pixels, reasons = decode_column(frame["image"], folder, shape)
    assert pixels.shape == (132, 3, 128, 128)
    unusable = frame.with_columns(reason=reasons).filter(pl.col("reason").is_not_null())
    assert unusable.select("image", "reason").rows() == [("ants/imageNotFound.gif", "image mode P, neither L nor RGB")]
    photo = decode(folder / frame["image"][131])
    assert torch.equal(pixels[131], Images(["image"], [shape]).fit("image", photo))


def test_a_folder_of_class_folders_lists_all_files_except_hidden_ones(tmp_path: Path) -> None:
    touch(tmp_path, "cat/2.jpg", "cat/deep/1.jpg", "dog/1.png", "dog/notes.txt", "test/1.png", "README.md")
    touch(tmp_path, ".git/config", "cat/.DS_Store", "dog/Thumbs.db", "__MACOSX/cat/2.jpg", "cat/desktop.ini")
    assert list_images(tmp_path).to_dict(as_series=False) == {
        "image": ["README.md", "cat/2.jpg", "cat/deep/1.jpg", "dog/1.png", "dog/notes.txt", "test/1.png"],
        "label": [None, "cat", "cat", "dog", "dog", "test"],
    }


def test_a_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, NO_CLASSES.format(tmp_path))
    touch(tmp_path, "1.jpg", "2.jpg", ".hidden/cat/3.jpg")
    (tmp_path / "cat").mkdir()
    refused(tmp_path, NO_CLASSES.format(tmp_path))
    refused(tmp_path / "1.jpg", f"{tmp_path / '1.jpg'} is not a folder")


def test_a_file_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "cat/\udcff.jpg")
    refused(tmp_path, f"{tmp_path}: the file name b'cat/\\xff.jpg' is not UTF-8; rename it")


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ([(28, 28)] * 3, (1, 28, 28)),
        ([(128, 20)], (1, 20, 128)),
        ([(1, 1)], (1, 1, 1)),
        ([(129, 128)] * 2, (1, 128, 128)),
        ([(500, 400), (70, 90), (10, 10)], (1, 64, 64)),
        ([(20, 30), (30, 20), (9, 9)], (1, 32, 32)),
        ([(500, 400), (400, 300)], (1, 128, 128)),
    ],
)
def test_the_shape_depends_on_the_sizes(
    tmp_path: Path, sizes: list[tuple[int, int]], shape: tuple[int, int, int]
) -> None:
    assert choose_shape(save(tmp_path, *sizes), tmp_path) == shape


def test_a_given_shape_is_used_and_one_color_image_makes_it_rgb(tmp_path: Path) -> None:
    gray = save(tmp_path, (30, 20))
    mixed = pl.concat([gray, save(tmp_path, (30, 20), mode="RGB"), pl.Series("photo", [None, "absent.png"])])
    assert choose_shape(mixed, tmp_path) == (3, 20, 30)
    assert choose_shape(mixed, tmp_path, 96) == (3, 96, 96)
    assert choose_shape(gray, tmp_path, (40, 60)) == (1, 40, 60)


def test_images_of_the_whole_column_are_sampled(tmp_path: Path) -> None:
    save(tmp_path, (30, 20))
    Image.new("RGB", (9, 9)).save(tmp_path / "late.png")
    paths = pl.Series("photo", ["L0.png"] * 500 + ["late.png"] * 500)
    assert choose_shape(paths, tmp_path) == (3, 32, 32)


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        (["a.png", "b.png"], "none of the 2 images tried can be read: a.png: no such file"),
        ([None, " "], "none of the 0 images tried can be read: all paths are missing"),
    ],
)
def test_a_column_without_images_has_no_shape(tmp_path: Path, paths: list[str | None], why: str) -> None:
    message = f"column 'photo': {why}; paths are relative to {tmp_path}"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        choose_shape(pl.Series("photo", paths), tmp_path)
