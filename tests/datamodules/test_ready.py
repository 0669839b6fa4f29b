"""The ready tables with the settings of their configs, compared with counts made without Lathe."""

import gzip
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import polars as pl
import pytest
from hydra import compose, initialize_config_dir

from common.cells import clean_text
from datamodules.image_folder import TorchvisionDataModule
from datamodules.preparation import encode
from datamodules.schema import DataError
from datamodules.split import SPLITS
from datamodules.tabular import TableDataModule
from trainer.config.instantiate import instantiate

CONF = Path(__file__).parents[2] / "conf"

READY: dict[str, tuple[str, tuple[int, int, int], list[str]]] = {
    "ag_news": ("multiclass", (4864, 1216, 1520), []),
    "adult": ("binary", (31259, 7817, 9766), ["fnlwgt"]),
    "bike_sharing": ("regression", (11122, 2781, 3476), ["instant", "casual", "registered"]),
    "breast_cancer": ("binary", (364, 91, 114), []),
    "california_housing": ("regression", (13209, 3303, 4128), []),
    "diabetes": ("regression", (282, 71, 89), []),
    "digits": ("multiclass", (1150, 287, 360), []),
    "fashion_mnist": ("multiclass", (48000, 12000, 10000), []),
    "diamonds": ("regression", (34522, 8630, 10788), []),
    "electricity": ("binary", (28999, 7250, 9063), []),
    "iris": ("multiclass", (96, 24, 30), []),
    "sms_spam": ("binary", (3567, 892, 1115), []),
    "telco_churn": ("binary", (4508, 1126, 1409), ["customerID"]),
    "titanic": ("binary", (570, 143, 178), ["PassengerId", "Ticket", "Cabin"]),
    "wine": ("multiclass", (114, 28, 36), []),
}
"""Task, rows of the splits (given, or 64, 16 and 20 % up to rounding and copies), and unused columns."""


@pytest.fixture(scope="module", autouse=True)
def _keep_all_rows() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "HEAD", 10**6)
        yield


def frames(datamodule: TableDataModule) -> list[pl.DataFrame]:
    return [datamodule.frame(split) for split in SPLITS]


@cache
def ready(name: str, data_dir: Path) -> TableDataModule:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"data={name}", f"paths.data={data_dir}", "paths.cache=null"])
    datamodule: TableDataModule = instantiate(config.data)
    datamodule.setup()
    return datamodule


def test_all_ready_tables_are_tested() -> None:
    assert {path.stem for path in (CONF / "data").iterdir()} - {"table", "images", "torchvision"} == READY.keys()


@pytest.mark.parametrize("name", READY)
def test_ready_tables(data_dir: Path, name: str) -> None:
    task, rows, unused = READY[name]
    datamodule = ready(name, data_dir)
    found = [datamodule.splits[split]["rows"] for split in SPLITS]
    assert datamodule.target.task == task
    assert sum(found) == sum(rows)
    assert found == pytest.approx(rows, rel=0.02, abs=2)
    assert datamodule.describe()["unused"] == unused
    assert datamodule.quarantine is not None
    assert len(datamodule.quarantine) == 0
    batch = datamodule.head("train", found[0])
    assert len(batch["target"]) == found[0]
    assert "numbers" not in batch or batch["numbers"].isfinite().all()


MISSING_CELLS = {
    "adult": {"workclass": 2799, "occupation": 2809, "native-country": 857, "age": 0},
    "california_housing": {"total_bedrooms": 207, "total_rooms": 0},
    "telco_churn": {"TotalCharges": 11, "MonthlyCharges": 0},
    "titanic": {"Age": 177, "Embarked": 2, "Fare": 0},
}


@pytest.mark.parametrize("name", MISSING_CELLS)
def test_numbers_of_missing_cells(data_dir: Path, name: str) -> None:
    datamodule = ready(name, data_dir)
    table = pl.concat(frames(datamodule))

    def missing(column: str) -> int:
        cells = table[column]
        return (clean_text(cells, datamodule.missing) if cells.dtype == pl.String else cells).null_count()

    assert {column: missing(column) for column in MISSING_CELLS[name]} == MISSING_CELLS[name]


def test_zeros_are_replaced_by_missing(data_dir: Path) -> None:
    datamodule = ready("diamonds", data_dir)
    table = pl.concat(frames(datamodule))
    assert [(table[name] == 0).sum() for name in "xyz"] == [8, 7, 20]
    assert datamodule.inputs.indicators == ("x", "y", "z")


def test_copies_stay_in_one_split(data_dir: Path) -> None:
    datamodule = ready("diamonds", data_dir)
    splits = [frame.drop("lathe.file", "lathe.line", "lathe.copy").unique() for frame in frames(datamodule)]
    distinct = pl.concat(splits)
    assert len(distinct) == 53_940 - 146
    assert distinct.is_duplicated().sum() == 0


@pytest.mark.parametrize("name", ["bike_sharing", "electricity"])
def test_the_latest_rows_are_the_test_split(data_dir: Path, name: str) -> None:
    lines = pl.concat(frames(ready(name, data_dir)))["lathe.line"]
    assert lines.to_list() == list(range(2, len(lines) + 2))


def test_a_data_set_of_torchvision_is_read_from_its_root(data_dir: Path, tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (data_dir / "fashion_mnist").glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    datamodule = TorchvisionDataModule("FashionMNIST", str(tmp_path))
    datamodule.setup()
    assert [datamodule.splits[split]["rows"] for split in SPLITS] == [48_000, 12_000, 10_000]
    assert "Ankle boot" in datamodule.target.classes
    assert datamodule.inputs.images[0].shape == (1, 28, 28)
    with pytest.raises(DataError) as error:
        TorchvisionDataModule("MNIST", str(tmp_path)).setup()
    assert str(error.value) == (
        f"data.root={tmp_path}: cannot read MNIST there (Dataset not found. You can use download=True to download"
        " it); data.download=true downloads it"
    )
