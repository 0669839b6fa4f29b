"""Bad input: rejected rows, refused files and settings, and unusual but usable input."""

import datetime
import io
import json
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from datamodules.image_folder import ImageFolderDataModule
from datamodules.readers import read
from datamodules.readers.read import FILE, LINE
from datamodules.schema import DataError
from datamodules.split import SPLITS, Split
from datamodules.tabular import TableDataModule
from inference.artifact import Artifact

ROWS = 60
PARTS = ["train"] * 36 + ["val"] * 12 + ["test"] * 12
BY_PART: dict[str, Any] = {"split": Split("column", "part")}


def rows(**columns: Any) -> pl.DataFrame:
    """A table with a number, a target, and these columns."""
    return pl.DataFrame({"x": [row * 7 % 31 for row in range(ROWS)], "y": ["a", "b"] * (ROWS // 2)} | columns)


def set_up(path: Path | list[Path], **settings: Any) -> TableDataModule:
    paths = [str(one) for one in path] if isinstance(path, list) else str(path)
    datamodule = TableDataModule(paths, "y", **settings)
    datamodule.setup()
    return datamodule


def refused(path: Path | list[Path], **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        set_up(path, **settings)
    return str(error.value)


def written(folder: Path, table: pl.DataFrame, name: str = "rows.csv") -> Path:
    write = pl.DataFrame.write_csv if name.endswith(".csv") else pl.DataFrame.write_parquet
    write(table, folder / name)
    return folder / name


def rejected(datamodule: TableDataModule) -> list[tuple[Any, ...]]:
    assert datamodule.quarantine is not None
    return datamodule.quarantine.select("line", "column", "rule", "value").rows()


def kept(datamodule: TableDataModule) -> pl.DataFrame:
    return pl.concat(datamodule.frame(split) for split in SPLITS).sort(FILE, LINE)


def position_of(datamodule: TableDataModule, line: int) -> tuple[Any, int]:
    """The split of a line, and its row in the split."""
    lines = {split: datamodule.row_locations(split)[LINE].to_list() for split in SPLITS}
    split = next(split for split in SPLITS if line in lines[split])
    return split, lines[split].index(line)


def picture(width: int, height: int, ending: str = "PNG") -> bytes:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, ending)
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of four good images, 0.png to 3.png, and unusable files; one more image is outside the folder."""
    (tmp_path / "outside.png").write_bytes(picture(8, 8))
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(picture(12 + number, 12))
    (folder / "dot.png").write_bytes(picture(1, 1))
    (folder / "cut.jpg").write_bytes(picture(60, 60, "JPEG")[:-300])
    (folder / "wide.ppm").write_bytes(b"P6 20000 2 255\n" + bytes(120_000))
    (folder / "large.pgm").write_bytes(b"P5 16000 16000 255\n")
    (folder / "none.gif").write_bytes(b"")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "good_link.png").symlink_to(folder / "0.png")
    return folder


def test_unusable_image_files_are_rejected_with_their_reasons(photos: Path) -> None:
    bad = {
        "cut.jpg": None,  # the message contains a number of bytes
        "wide.ppm": "20,000 x 2 pixels: more than 16,384 per side or 80,000,000 in total",
        "large.pgm": "more than 80,000,000 pixels",
        "none.gif": "not an image of a supported format (BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP)",
        "absent.png": "no such file",
        "../outside.png": "outside the data folder",
        f"{photos.parent}/outside.png": "outside the data folder",
        "link.png": "outside the data folder",
        ".": "not a file",
    }
    good = [f"{row % 4}.png" for row in range(ROWS - len(bad) - 2)]
    table = rows(photo=[*good, "dot.png", "good_link.png", *bad])
    datamodule = set_up(written(photos, table), columns={"photo": "image"}, max_bad_fraction=0.5)
    first, *others = rejected(datamodule)
    line = len(good) + 4
    assert first[:2] + first[3:] == (line, "photo", "cut.jpg")
    assert first[2].startswith("cannot be decoded: image file is truncated (")
    assert others == [(line + 1 + row, "photo", bad[path], path) for row, path in enumerate(list(bad)[1:])]
    assert kept(datamodule)[LINE].to_list() == list(range(2, line))
    split, row = position_of(datamodule, line - 2)
    dot = datamodule.head(split, ROWS)["images.photo"][row]
    assert dot.shape == (3, 32, 32)
    assert (dot == dot[:, :1, :1]).all()

    assert refused(photos / "rows.csv", columns={"photo": "image"}, max_bad_fraction=0.1) == (
        "9 of 60 rows would be rejected, more than data.max_bad_fraction=0.1: photo: outside the data folder in 3"
        f" rows, as in {photos}/rows.csv, line 58: '../outside.png'; photo: {first[2]} in 1 rows, as in"
        f" {photos}/rows.csv, line 53: 'cut.jpg'; photo: {bad['wide.ppm']} in 1 rows, as in {photos}/rows.csv, line 54:"
        " 'wide.ppm'. All are in quarantine.parquet; fix the rows, or change data.columns, data.missing, data.ranges"
        " or data.max_bad_fraction."
    )


def test_a_column_without_any_image_is_refused(photos: Path) -> None:
    column = "column 'photo': none of the"
    table = rows(photo=[f"absent{row}.png" for row in range(ROWS)])
    assert refused(written(photos, table)) == (
        f"{column} 60 images tried can be read: absent0.png: no such file; paths are relative to {photos}"
    )
    assert refused(written(photos, rows(photo="")), columns={"photo": "image"}) == (
        f"{column} 0 images tried can be read: all paths are missing; paths are relative to {photos}"
    )


def test_ants_and_bees_train_without_the_unusable_file(data_dir: Path, run_here: Callable[..., Path]) -> None:
    folder = data_dir / "hymenoptera"
    datamodule = ImageFolderDataModule(str(folder), image_size=16)
    datamodule.setup()
    assert rejected(datamodule) == [(68, "image", "image mode P, neither L nor RGB", "ants/imageNotFound.gif")]
    assert {split: facts["rows"] for split, facts in datamodule.splits.items()} == {"train": 100, "val": 69, "test": 31}
    run = run_here(
        "data=images", f"data.path={folder}", "data.image_size=16", "model=cnn", "trainer.max_epochs=1",
        "baselines=false",
    )  # fmt: skip
    assert len(pl.read_parquet(run / "quarantine.parquet")) == 1
    assert math.isfinite(json.loads((run / "metrics.json").read_text())["test/loss"])


def test_empty_texts_and_texts_of_a_megabyte_are_encoded(tmp_path: Path) -> None:
    texts = ["", "spam " * 200_000, "s" * 1_000_000, "Ü" * 500_000, *(f"good day {row}" for row in range(ROWS - 4))]
    for name in ("rows.csv", "rows.parquet"):
        path = written(tmp_path, rows(words=texts), name)
        datamodule = set_up(path, columns={"words": "text"}, char_ngrams=(3, 4))
        assert rejected(datamodule) == []
        assert kept(datamodule)["words"].fill_null("").to_list() == texts
        first = 2 if name == "rows.csv" else 1
        for row, tokens in {0: 0, 1: 1_600_000, 2: 196, 3: 196}.items():
            split, place = position_of(datamodule, row + first)
            assert datamodule.head(split, ROWS)["offsets.words"].diff()[place] == tokens


def test_invalid_utf_8_is_refused_or_replaced_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, rows(words=[f"good day {row}" for row in range(ROWS)]))
    path.write_bytes(path.read_bytes().replace(b"day 30\n", b"caf\xe9 \xff\n").replace(b"good day 41", b"\x80"))
    assert refused(path) == (
        f"{path}, line 32: byte 0xe9 is not UTF-8; convert the file, as with: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
    )
    datamodule = set_up(path, invalid_utf8="replace")
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"{path}: replaced bytes that are not UTF-8 by U+FFFD: 3"
    ]
    words = dict(kept(datamodule).select(LINE, "words").iter_rows())
    assert (words[32], words[43]) == ("good caf\ufffd \ufffd", "\ufffd")
    assert rejected(datamodule) == []


def test_dates_in_mixed_formats_are_read_and_other_cells_rejected(tmp_path: Path) -> None:
    formats = ["%Y-%m-%d", "%d/%m/%Y", "%d.%m.%Y 06:00", "%b %d, %Y", "%Y%m%d", "%Y-%m-%dT%H:%M:%SZ"]
    days = [datetime.datetime(2021, 1, 1) + datetime.timedelta(days=9 * row) for row in range(ROWS)]
    cells = [day.strftime(formats[row % len(formats)]) for row, day in enumerate(days)]
    invalid = {7: "soon", 20: "2021-02-30", 33: "31/04/2022"}
    for row, cell in invalid.items():
        cells[row] = cell
    datamodule = set_up(written(tmp_path, rows(day=cells)))
    assert [column.kind for column in datamodule.columns] == ["number", "category", "date"]
    assert rejected(datamodule) == [(row + 2, "day", "not a date", cell) for row, cell in invalid.items()]
    seconds = [
        (day - datetime.datetime(1970, 1, 1)).total_seconds() + (21_600 if row % len(formats) == 2 else 0)
        for row, day in enumerate(days)
        if row not in invalid
    ]
    assert kept(datamodule)["day"].to_list() == seconds


def test_too_few_groups_and_invalid_folds_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, rows(place=["here"] * ROWS, house=["a", "b"] * (ROWS // 2)))
    assert refused(path, split=Split("group", "place")) == (
        "data.split.column=place: all 60 rows are in one group, but 3 are needed; choose another column, or"
        " data.split.by=stratified"
    )
    assert refused(path, split=Split("group", "house", fold=0)) == (
        "data.split.column=house: there are 2 groups, but 5 are needed; choose another column, or"
        " data.split.by=stratified"
    )
    for fold in (5, -1):
        with pytest.raises(DataError) as error:
            Split(fold=fold)
        assert str(error.value) == f"data.split.fold={fold} with data.split.folds=5: must be from 0 to 4"


def test_one_class_is_enough_for_validation_but_not_for_training(tmp_path: Path) -> None:
    half = ["a", "b"] * 18
    table = rows(part=PARTS).with_columns(y=pl.Series([*half, *["a"] * 12, *["a", "b"] * 6]))
    datamodule = set_up(written(tmp_path, table), **BY_PART)
    assert datamodule.splits["val"] == {"rows": 12, "classes": {"a": 12}}
    for task, target, value in [
        ("auto", ["a"] * 36 + half[:24], "'a'"),
        ("regression", ["2"] * 36 + ["3"] * 24, "2.0"),
    ]:
        path = written(tmp_path, table.with_columns(y=pl.Series(target)))
        assert refused(path, task=task, **BY_PART) == (
            f"data.target=y: every training row has {value}; there is nothing to learn. Change data.split, or give"
            " other training rows"
        )


def test_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    first = written(tmp_path, rows(z=1), "0.parquet")
    second = written(tmp_path, rows(z=1).rename({"x": "X"}), "1.parquet")
    value = f"{second}: other columns than {first}: it lacks x and also has X; give files of one table"
    assert refused([first, second]) == value
    assert refused(tmp_path) == value


def test_numbers_may_be_text_in_other_files(tmp_path: Path) -> None:
    typed = rows(g=[row % 9 for row in range(ROWS)]).with_columns(y=pl.Series([1.0, 0.0] * 30))
    texts = typed.with_columns(pl.col("x", "g").cast(pl.String), y=pl.Series(["1", "0"] * 30))
    texts = texts.with_columns(x=pl.when(pl.int_range(ROWS) == 4).then(pl.lit("lots")).otherwise("x"))
    for order in (1, -1):
        paths = [written(tmp_path, texts, "texts.parquet"), written(tmp_path, typed, "typed.parquet")][::order]
        datamodule = set_up(paths, split=Split("group", "g"))
        assert [column.kind for column in datamodule.columns] == ["number", "number", "drop"]
        assert datamodule.target.classes == ("0", "1")
        assert rejected(datamodule) == [(5, "x", "not a number", "lots")]
        for split in SPLITS:  # "3" and 3 are the same group
            groups = {(line - 1) % 9 for line in datamodule.row_locations(split)[LINE]}
            assert datamodule.splits[split]["rows"] == sum(
                2 if row != 4 else 1 for row in range(ROWS) if row % 9 in groups
            )


def test_a_damaged_row_group_is_reported_with_its_file(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.parquet" for number in range(3)]
    for path in paths:
        rows(word=[f"word {row}" for row in range(ROWS)]).write_parquet(path, row_group_size=20, compression="snappy")
    content = bytearray(paths[1].read_bytes())
    middle = slice(len(content) // 3, len(content) // 3 + 60)
    content[middle] = bytes(255 - byte for byte in content[middle])
    paths[1].write_bytes(content)
    message = refused(paths)
    assert message.startswith(f"{paths[1]}: the file is damaged, or its suffix is wrong: parquet: ")
    assert "\n" not in message


def test_an_empty_file_among_several(photos: Path) -> None:
    table = rows(photo=[f"{row % 4}.png" for row in range(ROWS)])
    whole = written(photos, table)
    empty = photos / "empty.csv"
    empty.write_bytes(b"")
    assert refused([whole, empty]) == f"{empty}: the file is empty"
    for header in (written(photos, table.clear(), "header.csv"), written(photos, table.clear(), "none.parquet")):
        for order in (1, -1):
            datamodule = set_up([header, whole][::order], columns={"photo": "image"})
            assert len(kept(datamodule)) == ROWS
            assert rejected(datamodule) == []


def test_a_chunk_without_any_target_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "CHUNK", 10)
    path = written(tmp_path, rows().with_columns(y=pl.when(pl.int_range(ROWS) // 10 == 2).then(None).otherwise("y")))
    datamodule = set_up(path, max_bad_fraction=0.2)
    assert rejected(datamodule) == [(line, "y", "no target", "") for line in range(22, 32)]


def test_copies_from_a_file_given_twice_stay_in_one_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = written(tmp_path, rows(z=[row * 1.5 for row in range(ROWS)]))
    datamodule = set_up([path, path])
    assert "60 rows with an earlier exact copy: kept, in the same split as the first copy" in caplog.messages
    for split in SPLITS:
        assert datamodule.row_locations(split)[LINE].value_counts()["count"].unique().to_list() == [2]


TYPES = {
    "nothing": (pl.Series([None] * ROWS, dtype=pl.Null), "constant", "no value in 60 rows"),
    "flag": (pl.Series([True, False, None] * 20), "category", "2 levels in 60 rows"),
    "price": (pl.Series([Decimal(row) / 4 for row in range(ROWS)]), "number", "numbers from 0 to 14.75"),
    "huge": (
        pl.Series([10**30 * (1 + row % 7) for row in range(ROWS)], dtype=pl.Int128),
        "number",
        "numbers from 1e+30 to 7e+30",
    ),
    "level": (pl.Series(["u", "v", None] * 20, dtype=pl.Categorical), "category", "2 levels in 60 rows"),
    "grade": (pl.Series(["low", "high"] * 30, dtype=pl.Enum(["low", "high"])), "category", "2 levels in 60 rows"),
    "took": (
        pl.Series([datetime.timedelta(hours=row) for row in range(ROWS)], dtype=pl.Duration("ms")),
        "date",
        "Duration(time_unit='ms') values",
    ),
    "clock": (pl.Series([datetime.time(row % 24) for row in range(ROWS)]), "date", "Time values"),
}


def test_the_kinds_of_columns_of_every_type(tmp_path: Path) -> None:
    table = rows(**{name: values for name, (values, _, _) in TYPES.items()}).sample(ROWS, shuffle=True, seed=1)
    path = written(tmp_path, table, "rows.parquet")
    datamodule = set_up(path)
    found = {column.name: (column.kind, column.reason) for column in datamodule.columns[2:]}
    assert found == {name: (kind, reason) for name, (_, kind, reason) in TYPES.items()}
    assert rejected(datamodule) == []
    for kind in ("number", "category", "text", "date"):
        assert len(kept(set_up(path, columns={"nothing": kind}))) == ROWS


@pytest.mark.parametrize("name", TYPES)
def test_any_type_can_be_a_target_a_group_and_text(tmp_path: Path, name: str) -> None:
    values = TYPES[name][0]
    path = written(
        tmp_path, rows(z=values).with_columns(y=values.gather([row % 3 for row in range(ROWS)])), "rows.parquet"
    )
    if name == "nothing":
        assert refused(path) == (
            "data.target=y: no row has a value. Cells that count as missing are '', '?', 'NA', 'N/A', 'n/a', 'NaN',"
            " 'nan', 'null', 'NULL' (data.missing)."
        )
        return
    datamodule = set_up(path, task="multiclass", columns={"z": "text"}, max_bad_fraction=0.5)
    assert len(datamodule.target.classes) == values[:3].drop_nulls().n_unique()
    if values.n_unique() > 3:
        grouped = set_up(path, task="multiclass", split=Split("group", "z"))
        lines = [
            set(grouped.row_locations(split)[LINE].map_elements(lambda line: values[line - 1])) for split in SPLITS
        ]
        assert sum(map(len, lines)) == values.n_unique()


@pytest.mark.parametrize(
    ("values", "kind"),
    [([[1, 2]] * ROWS, "List(Int64)"), ([{"a": 1}] * ROWS, "Struct({'a': Int64})"), ([b"x"] * ROWS, "Binary")],
)
def test_cells_with_several_values_are_refused(tmp_path: Path, values: list[Any], kind: str) -> None:
    path = written(tmp_path, rows(z=values), "rows.parquet")
    assert refused(path) == f"{path}: column 'z' holds {kind}; a cell must be one value: split it into columns"


def test_unusual_column_names_and_columns_without_training_values(photos: Path, run_here: Callable[..., Path]) -> None:
    """A complete run, because names become keys of batches, modules and the artifact."""
    odd = "t.o\"k. e'n, {a: [b]} / \\ é 日\n" + "z" * 500
    late = {"text": "good day", "number": "1.5", "date": "2024-01-31", "category": "u"}
    table = rows(
        part=PARTS,
        **{f"{odd} words": [f"a good day {row}" for row in range(ROWS)]},
        **{f"{odd} level": ["u", "v", "w"] * 20},
        **{f"{odd} number": [str(row % 7 / 3) for row in range(ROWS)]},
        **{f"{odd} day": [f"2024-0{row % 3 + 1}-{row % 28 + 1:02d}" for row in range(ROWS)]},
        **{f"{odd} photo": [f"{row % 4}.png" for row in range(ROWS)]},
        **{kind: [""] * 36 + [cell] * 24 for kind, cell in late.items()},
    )
    run = run_here(
        "data=table", f"data.path={written(photos, table)}", "data.target=y", "data.split.by=column",
        "data.split.column=part", "++data.columns={text:text,number:number,date:date,category:category}",
        "model=fusion", "model.channels=4", "trainer.max_epochs=1", "data.cache=null",
    )  # fmt: skip
    artifact = Artifact.load(run / "model.pt")
    artifact.check()
    kinds = [column["kind"] for column in artifact.spec["columns"]]
    assert kinds == ["number", "text", "category", "number", "date", "image", "text", "number", "date", "category"]
    scored = artifact.score(table, photos)
    assert len(scored.answers) == ROWS
    assert scored.answers["probability_a"].is_finite().all()
