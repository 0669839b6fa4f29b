"""Several processes train like one, in one folder, and end if one of them fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.distributed import ProcessGroup
from datamodules.loading.batch_loader import Batches
from datamodules.loading.store import DiskStore, MemoryStore, Rows, Store, save_part, size_of
from datamodules.schema import DataError
from tests.conftest import ROOT, run_script
from trainer import compose, train
from trainer.command.prepare import prepare
from trainer.config.errors import ConfigError
from trainer.folders.layout import what_next

# 363 training rows, so the last batch of 32 has 11. No dropout or batch norm, which differ between processes. SGD,
# because Adam amplifies rounding errors of gradients close to zero.
COMMAND = (
    "data=breast_cancer",
    "data.batch_size=32",
    "loss.class_weights=balanced",
    "l1=0.001",
    "model.dropout=0",
    "model.norm=none",
    "optimizer=sgd",
    "optimizer.lr=0.01",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "logger=none",
    "export=none",
    "baselines=false",
)
TWO = ("trainer=ddp", *COMMAND)
# A checkpoint in the second epoch, after which one of the processes ends.
DYING = (
    "+callbacks.last_checkpoint.every_n_train_steps=18",
    "+callbacks.dying._target_=tests.trainer.dying.Dying",
    "+callbacks.dying.rank=1",
    "+callbacks.dying.step=20",
    "allowed_targets=[tests.]",
)


def ranks(rank: int, world: int) -> ProcessGroup:
    found = ProcessGroup()
    found.rank, found.world = rank, world
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture(scope="module")
def one(folder: Path) -> Path:
    settings = (*COMMAND, "trainer.fast=off", f"paths.cache={folder / 'cache'}")
    return train(compose(*settings, f"hydra.run.dir={folder / 'one'}")).folder


@pytest.fixture(scope="module")
def two(folder: Path) -> Path:
    return trained(folder / "two", *TWO)


def trained(folder: Path, *overrides: str, code: int = 0) -> Path:
    done = run_script("train.py", *overrides, f"hydra.run.dir={folder}", f"paths.cache={folder.parent / 'cache'}")
    assert done.returncode == code, done.stdout + done.stderr
    folder.with_suffix(".out").write_text(done.stdout + done.stderr)
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    return loaded


def same(ours: Path, other: Path) -> None:
    """Compares weights and metrics up to rounding."""
    for name, weight in weights(ours).items():
        torch.testing.assert_close(weight, weights(other)[name], rtol=1e-5, atol=1e-6)
    first, second = (json.loads((run / "metrics.json").read_text()) for run in (ours, other))
    assert first.keys() == second.keys()
    for name in first.keys() - {"fit/seconds", "fit/samples_per_second", "train/loss"}:
        assert first[name] == pytest.approx(second[name], rel=1e-5, abs=1e-6), name
    # A mean over the weights of the classes in each process, then over the processes.
    assert first["train/loss"] == pytest.approx(second["train/loss"], rel=0.02)


def test_two_processes_train_like_one(one: Path, two: Path) -> None:
    same(one, two)


def test_the_processes_share_a_folder_and_each_has_its_log(one: Path, two: Path) -> None:
    of_command = {".hydra", "train.log", "train_rank_1.log"}
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()} | of_command
    said, other = two.with_suffix(".out").read_text(), (two / "train_rank_1.log").read_text()
    assert said.count("processes: 2, each trains on its part of the rows of a batch\n") == 1
    assert "processes: 2, each" in other
    assert "epoch 2/2" in said
    assert "epoch 2/2" not in other


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("count", [12, 13, 14, 15, 17])
def test_the_parts_of_a_batch_make_the_batch_of_one_process(
    tmp_path: Path, count: int, world: int, balanced: bool
) -> None:
    rows = {"target": torch.arange(count) % 2, "codes": torch.arange(count).unsqueeze(1)}
    for store in (MemoryStore(rows), on_disk(rows, tmp_path)):
        for start in (0, 1):
            whole = epoch(store, ranks(0, 1), balanced, start)
            parts = [epoch(store, ranks(rank, world), balanced, start) for rank in range(world)]
            if len(whole) > len(parts[0]):  # the last batch had too few rows for all processes
                whole[-2:] = [torch.cat(whole[-2:])]
            assert [torch.cat(each).tolist() for each in zip(*parts, strict=True)] == [each.tolist() for each in whole]
            sizes = [{len(each) for each in batch} for batch in zip(*parts, strict=True)]
            assert all(max(each) - min(each) <= 1 and min(each) > 0 for each in sizes)


def epoch(store: Store, ranks: ProcessGroup, balanced: bool, start: int) -> list[torch.Tensor]:
    batches = Batches(store, 6, shuffle=True, balanced=balanced, seed=3, group=ranks)
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
        Batches(MemoryStore({"target": torch.zeros(5)}), 2, group=ranks(0, 3))
    assert str(caught.value) == (
        "5 rows in batches of 2 are too few for 3 processes: use fewer trainer.devices or a larger data.batch_size"
    )


@pytest.mark.slow
def test_a_run_with_a_killed_process_reports_it_and_resumes_in_one_process(folder: Path, one: Path) -> None:
    run = trained(folder / "killed", *TWO, *DYING, "+callbacks.dying.killed=true", code=1)
    said = run.with_suffix(".out").read_text()
    assert f"RuntimeError: process 1 of 2 was killed by signal 9; its log is {run}/train_rank_1.log\n" in said
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 18
    resumed = run_script("train.py", f"resume={run}", "trainer=cpu", "trainer.fast=off")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "resume: trainer.devices 2 -> 1 (conf/trainer/default.yaml wins)\n" in resumed.stdout
    same(one, run)


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_weights(folder: Path, two: Path) -> None:
    sender = ("_target_=tests.trainer.sender.Sender", "name=SIGTERM", "hook=on_train_batch_end", "at=18")
    given = ("allowed_targets=[tests.]", *(f"+callbacks.sender.{setting}" for setting in sender))
    run = trained(folder / "interrupted", *TWO, *given, code=143)
    last = run.with_suffix(".out").read_text().splitlines()[-1]
    assert last == f"Interrupted by SIGTERM. {what_next(run)}"
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 18
    resumed = run_script("train.py", f"resume={run}")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert all(torch.equal(weight, weights(two)[name]) for name, weight in weights(run).items())


@pytest.mark.slow
def test_the_input_error_of_one_process_is_that_of_the_run(folder: Path) -> None:
    run = trained(folder / "refused", *TWO, *DYING, "+callbacks.dying.killed=false", code=2)
    assert (
        run.with_suffix(".out")
        .read_text()
        .endswith(
            f"process 1 of 2 ended with exit code 2; its log is {run}/train_rank_1.log:\n"
            "rows.csv, line 7: what only this process has read cannot be used.\n"
        )
    )


@pytest.mark.slow
def test_each_job_of_a_sweep_has_its_processes(folder: Path, two: Path) -> None:
    sweep = folder / "sweep"
    done = run_script("train.py", "-m", *TWO, "seed=0,1", f"hydra.sweep.dir={sweep}", f"paths.cache={folder / 'cache'}")
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = [sweep / f"{number}_breast_cancer_mlp" for number in (0, 1)]
    assert sorted(path for path in sweep.iterdir() if path.is_dir()) == jobs
    assert all({path.name for path in job.iterdir()} == {path.name for path in two.iterdir()} for job in jobs)
    same(two, jobs[0])


@pytest.mark.slow
def test_torchrun_starts_the_processes_of_one_run(folder: Path, one: Path) -> None:
    output = folder / "torchrun"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py")
    settings = (f"paths.output={output}", f"paths.cache={folder / 'cache'}")
    done = subprocess.run(
        [sys.executable, *torchrun, *TWO, *settings], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("run folder") == 1
    (run,) = output.iterdir()
    assert (run / "train_rank_1.log").exists()
    same(one, run)


@pytest.mark.parametrize(
    ("overrides", "key", "problem"),
    [
        (
            ["cross_validate=5"],
            "cross_validate",
            "trains small runs, each in one process, but 2 processes train: use trainer.devices=1.",
        ),
        (
            ["ensemble=3"],
            "ensemble",
            "trains small runs, each in one process, but 2 processes train: use trainer.devices=1.",
        ),
        (
            ["lr_find=true"],
            "lr_find",
            "works in one process, but 2 processes train: set optimizer.lr, or use trainer.devices=1.",
        ),
        (
            ["model=word2vec"],
            "model",
            "Word2Vec counts words in one process, but 2 processes train: use trainer.devices=1.",
        ),
        (
            ["paths.cache=null"],
            "data.cache",
            "null is for one process, but 2 processes train: give a folder that all of them can read.",
        ),
        (
            ["trainer.strategy=ddp_spawn"],
            "trainer.strategy",
            "ddp_spawn is not supported: use ddp or fsdp.",
        ),
        (
            ["trainer.num_nodes=2"],
            "trainer.num_nodes",
            "the processes of 2 machines are started by torchrun or srun, on each of them (docs/processes.md).",
        ),
    ],
)
def test_settings_that_several_processes_do_not_support_are_rejected(
    overrides: list[str], key: str, problem: str
) -> None:
    assert f": {key}: {problem}" in refused("trainer=ddp", *overrides)


def test_the_settings_must_match_the_processes_that_were_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert refused("trainer=ddp") == (
        "A setting is wrong:\n  conf/trainer/ddp.yaml: trainer.devices: 2 on 1 machine, but torchrun started 4"
        " processes: use trainer=ddp trainer.devices=2 trainer.num_nodes=2."
    )
    assert prepare(["trainer=ddp", "trainer.num_nodes=2"]) == ["trainer=ddp", "trainer.num_nodes=2"]
    assert refused("-m", "trainer=ddp", "trainer.num_nodes=2", "seed=0,1") == (
        "A setting is wrong:\n  command line: -m: torchrun starts the processes of a single run: start a sweep with"
        " python train.py -m ..."
    )


def refused(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare(list(arguments))
    return str(caught.value)
