"""Files that cannot be read: absent, not tables, damaged, or with other columns; messages give the location."""

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from datamodules.schema import DataError
from tests.datamodules.tables import read


def refused(path: Any, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        read(path, **settings)
    return str(error.value)


def test_absent_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a\n1\n")
    assert refused(f"{tmp_path}/row.csv") == f"no such file: {tmp_path}/row.csv; did you mean {tmp_path}/rows.csv?"
    assert refused(f"{tmp_path}/no/x.csv") == (
        f"no such file: {tmp_path}/no/x.csv; the folder {tmp_path}/no does not exist either (for a ready table, its"
        " file in conf/data says where to get it)"
    )
    assert refused(f"{tmp_path}/*.parquet") == f"no file matches {tmp_path}/*.parquet"
    assert refused("") == refused([]) == "no file is given: give a file, several files, a glob or a folder"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("no table")
    assert refused(tmp_path / "empty") == (
        f"{tmp_path}/empty: no file in this folder is a table; supported are .csv .tsv .tab .txt .data .jsonl .ndjson"
        " .json .parquet .pq .arrow .feather .ipc, and text also as .gz and .zst"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"", "{path}: the file is empty"),
        ("rows.csv", b" \n", "{path}: the file is empty"),
        ("rows.csv", b"a,b\n", "{path}: it has a header but no rows"),
        (
            "rows.csv",
            b"a,b\n1\n2\n",
            "{path}, line 2: 1 fields instead of 2, and no row is valid; give the separator with data.separator, or fix"
            " the file",
        ),
        (
            "rows.csv",
            b"a,lathe.line\n1,2\n",
            "{path}: the column name 'lathe.line' is reserved for row locations; rename the column",
        ),
        (
            "rows.csv",
            b"a,b\n1,2\n3,caf\xe9\n",
            "{path}, line 3: byte 0xe9 is not UTF-8; convert the file, as with: iconv -f WINDOWS-1252 -t UTF-8 OLD"
            " > NEW",
        ),
        (
            "rows.csv",
            "a,b\n1,2\n".encode("utf-16"),
            "{path}, line 1: byte 0xff is not UTF-8; convert the file, as with: iconv -f UTF-16 -t UTF-8 OLD > NEW",
        ),
        (
            "rows.csv",
            b"a,b\r1,2\r",
            "{path}: its lines end in carriage returns only; convert the file, as with: tr '\\r' '\\n' < OLD > NEW",
        ),
        (
            "rows.jsonl",
            b'{"a": "b"}\n{"a": "caf\xe9"}\n',
            "{path}, line 2: byte 0xe9 is not UTF-8; convert the file, as with: iconv -f WINDOWS-1252 -t UTF-8 OLD"
            " > NEW",
        ),
        ("rows.jsonl", b"\n", "{path}: it has no rows"),
        (
            "rows.json",
            b'[{"a": 1},\n{"a": 2}]\n',
            "{path}, line 1: '[{{\"a\": 1}},' is not a JSON object; each line must be one, as with: jq -c '.[]' OLD >"
            " NEW",
        ),
        (
            "rows.csv.zst",
            b"a,b\n1,2\n",
            "{path}: the file is damaged, or its suffix is wrong: not a Zstandard file",
        ),
        (
            "rows.csv",
            b"a,b,a\n1,2,3\n",
            "{path}, line 1: 2 columns are named 'a'; rename one, or give all names with data.names",
        ),
        (
            "rows.csv",
            b'a,b\n1,"x\n2,y\n3,z\n',
            "{path}, line 2: a quote opens a cell here and is never closed; fix the line",
        ),
        (
            "rows.xls",
            b"x",
            "{path}: unknown format; supported are .csv .tsv .tab .txt .data .jsonl .ndjson .json .parquet .pq"
            " .arrow .feather .ipc, and text also as .gz and .zst",
        ),
        (
            "rows.csv.gz",
            gzip.compress(b"a,b\n1,2\n" * 100, mtime=0)[:-20],
            "{path}: the file is damaged, or its suffix is wrong: Compressed file ended before the end-of-stream"
            " marker was reached",
        ),
    ],
)
def test_files_that_are_not_tables_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert refused(f"{tmp_path}/{name}") == message.format(path=f"{tmp_path}/{name}")


def test_damaged_typed_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"a": ["1", "", "x y"], "b": ["2.5", "?", "3"]}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-30])
    assert refused(path).startswith(f"{path}: the file is damaged, or its suffix is wrong: parquet: ")
    path = tmp_path / "rows.arrow"
    path.write_bytes(b"hello")
    assert refused(path).startswith(f"{path}: cannot be read: ")


def test_columns_that_differ_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text("x,z\n1,2\n")
    assert (
        refused(f"{tmp_path}/*.csv")
        == f"{tmp_path}/b.csv: other columns than {tmp_path}/a.csv: it lacks y and also has z; give files of one table"
    )
    assert refused(f"{tmp_path}/a.csv", names=["only"]) == (
        f"{tmp_path}/a.csv, line 1: 2 fields, but data.names gives 1: only"
    )
    assert refused(f"{tmp_path}/a.csv", names=["a", "a"]) == (
        "data.names: 'a' is given twice; each column needs a unique name"
    )
    assert refused(f"{tmp_path}/a.csv", names=["a", ""]) == (
        "data.names: name 2 is empty; each column needs a unique name"
    )
    pl.DataFrame({"a": [[1, 2]], "b": [1]}).write_parquet(tmp_path / "rows.parquet")
    assert refused(f"{tmp_path}/rows.parquet") == (
        f"{tmp_path}/rows.parquet: column 'a' holds List(Int64); a cell must be one value: split it into columns"
    )
    assert refused(f"{tmp_path}/rows.parquet", names=["a", "b"]) == (
        f"{tmp_path}/rows.parquet: data.names is for text without a header, but .parquet files contain names; remove it"
    )
