"""FSDP: processes that each hold a part of the weights train as one does, and leave whole ones behind."""

from pathlib import Path

import pytest
import torch

from tests.conftest import run_script
from tests.trainer.run.test_ddp import COMMAND, refused, same, trained

# Without a schedule, so that a run may be made longer.
SETTINGS = (*COMMAND, "l1=0", "trainer.gradient_clip_val=0.5", "scheduler=none")
# Each block has more than a million weights, and is gathered by itself.
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
    """Of the weights and of their momenta."""
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    momenta = saved["optimizer_states"][0]["state"]
    return [
        {name: weight.shape for name, weight in saved["state_dict"].items()},
        {number: state["momentum_buffer"].shape for number, state in momenta.items()},
    ]


def test_two_processes_train_as_one_does(one: Path, two: Path) -> None:
    same(one, two)


def test_large_blocks_are_gathered_one_by_one_and_train_as_before(folder: Path) -> None:
    settings = [setting for setting in SETTINGS if setting != "model.norm=none"] + list(BLOCKS)
    same(
        trained(folder / "whole", *settings, "trainer.fast=off"),
        trained(folder / "blocks", *settings, "trainer=fsdp"),
    )


def test_a_checkpoint_holds_all_weights_and_one_process_goes_on_from_it(folder: Path, one: Path, two: Path) -> None:
    assert shapes(one) == shapes(two)
    longer = ("trainer.max_epochs=4", "trainer.fast=off")
    resumed = run_script("train.py", f"resume={two}", "trainer=cpu", *longer)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    same(trained(folder / "longer", *SETTINGS, *longer), two)


def test_it_goes_on_with_parts_from_the_checkpoint_of_one_process(folder: Path) -> None:
    run = trained(folder / "begun", *SETTINGS, "trainer.fast=off")
    resumed = run_script("train.py", f"resume={run}", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.max_epochs=4")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    same(trained(folder / "straight", *SETTINGS, "trainer.max_epochs=4", "trainer.fast=off"), run)


def test_adamw_goes_on_as_if_it_had_not_stopped(folder: Path) -> None:
    settings = [setting for setting in SETTINGS if not setting.startswith("optimizer")]
    run = trained(folder / "adamw", *settings, "optimizer=adamw", "trainer=fsdp")
    resumed = run_script("train.py", f"resume={run}", "trainer.max_epochs=3")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    same(trained(folder / "straight_adamw", *settings, "optimizer=adamw", "trainer=fsdp", "trainer.max_epochs=3"), run)


def test_a_loss_that_is_not_finite_ends_the_run(folder: Path) -> None:
    run = trained(folder / "diverged", *SETTINGS, "trainer=fsdp", "optimizer.lr=1e30", code=2)
    assert "Use trainer=ddp to get a diagnosis.\n" in run.with_suffix(".out").read_text()


@pytest.mark.parametrize(
    ("override", "key", "problem"),
    [
        (
            "trainer.precision=16-mixed",
            "trainer.precision",
            "16-mixed does not serve trainer=fsdp: take auto, 32-true, bf16-mixed, bf16-true.",
        ),
        (
            "model=pretrained_text",
            "model",
            "reads its rows in chunks, the number of which may differ between processes: take trainer=ddp.",
        ),
        (
            "l1=0.1",
            "l1",
            "needs all weights in each process, but trainer=fsdp shares them out: take 0, or trainer=ddp.",
        ),
        (
            "callbacks=ema",
            "callbacks.average",
            "averages all weights in each process, but trainer=fsdp shares them out: take callbacks=default, or"
            " trainer=ddp.",
        ),
    ],
)
def test_what_looks_at_all_weights_is_refused(override: str, key: str, problem: str) -> None:
    assert f": {key}: {problem}" in refused("trainer=fsdp", override)
