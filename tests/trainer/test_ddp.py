"""Several processes: they train as one does, in one folder, and none is waited for in vain."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from datamodules.loader import Batches
from datamodules.ranks import Ranks
from datamodules.schema import DataError
from datamodules.store import DiskStore, MemoryStore, Rows, Store, save_part, size_of
from tests.conftest import ROOT, run_script
from trainer.config import prepare
from trainer.problems import ConfigError

# 455 training rows: the last of the batches of 32 has 7. Neither dropout nor batch norm: they differ by process.
COMMAND = (
    "data=breast_cancer",
    "data.batch_size=32",
    "loss.class_weights=balanced",
    "l1=0.001",
    "model.dropout=0",
    "model.norm=none",
    "optimizer.lr=0.003",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "logger=none",
    "export=none",
    "baselines=false",
)
TWO = ("trainer=ddp", *COMMAND)
KILLED = """
import os, signal
from pytorch_lightning import Callback

class Kill(Callback):
    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def ranks(rank: int, world: int) -> Ranks:
    found = Ranks()
    found.rank, found.world = rank, world
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture(scope="module")
def one(folder: Path) -> Path:
    return trained(folder / "one", *COMMAND, "trainer.fast=off")


@pytest.fixture(scope="module")
def two(folder: Path) -> Path:
    return trained(folder / "two", *TWO)


def trained(folder: Path, *overrides: str, code: int = 0) -> Path:
    done = run_script("train.py", *overrides, f"hydra.run.dir={folder}", f"paths.cache={folder.parent / 'cache'}")
    assert done.returncode == code, done.stdout + done.stderr
    folder.with_suffix(".out").write_text(done.stdout + done.stderr)
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return loaded


def same(ours: Path, other: Path) -> None:
    """Weights and metrics but for the rounding of sums."""
    for name, weight in weights(ours).items():
        torch.testing.assert_close(weight, weights(other)[name], rtol=1e-3, atol=2e-5)
    first, second = (json.loads((run / "metrics.json").read_text()) for run in (ours, other))
    assert first.keys() == second.keys()
    for name in first.keys() - {"fit/seconds", "fit/samples_per_second"}:
        assert first[name] == pytest.approx(second[name], rel=1e-3, abs=1e-5), name


def test_two_processes_train_as_one_does(one: Path, two: Path) -> None:
    same(one, two)


def test_the_folder_is_that_of_one_run_and_each_process_has_its_log(one: Path, two: Path) -> None:
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()} | {"train_rank_1.log"}
    said, other = two.with_suffix(".out").read_text(), (two / "train_rank_1.log").read_text()
    assert said.count("processes: 2, each takes its part of the rows of a batch\n") == 1
    assert "processes: 2, each" in other
    assert "epoch 2/2" in said and "epoch 2/2" not in other


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("count", [12, 13, 14, 15, 17])
def test_the_parts_of_a_batch_are_the_batch_of_one(tmp_path: Path, count: int, world: int, balanced: bool) -> None:
    rows = {"target": torch.arange(count) % 2, "codes": torch.arange(count).unsqueeze(1)}
    for store in (MemoryStore(rows), on_disk(rows, tmp_path)):
        for start in (0, 1):
            whole = epoch(store, ranks(0, 1), balanced, start)
            parts = [epoch(store, ranks(rank, world), balanced, start) for rank in range(world)]
            if len(whole) > len(parts[0]):  # a last batch that has not a row for each process
                whole[-2:] = [torch.cat(whole[-2:])]
            assert [torch.cat(each).tolist() for each in zip(*parts, strict=True)] == [each.tolist() for each in whole]
            sizes = [{len(each) for each in batch} for batch in zip(*parts, strict=True)]
            assert all(max(each) - min(each) <= 1 and min(each) > 0 for each in sizes)


def epoch(store: Store, ranks: Ranks, balanced: bool, start: int) -> list[torch.Tensor]:
    batches = Batches(store, 6, shuffle=True, balanced=balanced, seed=3, ranks=ranks)
    batches.set_epoch(2)
    batches.load_state_dict({"position": start})
    return [batch["codes"][:, 0] for batch in batches]


def on_disk(rows: Rows, folder: Path) -> DiskStore:
    files, lengths = [], []
    for number, first in enumerate(range(0, len(rows["target"]), 5)):
        part = {name: values[first : first + 5].clone() for name, values in rows.items()}
        files.append(folder / f"{number}.pt")
        lengths.append(len(part["target"]))
        save_part(files[-1], part)
    return DiskStore(files, lengths, size_of(rows))


def test_a_batch_needs_a_row_for_each_process() -> None:
    with pytest.raises(DataError) as caught:
        Batches(MemoryStore({"target": torch.zeros(5)}), 2, ranks=ranks(0, 3))
    assert str(caught.value) == (
        "5 rows in batches of 2 are too few for 3 processes: take fewer trainer.devices, or a larger data.batch_size"
    )
