"""Preparing: in memory, from disk, by several processes and out of the cache, the data are the same."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from common.cells import MANY, as_number
from datamodules.features import as_tensor
from datamodules.preparation import cache, pipeline
from datamodules.preparation.pipeline import METADATA
from datamodules.readers import read
from datamodules.readers.read import LINE
from datamodules.tabular import TableDataModule
from tests.conftest import ROOT
from tests.datamodules.tables import set_up

SCRIPT = Path(__file__).with_name("prepare_together.py")


@pytest.fixture
def rows(tmp_path: Path, data_dir: Path) -> Path:
    """4,000 rows of diamonds and words made of them, as three files of Parquet."""
    table = pl.read_csv(data_dir / "diamonds" / "diamonds.csv").sample(4000, seed=0, shuffle=True)
    words = pl.concat_str("cut", pl.lit(" of colour "), "color", pl.lit(" number "), "price", "depth", separator=" ")
    table = table.with_columns(words.alias("words"), day=pl.date(2020, 1, 1) + pl.duration(days=pl.int_range(4000)))
    folder = tmp_path / "rows"
    folder.mkdir()
    for number, first in enumerate((0, 1700, 3100)):
        part = table.slice(first, (1700, 1400, 900)[number])
        part.write_parquet(folder / f"{number}.parquet", row_group_size=300)
    return folder


def facts(datamodule: TableDataModule) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((datamodule._folder / METADATA).read_text())
    return loaded


def test_a_store_on_disk_and_chunks_on_disk_give_the_batches_of_memory(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "CHUNK", 300)
    memory = TableDataModule(str(rows), "price", store="memory", seed=3)
    disk = TableDataModule(str(rows), "price", store="disk", memory_limit="100KB", seed=3)
    for datamodule in (memory, disk):
        datamodule.setup()
    assert facts(memory) == facts(disk)
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        batches = [list(getattr(datamodule, loader)()) for datamodule in (memory, disk)]
        for ours, theirs in zip(*batches, strict=True):
            assert ours.keys() == {"numbers", "codes", "tokens.words", "offsets.words", "target"}
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    samples = memory.sample("train", 50), disk.sample("train", 50)
    assert len(samples[0]["target"]) == 50
    assert all(torch.equal(values, samples[1][name]) for name, values in samples[0].items())
    everything = memory.head("train", 4000)
    assert all(torch.equal(values, everything[name]) for name, values in memory.sample("train", 9999).items())


def test_chunks_of_any_size_give_the_same_facts(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size in (250, 100_000):
        monkeypatch.setattr(read, "CHUNK", size)
        datamodule = TableDataModule(str(rows), "price")
        datamodule.setup()
        found.append((datamodule.inputs, datamodule.target, datamodule.describe(), datamodule.splits))
    assert found[0] == found[1]


def test_two_processes_prepare_what_one_does(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = tmp_path / "together"
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29653", str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *command, str(rows), "price", str(together)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(read, "CHUNK", 500)
    alone = TableDataModule(str(rows), "price")
    alone.setup()
    (made,) = (folder for folder in together.iterdir() if folder.is_dir())
    assert json.loads((made / METADATA).read_text()) == facts(alone)
    theirs = TableDataModule(str(rows), "price", cache=str(together))
    theirs.setup()
    assert theirs._folder == made
    for split in ("train", "val", "test"):
        ours, other = (each.head(split, 4000) for each in (alone, theirs))
        assert all(torch.equal(ours[name], other[name]) for name in ours)
        assert alone.row_locations(split).equals(theirs.row_locations(split))
        assert alone.frame(split).equals(theirs.frame(split))


def test_a_column_whose_spellings_become_many_is_encoded_as_the_artefact_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "CHUNK", 2 * MANY)
    monkeypatch.setattr(pipeline, "LOOK", 2 * MANY)
    rows = 8 * MANY
    level = pl.Series("level", [f" {row % 9}.0" if row < 4 * MANY else str(row % (2 * MANY)) for row in range(rows)])
    number = level.str.replace("8.0", "?").alias("number")
    y = pl.Series("y", [str(row % 2) for row in range(rows)])
    table = pl.DataFrame([level, number, y])
    datamodule = set_up(tmp_path, table, columns={"level": "category", "number": "number"}, max_levels=9999)
    for split in ("train", "val", "test"):
        raw = table[datamodule.row_locations(split)[LINE] - 2]
        numbers = {"number": as_tensor(as_number(raw["number"], datamodule.missing)[0])}
        expected = datamodule.features(numbers, {"level": raw["level"].to_list()}, {})
        found = datamodule.head(split, rows)
        assert torch.equal(found["codes"], expected["codes"])
        torch.testing.assert_close(found["numbers"], expected["numbers"])


def test_what_was_prepared_is_found_again_until_a_file_or_a_setting_changes(
    rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def found(**settings: Any) -> bool:
        caplog.clear()
        datamodule = TableDataModule(str(rows), "price", cache=str(tmp_path / "cache"), **settings)
        datamodule.setup()
        return "prepared before" in caplog.text

    assert not found()
    assert found()
    assert found(batch_size=7, seed=5, store="disk")
    assert not found(max_tokens=5)
    os.utime(rows / "1.parquet", (1, 1))
    assert not found()


def test_jobs_that_start_together_prepare_once(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from datamodules.preparation.cache import find_or_make\n"
        "def make(folder):\n    time.sleep(0.5); (folder / 'made').write_text('whole')\n"
        "print(find_or_make(Path(sys.argv[1]), make))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "key")]
    jobs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert sorted(job.communicate()[0].strip() for job in jobs) == ["False", "True", "True"]


def test_what_a_killed_job_left_is_not_read(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from datamodules.preparation.cache import find_or_make\n"
        "def make(folder):\n    (folder / 'half').write_text(''); print('begun', flush=True); time.sleep(60)\n"
        "find_or_make(Path(sys.argv[1]), make)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "key")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "begun\n"
        job.send_signal(signal.SIGKILL)
    made: list[Path] = []
    assert not cache.find_or_make(tmp_path / "key", made.append)
    assert [path.name for path in (tmp_path / "key").iterdir()] == []
    assert cache.find_or_make(tmp_path / "key", made.append)
    assert len(made) == 1
