"""Preparation: the data are equal from memory, from disk, with several processes and from the cache."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from common.cells import MANY, as_number
from datamodules.features import as_tensor
from datamodules.preparation import cache, pipeline
from datamodules.preparation.prepared_data import METADATA
from datamodules.readers import read
from datamodules.readers.read import LINE
from datamodules.tabular import TableDataModule
from tests.conftest import ROOT
from tests.datamodules.tables import set_up

SCRIPT = Path(__file__).with_name("prepare_together.py")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """4,000 rows like diamonds, with texts and dates, as three Parquet files."""
    generator = np.random.default_rng(0)
    table = pl.DataFrame(
        {
            "carat": generator.lognormal(-0.5, 0.5, 4000).round(2),
            "cut": generator.choice(["Fair", "Good", "Very Good", "Premium", "Ideal"], 4000),
            "color": generator.choice(list("DEFGHIJ"), 4000),
            "depth": generator.normal(61.7, 1.4, 4000).round(1),
            "price": generator.integers(326, 18_824, 4000),
        }
    )
    words = pl.concat_str("cut", pl.lit(" of color "), "color", pl.lit(" number "), "price", "depth", separator=" ")
    table = table.with_columns(words.alias("words"), day=pl.date(2020, 1, 1) + pl.duration(days=pl.int_range(4000)))
    folder = tmp_path / "rows"
    folder.mkdir()
    for number, first in enumerate((0, 1700, 3100)):
        part = table.slice(first, (1700, 1400, 900)[number])
        part.write_parquet(folder / f"{number}.parquet", row_group_size=300)
    return folder


def metadata(datamodule: TableDataModule) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((datamodule.prepared.folder / METADATA).read_text())
    return loaded


def test_stores_and_chunks_on_disk_give_the_batches_of_memory(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "CHUNK", 300)
    memory = TableDataModule(str(rows), "price", store="memory", seed=3)
    disk = TableDataModule(str(rows), "price", store="disk", memory_limit="100KB", seed=3)
    for datamodule in (memory, disk):
        datamodule.setup()
    assert metadata(memory) == metadata(disk)
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


def test_chunks_of_any_size_give_the_same_metadata(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size in (250, 100_000):
        monkeypatch.setattr(read, "CHUNK", size)
        datamodule = TableDataModule(str(rows), "price")
        datamodule.setup()
        found.append((datamodule.inputs, datamodule.target, datamodule.describe(), datamodule.splits))
    assert found[0] == found[1]


@pytest.mark.slow
def test_two_processes_prepare_the_data_of_one(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert json.loads((made / METADATA).read_text()) == metadata(alone)
    theirs = TableDataModule(str(rows), "price", cache=str(together))
    theirs.setup()
    assert theirs.prepared.folder == made
    for split in ("train", "val", "test"):
        ours, other = (each.head(split, 4000) for each in (alone, theirs))
        assert all(torch.equal(ours[name], other[name]) for name in ours)
        assert alone.row_locations(split).equals(theirs.row_locations(split))
        assert alone.frame(split).equals(theirs.frame(split))


def test_a_column_that_becomes_high_cardinality_is_encoded_like_in_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "CHUNK", 2 * MANY)
    monkeypatch.setattr(pipeline, "SCHEMA_ROWS", 2 * MANY)
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


def test_prepared_data_are_reused_until_a_file_or_a_setting_changes(
    rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def reused(**settings: Any) -> bool:
        caplog.clear()
        datamodule = TableDataModule(str(rows), "price", cache=str(tmp_path / "cache"), **settings)
        datamodule.setup()
        return "already prepared" in caplog.text

    assert not reused()
    assert reused()
    assert reused(batch_size=7, seed=5, store="disk")
    assert not reused(max_tokens=5)
    os.utime(rows / "1.parquet", (1, 1))
    assert not reused()


def test_jobs_that_start_together_prepare_once(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        time.sleep(0.1)
        (folder / "made").write_text("whole")

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: cache.find_or_make(tmp_path / "key", make), range(3)))
    assert sorted(found) == [False, True, True]


def test_an_unfinished_folder_is_not_used(tmp_path: Path) -> None:
    unfinished = tmp_path / "key.unfinished"
    unfinished.mkdir()
    (unfinished / "half").write_text("")
    assert not cache.find_or_make(tmp_path / "key", lambda folder: (folder / "made").touch())
    assert [path.name for path in (tmp_path / "key").iterdir()] == ["made"]


@pytest.mark.slow
def test_the_rest_of_a_killed_job_is_not_used(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from datamodules.preparation.cache import find_or_make\n"
        "def make(folder):\n    (folder / 'half').write_text(''); print('started', flush=True); time.sleep(60)\n"
        "find_or_make(Path(sys.argv[1]), make)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "key")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "started\n"
        job.send_signal(signal.SIGKILL)
    made: list[Path] = []
    assert not cache.find_or_make(tmp_path / "key", made.append)
    assert [path.name for path in (tmp_path / "key").iterdir()] == []
    assert cache.find_or_make(tmp_path / "key", made.append)
    assert len(made) == 1


def test_rules_for_text_and_numbers_can_be_cached(tmp_path: Path) -> None:
    rules = {"x": [[0, None], ["none", None]]}
    columns = {"x": "category"}
    settings: dict[str, Any] = {"columns": columns, "replace": rules, "cache": str(tmp_path / "cache")}
    table = pl.DataFrame(
        {"x": ["0", "1", "2", "none"] * 15, "z": [row * 1.5 for row in range(60)], "y": ["a", "b"] * 30}
    )
    assert set_up(tmp_path, table, **settings).inputs.categories == (("x", 4),)
