"""Writing rows chunk by chunk: atomic, and equal in all formats."""

import resource
from pathlib import Path

import polars as pl
import pytest

from common.errors import InputError
from inference.writers import writing

CHUNKS = [
    pl.DataFrame({"line": [2, 3], "label": ["a", 'b, "c"'], "p": [0.1, 1 / 3]}),
    pl.DataFrame({"line": [9], "label": [""], "p": [1e-9]}),
]
READ = {".csv": pl.read_csv, ".parquet": pl.read_parquet, ".jsonl": pl.read_ndjson}


@pytest.mark.parametrize("extension", READ)
def test_chunks_are_read_back_in_order(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"out{extension}"
    with writing(str(path)) as append:
        for chunk in CHUNKS:
            append(chunk)
        assert not path.exists()
    assert READ[extension](path).equals(pl.concat(CHUNKS))
    assert list(tmp_path.iterdir()) == [path]


def test_no_rows_still_write_the_header(tmp_path: Path) -> None:
    with writing(str(tmp_path / "out.csv")) as append:
        append(CHUNKS[0].clear())
    assert (tmp_path / "out.csv").read_text() == "line,label,p\n"


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")

    def write_half() -> None:
        with writing(str(path)) as append:
            append(CHUNKS[0])
            raise InputError("line 4 is not UTF-8")

    with pytest.raises(InputError, match="line 4 is not UTF-8"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def write(path: str) -> None:
    with writing(path) as append:
        append(CHUNKS[0])


def test_an_unknown_extension() -> None:
    with pytest.raises(InputError) as error:
        write("out.xlsx")
    assert str(error.value) == (
        "out.xlsx: cannot write rows as '.xlsx'. Use one of the extensions .csv, .parquet, .jsonl."
    )


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        write(f"{tmp_path}/absent/out.csv")
    assert str(error.value) == f"{tmp_path}/absent/out.csv: cannot be written: No such file or directory."


def test_a_full_disk(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # a real error of the operating system
    try:
        with pytest.raises(InputError) as error:
            write(f"{tmp_path}/out.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value).startswith(f"{tmp_path}/out.csv: cannot be written: ")
    assert "File too large" in str(error.value)
    assert list(tmp_path.iterdir()) == []
