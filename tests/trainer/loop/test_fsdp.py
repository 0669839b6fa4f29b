"""FSDP: sharded training gives the weights of one process, and checkpoints with all weights."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from models.architectures.mlp import MLP
from tests.conftest import run_script
from tests.models.problems import INPUTS, build, fit, rows
from tests.trainer.run.test_ddp import COMMAND, refused, same, trained
from trainer.callbacks.random_state import RandomState
from trainer.loop.fsdp import Sharded

# Without a schedule, so that a resumed run may have more epochs.
SETTINGS = (*COMMAND, "l1=0", "trainer.gradient_clip_val=0.5", "scheduler=none")
# Each block has more than a million weights, and is gathered on its own.
BLOCKS = (
    *("model=ft_transformer", "model.inputs.size=512", "model.hidden=512", "model.attention_dropout=0"),
    *("model.inputs.unknown_rate=0", "trainer.max_epochs=1", "+trainer.limit_train_batches=3"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def one(folder: Path) -> Path:
    return trained(folder / "one", *SETTINGS, "trainer.fast=off")


@pytest.fixture(scope="module")
def two(folder: Path) -> Path:
    return trained(folder / "two", *SETTINGS, "trainer=fsdp", "export=torchscript")


def shapes(run: Path) -> list[dict[str, torch.Size]]:
    """The shapes of the weights and of their momentum buffers."""
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    momenta = saved["optimizer_states"][0]["state"]
    return [
        {name: weight.shape for name, weight in saved["state_dict"].items()},
        {number: state["momentum_buffer"].shape for number, state in momenta.items()},
    ]


@pytest.mark.filterwarnings("ignore:.*sync_dist=True")
def test_a_sharded_checkpoint_resumes_sharded_and_unsharded(tmp_path: Path) -> None:
    """One process that holds all shards stands for several."""

    def run(name: str, epochs: int, resume: str | None = None, strategy: str | Sharded = "auto") -> dict[str, Tensor]:
        torch.manual_seed(0)
        module = build("binary", network=MLP(INPUTS, 1, hidden=(16,), dropout=0.0))
        path = None if resume is None else tmp_path / resume / "last.ckpt"
        callbacks = [RandomState(), ModelCheckpoint(tmp_path / name, "last")]
        fit(module, rows("binary", 100), epochs=epochs, callbacks=callbacks, resume=path, strategy=strategy)
        return module.state_dict()

    whole = run("whole", 2)
    try:
        run("sharded", 1, strategy=Sharded(1))
        resumed = run("resumed", 2, "sharded", Sharded(1))
    finally:
        torch.distributed.destroy_process_group()
    for other in (resumed, run("unsharded", 2, "sharded")):
        torch.testing.assert_close(other, whole)


@pytest.mark.slow
def test_two_processes_train_as_one_does(one: Path, two: Path) -> None:
    same(one, two)


@pytest.mark.slow
def test_large_blocks_are_gathered_one_by_one(folder: Path) -> None:
    settings = [setting for setting in SETTINGS if setting != "model.norm=none"] + list(BLOCKS)
    same(
        trained(folder / "whole", *settings, "trainer.fast=off"),
        trained(folder / "blocks", *settings, "trainer=fsdp"),
    )


@pytest.mark.slow
def test_one_process_resumes_from_a_checkpoint_with_all_weights(folder: Path, one: Path, two: Path) -> None:
    assert shapes(one) == shapes(two)
    longer = ("trainer.max_epochs=4", "trainer.fast=off")
    resumed = run_script("train.py", f"resume={two}", "trainer=cpu", *longer)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    same(trained(folder / "longer", *SETTINGS, *longer), two)


@pytest.mark.slow
def test_a_sharded_run_resumes_from_the_checkpoint_of_one_process(folder: Path) -> None:
    run = trained(folder / "begun", *SETTINGS, "trainer.fast=off")
    resumed = run_script("train.py", f"resume={run}", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.max_epochs=4")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    same(trained(folder / "straight", *SETTINGS, "trainer.max_epochs=4", "trainer.fast=off"), run)


@pytest.mark.slow
def test_adamw_resumes_as_if_uninterrupted(folder: Path) -> None:
    settings = [setting for setting in SETTINGS if not setting.startswith("optimizer")]
    run = trained(folder / "adamw", *settings, "optimizer=adamw", "trainer=fsdp")
    resumed = run_script("train.py", f"resume={run}", "trainer.max_epochs=3")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    same(trained(folder / "straight_adamw", *settings, "optimizer=adamw", "trainer=fsdp", "trainer.max_epochs=3"), run)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run(folder: Path) -> None:
    run = trained(folder / "diverged", *SETTINGS, "trainer=fsdp", "optimizer.lr=1e30", code=2)
    assert "Use trainer=ddp to get a diagnosis.\n" in run.with_suffix(".out").read_text()


@pytest.mark.parametrize(
    ("override", "key", "problem"),
    [
        (
            "trainer.precision=16-mixed",
            "trainer.precision",
            "16-mixed is not supported by trainer=fsdp: use auto, 32-true, bf16-mixed, bf16-true.",
        ),
        (
            "model=pretrained_text",
            "model",
            "reads its rows in chunks, the number of which may differ between processes: use trainer=ddp.",
        ),
        (
            "l1=0.1",
            "l1",
            "needs all weights in each process, but trainer=fsdp shards them: use 0, or trainer=ddp.",
        ),
        (
            "callbacks=ema",
            "callbacks.average",
            "averages all weights in each process, but trainer=fsdp shards them: use callbacks=default, or"
            " trainer=ddp.",
        ),
    ],
)
def test_settings_that_need_all_weights_are_rejected(override: str, key: str, problem: str) -> None:
    assert f": {key}: {problem}" in refused("trainer=fsdp", override)
