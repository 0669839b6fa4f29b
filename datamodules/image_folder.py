"""Image classification data sets: a folder of class folders, IDX files, and data sets of torchvision."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from datamodules.readers.idx import read_idx
from datamodules.readers.image_files import list_images
from datamodules.readers.read import BAD, FILE, LINE, Raw
from datamodules.schema import DataError
from datamodules.tabular import TableDataModule

IMAGE, LABEL = "image", "label"
"""The columns of all these data sets."""
CHUNK = 4096
"""Number of images per chunk."""
TORCHVISION = ("MNIST", "FashionMNIST", "KMNIST", "QMNIST", "CIFAR10", "CIFAR100", "SVHN")
"""Data sets with images of one size and with training and test rows."""


class ImageFolderDataModule(TableDataModule):
    """`path` is a folder of class folders, or has folders train and optionally val and test with class folders."""

    def __init__(
        self,
        path: str,
        target: str = LABEL,
        val_path: str | None = None,
        test_path: str | None = None,
        **settings: Any,
    ) -> None:
        folder = Path(path)
        if (folder / "train").is_dir():
            parts = {name: str(folder / name) if (folder / name).is_dir() else None for name in ("val", "test")}
            path, val_path, test_path = str(folder / "train"), val_path or parts["val"], test_path or parts["test"]
        settings["columns"] = {IMAGE: "image", **(settings.get("columns") or {})}  # even if the folder has other files
        super().__init__(path, target, val_path=val_path, test_path=test_path, **settings)

    def files(self) -> list[str]:
        paths = (self.settings.path, self.settings.val_path, self.settings.test_path)
        folders = [Path(str(path)) for path in paths if path is not None]
        return [str(folder / name) for folder in folders for name in list_images(folder)[IMAGE]]

    def read(self, path: str | Sequence[str], rank: int, world: int) -> Iterator[tuple[int, Raw]]:
        frame = list_images(Path(str(path))).select(IMAGE, LABEL)
        return _share(frame, str(path), rank, world)


class IdxDataModule(TableDataModule):
    """`path` is an IDX file of images; the labels are in the file of that name with "labels" for "images"."""

    def files(self) -> list[str]:
        images = super().files()
        return [*images, *map(_labels_of, images)]

    def read(self, path: str | Sequence[str], rank: int, world: int) -> Iterator[tuple[int, Raw]]:
        assert isinstance(path, str)
        images, labels = (torch.from_numpy(read_idx(Path(file))) for file in (path, _labels_of(path)))
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise DataError(
                f"{path}: the shapes of images and labels are {tuple(images.shape)} and {tuple(labels.shape)}; they"
                " must be (rows, height, width) and (rows,)"
            )
        return _share(_cells(path, labels.tolist()), path, rank, world, images.unsqueeze(1))


class TorchvisionDataModule(TableDataModule):
    """A data set of torchvision, where `path` is its name and `root` its folder.

    Its training rows are split into training and validation; its test rows are the test split. It is downloaded only
    with `download`.
    """

    def __init__(self, path: str, root: str, target: str = LABEL, download: bool = False, **settings: Any) -> None:
        if path not in TORCHVISION:
            raise DataError(f"data.path={path}: the available data sets of torchvision are {', '.join(TORCHVISION)}")
        folder = f"{root}/{path}"  # so that the cache distinguishes roots
        super().__init__(f"{folder}/train", target, **settings | {"test_path": f"{folder}/test"})
        self.download = download

    def files(self) -> list[str]:
        return []

    def read(self, path: str | Sequence[str], rank: int, world: int) -> Iterator[tuple[int, Raw]]:
        from torchvision import datasets  # here, because it is slow to import

        *parents, name, part = Path(str(path)).parts
        root = Path(*parents)
        options = {"split": part} if name == "SVHN" else {"train": part == "train"}
        try:
            found = getattr(datasets, name)(root, download=self.download, **options)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise DataError(
                f"data.root={root}: cannot read {name} there ({reason}); data.download=true downloads it"
            ) from error
        images = torch.as_tensor(found.data)
        if images.ndim == 3:
            images = images.unsqueeze(1)
        elif images.shape[-1] == 3:  # the channels of CIFAR are last
            images = images.permute(0, 3, 1, 2).contiguous()
        codes = [int(code) for code in (found.labels if name == "SVHN" else found.targets)]
        classes = getattr(found, "classes", None)
        labels = [classes[code] for code in codes] if classes else codes
        return _share(_cells(str(path), labels), str(path), rank, world, images)


def _cells(source: str, labels: Sequence[Any]) -> pl.DataFrame:
    """The table of images that come as pixels; cells give the source and the position of an image in it."""
    return pl.DataFrame({IMAGE: [f"{source}#{row}" for row in range(1, len(labels) + 1)], LABEL: labels})


def _share(
    frame: pl.DataFrame, source: str, rank: int, world: int, images: Tensor | None = None
) -> Iterator[tuple[int, Raw]]:
    """The chunks of one of `world` processes; `images` are decoded images, uint8 (rows, C, H, W), if available."""
    lines = pl.Series(LINE, range(1, len(frame) + 1), dtype=pl.Int64)
    frame = frame.with_columns(pl.lit(source).alias(FILE), lines)
    for number, first in enumerate(range(0, len(frame), CHUNK)):
        if number % world == rank:
            pixels = {} if images is None else {IMAGE: images[first : first + CHUNK]}
            yield number, Raw(frame.slice(first, CHUNK), pl.DataFrame(schema=BAD), pixels)


def _labels_of(images: str) -> str:
    """The file with the labels: train-images-idx3-ubyte.gz -> train-labels-idx1-ubyte.gz."""
    name = re.sub(r"images[-.]idx3", "labels-idx1", Path(images).name)
    if name == Path(images).name:
        raise DataError(f"{images}: the name must contain images-idx3, and that of the labels labels-idx1")
    return str(Path(images).with_name(name))
