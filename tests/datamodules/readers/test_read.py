"""Reading: every format gives the same rows with their lines; invalid rows are rejected."""

import csv
import gzip
import io
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.readers import delimited
from datamodules.readers import read as read_module
from datamodules.readers.read import FILE, LINE, read_chunks, read_share
from datamodules.schema import DataError
from tests.datamodules.tables import read

TABLE = pl.DataFrame({"a": ["1", "", "x y"], "b": ["2.5", "?", "3"]})


def rows(frame: pl.DataFrame) -> list[tuple[str, ...]]:
    return frame.drop(FILE, LINE).rows()


cell = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ['"', '""', "a,b", "x\ny", '5" wide', ",", "\n", " ", "x\ry", "\r\n"]
)


@settings(max_examples=80, deadline=None)
@given(
    table=st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(cell, min_size=n, max_size=n), min_size=1, max_size=8)),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
    block=st.sampled_from([1, 7, 64, 1 << 20]),
    rows_at_once=st.integers(1, 9),
)
def test_csv_written_by_python_is_read_back_with_its_lines(
    tmp_path_factory: pytest.TempPathFactory,
    table: list[list[str]],
    quoting: int,
    end: str,
    block: int,
    rows_at_once: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.csv"
    names = [f"c{index}" for index in range(len(table[0]))]
    text = io.StringIO(newline="")
    if any("\r" in cell for row in table for cell in row):  # which Python's writer does not quote by default
        quoting = csv.QUOTE_ALL
    writer = csv.writer(text, quoting=quoting, lineterminator=end)
    lines = []
    for row in [names, *table]:
        lines.append(text.getvalue().count("\n") + 1)
        writer.writerow(row)
    path.write_text(text.getvalue(), encoding="utf-8", newline="")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "BLOCK", block)
        chunks = list(read_chunks(path, separator=",", rows=rows_at_once))
    assert [row for chunk in chunks for row in rows(chunk.frame)] == [tuple(row) for row in table]
    assert [line for chunk in chunks for line in chunk.frame[LINE]] == lines[1:]
    assert all(len(chunk.bad) == 0 and len(chunk.frame) <= rows_at_once for chunk in chunks)


@settings(max_examples=100, deadline=None)
@given(
    text=st.lists(st.sampled_from(["a", ",", ",", '"', '"', '""', "\n", "\n", "\r\n", " ", '"b"', "é"]), max_size=25),
    block=st.sampled_from([1, 9, 1 << 20]),
)
def test_polars_and_the_exact_reader_agree_on_any_text(
    tmp_path_factory: pytest.TempPathFactory, text: list[str], block: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text("1,2\n" + "".join(text), encoding="utf-8", newline="")

    def outcome() -> object:
        try:
            raw = read(path, separator=",", names=["a", "b"])
        except DataError as error:
            return str(error)
        return raw.frame.rows(), raw.bad.rows()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "BLOCK", block)
        quick = outcome()
        patch.setattr(delimited, "_parse_plain", lambda *_: None)
        patch.setattr(delimited, "_well_formed", lambda *_: False)
        assert quick == outcome()


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_separators_are_found_and_files_are_decompressed(tmp_path: Path, separator: str, suffix: str) -> None:
    path = tmp_path / f"rows.txt{suffix}"
    if suffix == ".gz":
        path.write_bytes(gzip.compress(TABLE.write_csv(separator=separator).encode()))
    else:
        compression = "zstd" if suffix else "uncompressed"
        TABLE.lazy().sink_csv(path, separator=separator, compression=compression)
    raw = read(path)
    assert rows(raw.frame) == TABLE.rows()
    assert raw.frame[LINE].to_list() == [2, 3, 4]
    assert raw.frame[FILE].unique().to_list() == [str(path)]


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "jsonl", "json"])
def test_typed_files_keep_their_types(tmp_path: Path, suffix: str) -> None:
    table = pl.DataFrame({"n": [1, None, 3], "x": [0.5, 1.0, None], "t": ["a", None, "c"], "f": [True, False, None]})
    path = tmp_path / f"rows.{suffix}"
    writer = {"parquet": table.write_parquet, "arrow": table.write_ipc}.get(suffix, table.write_ndjson)
    writer(path)
    for chunks in (list(read_chunks(path)), list(read_chunks(path, rows=1))):
        assert [row for chunk in chunks for row in rows(chunk.frame)] == table.rows()
        assert [line for chunk in chunks for line in chunk.frame[LINE]] == [1, 2, 3]


def test_several_files_a_glob_and_a_folder_are_read_as_one_table(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.csv").write_text(f"x,y\n{name},1\n")
    (tmp_path / "c.csv").write_text("y,x\n2,c\n")
    assert rows(read(f"{tmp_path}/*.csv").frame) == [("a", "1"), ("b", "1"), ("c", "2")]
    assert rows(read([f"{tmp_path}/c.csv", f"{tmp_path}/a.csv"]).frame) == [("2", "c"), ("1", "a")]
    (tmp_path / "README.md").write_text("no table")
    (tmp_path / "inner").mkdir()
    assert read(tmp_path).frame.equals(read(f"{tmp_path}/*.csv").frame)


def test_a_file_without_a_header_uses_given_names(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1,2\n3,4\n")
    raw = read(tmp_path / "rows.csv", names=["a", "b"])
    assert raw.frame.columns == ["a", "b", FILE, LINE]
    assert rows(raw.frame) == [("1", "2"), ("3", "4")]
    assert raw.frame[LINE].to_list() == [1, 2]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a,b\n1,2\n")))
    assert rows(read("-").frame) == [("1", "2")]


def test_a_byte_order_mark_blank_lines_and_an_index_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbf,a\r\n0,x\r\n\r\n1,y")
    raw = read(tmp_path / "rows.csv")
    assert raw.frame.columns[:2] == ["column_1", "a"]
    assert rows(raw.frame) == [("0", "x"), ("1", "y")]
    assert raw.frame[LINE].to_list() == [2, 4]


def test_separators_in_quotes_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('"a,b,c,d";e\n"1,5";2\n')
    assert rows(read(tmp_path / "rows.csv").frame) == [("1,5", "2")]


def test_rows_of_another_length_are_rejected_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,2\n3\n"x\ny",4\n5,6,7\n8,9\n')
    raw = read(path)
    assert rows(raw.frame) == [("1", "2"), ("x\ny", "4"), ("8", "9")]
    assert raw.frame[LINE].to_list() == [2, 4, 7]
    assert raw.bad.rows() == [
        (str(path), 3, "", "1 fields instead of 2", "3"),
        (str(path), 6, "", "3 fields instead of 2", "5,6,7"),
    ]


def test_stray_quotes_are_characters(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('a,b\n5" wide,1\n"q",2\n3,an inch "\n')
    assert rows(read(tmp_path / "rows.csv").frame) == [('5" wide', "1"), ("q", "2"), ("3", 'an inch "')]
    (tmp_path / "rows.tsv").write_text('a\tb\n"open\t1\n2\tx\n')
    assert rows(read(tmp_path / "rows.tsv").frame) == [('"open', "1"), ("2", "x")]
    (tmp_path / "rows.csv").write_text('a,b\n1,"x\n2,"y"\n3,z\n4,"he said "hi" there"\n')  # the quote swallows a line
    raw = read(tmp_path / "rows.csv")
    assert rows(raw.frame) == [("3", "z"), ("4", 'he said hi" there"')]
    assert raw.bad.drop("file").rows() == [(2, "", "a closing quote inside a cell", '1,"x\n2,"y"')]


def test_an_unclosed_quote_affects_only_a_part_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + '5" wide,1\n' + "x,2\n" * 5000)
    monkeypatch.setattr(delimited, "BLOCK", 100)
    monkeypatch.setattr(delimited, "MAX_QUOTED", 200)
    table = read(path).frame
    assert rows(table)[:2] == [('5" wide', "1"), ("x", "2")]
    assert table[LINE].to_list() == list(range(2, 5003))
    with path.open("rb") as file:
        parts = list(delimited.read_delimited(file, "rows.csv", separator=None, names=None))
    assert max(len(part.cells) for part in parts) < 100


def test_chunks_have_the_requested_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "BLOCK", 50)
    table = pl.DataFrame({"a": [str(row) for row in range(100)]})
    table.write_csv(tmp_path / "rows.csv")
    table.write_parquet(tmp_path / "rows.parquet")
    table.write_ndjson(tmp_path / "rows.jsonl")
    for name in ("rows.csv", "rows.parquet", "rows.jsonl"):
        assert [len(chunk.frame) for chunk in read_chunks(tmp_path / name, rows=40)] == [40, 40, 20]
        assert [len(chunk.frame) for chunk in read_chunks(tmp_path / name, rows=50)] == [50, 50]


def test_lines_that_are_not_json_objects_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\nnope\n\n{"a": NaN}\n{"a": 2, "b": "x"}\n')
    raw = read(path)
    assert rows(raw.frame) == [(1, None), (2, "x")]
    assert raw.frame[LINE].to_list() == [1, 5]
    assert raw.bad.rows() == [
        (str(path), 2, "", "not a JSON object", "nope"),
        (str(path), 4, "", "not a JSON object", '{"a": NaN}'),
    ]


def test_json_lines_may_omit_keys_and_change_types(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"b": "x", "a": 2}\n{"a": "many"}\n')
    (tmp_path / "b.jsonl").write_text('{"c": true}\n')
    expected = [("1", None, None), ("2", "x", None), ("many", None, None), (None, None, True)]
    assert read(f"{tmp_path}/*.jsonl").frame.select("a", "b", "c").rows() == expected
    one_by_one = [row for chunk in read_chunks(f"{tmp_path}/*.jsonl", rows=1) for row in rows(chunk.frame)]
    assert one_by_one == [(1,), ("x", 2), ("many",), (True,)]


def test_integers_and_floats_of_different_files_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"a": 2.5}\n')
    assert rows(read(f"{tmp_path}/*.jsonl").frame) == [(1.0,), (2.5,)]


def test_a_last_chunk_without_a_json_object_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    *_, last = read_chunks(path, rows=2)
    assert (last.frame.columns, len(last.frame)) == (["a", FILE, LINE], 0)
    assert last.bad.rows() == [(str(path), 3, "", "not a JSON object", '{"a":')]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_processes_share_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(read_module, "CHUNK", 30)
    table = pl.DataFrame({"a": [str(row) for row in range(200)]})
    (table.write_csv if suffix == "csv" else table.write_parquet)(tmp_path / f"rows.{suffix}")
    for world in (1, 2, 3):
        chunks = dict(chunk for rank in range(world) for chunk in read_share(f"{tmp_path}/rows.{suffix}", rank, world))
        assert sorted(chunks) == list(range(7))
        assert [row for number in range(7) for row in rows(chunks[number].frame)] == table.rows()


REAL = {
    "adult/adult.csv.gz": (48_842, 15),
    "california_housing/housing.csv": (20_640, 10),
    "telco_churn/Telco-Customer-Churn.csv": (7_043, 21),
    "titanic/titanic_train.csv": (891, 12),
    "diamonds/diamonds.csv": (53_940, 10),
    "bike_sharing/hour.csv": (17_379, 17),
    "electricity/elec.csv.gz": (45_312, 7),
}


@pytest.mark.parametrize("name", REAL)
def test_real_tables_have_their_rows(data_dir: Path, name: str) -> None:
    raw = read(data_dir / name)
    assert (len(raw.frame), raw.frame.width - 2) == REAL[name]
    assert len(raw.bad) == 0
    assert raw.frame[LINE].to_list() == list(range(2, len(raw.frame) + 2))


def test_real_tables_without_a_header_and_with_quotes(data_dir: Path) -> None:
    raw = read(data_dir / "sms_spam" / "sms.tsv", names=["label", "message"])
    assert raw.frame["label"].value_counts(sort=True).rows() == [("ham", 4827), ("spam", 747)]
    raw = read(data_dir / "ag_news" / "ag_news_test.csv", names=["class", "title", "description"])
    assert sorted(raw.frame["class"].value_counts().rows()) == [(str(number), 1900) for number in range(1, 5)]
    assert len(raw.bad) == 0
