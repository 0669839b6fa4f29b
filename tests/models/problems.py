"""Small synthetic problems for each task, and functions to train on them, for tests of networks and callbacks."""

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from datamodules.loading.batch_loader import Batches
from datamodules.loading.store import MemoryStore
from datamodules.schema import ImageSpec, InputSpec, TargetSpec, Task, TextSpec
from models.architectures.mlp import MLP
from models.training import losses
from models.training.lightning_module import SupervisedModule
from trainer.loop.trainer import Trainer

INPUTS = InputSpec(
    numbers=("a", "b", "c"), indicators=("b",), categories=(("yes", 3), ("narrow", 5), ("wide", 21), ("wider", 13))
)
MIXED = InputSpec(
    numbers=("size",),
    texts=(TextSpec("title", ("good", "bad", "the"), (1.0, 1.5, 0.5)),),
    images=(ImageSpec("photo", (1, 8, 8), (0.5,), (0.25,)),),
)
ADAMW = functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=1e-2)


def target(task: Task) -> TargetSpec:
    if task == "regression":
        return TargetSpec("price", "regression", mean=50.0, scale=8.0)
    classes = ("no", "yes") if task == "binary" else ("low", "mid", "high")
    return TargetSpec("answer", task, classes, (10,) * len(classes))


def rows(task: Task, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Encoded rows whose target depends on two numbers and a category."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(count, 4, generator=generator)
    numbers[:, 3] = (numbers[:, 3] > 1).float()
    codes = torch.stack(
        [torch.randint(1, levels, (count,), generator=generator) for _, levels in INPUTS.categories], dim=1
    ).int()
    score = numbers[:, 0] - 0.5 * numbers[:, 1].square() + 0.5 + (codes[:, 1] == 2)
    labels = {"binary": (score > 0).long(), "multiclass": (score > 0).long() + (score > 1).long()}
    return {"numbers": numbers, "codes": codes, "target": score if task == "regression" else labels[task]}


def mixed_rows(count: int, seed: int = 0) -> dict[str, Tensor]:
    """Rows of a number, a text and an image, which are equally informative about the binary target."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(count, 1, generator=generator)
    lengths = torch.randint(0, 5, (count,), generator=generator)
    offsets = nn.functional.pad(lengths.cumsum(0), (1, 0))
    good = torch.randint(0, 2, (count,), generator=generator)
    right = torch.randint(0, 2, (count,), generator=generator)
    tokens = torch.randint(0, 2, (int(offsets[-1]),), generator=generator) * 3  # unknown, or "the"
    for row in range(count):
        if lengths[row]:
            tokens[offsets[row]] = 2 - good[row]
    images = torch.randint(60, 120, (count, 1, 8, 8), generator=generator)
    columns = torch.arange(8).expand(count, 1, 8, 8)
    images[(columns >= 4) == right.bool().view(-1, 1, 1, 1)] += 80
    score = numbers[:, 0] + 2 * right - 1 + (2 * good - 1) * (lengths > 0)
    return {
        "numbers": numbers,
        "codes": torch.zeros(count, 0).int(),
        "tokens.title": tokens.int(),
        "offsets.title": offsets,
        "images.photo": images.byte(),
        "target": (score > 0).long(),
    }


def start(network: Any, batch: dict[str, Tensor]) -> None:
    """Calls `start` as a run does."""
    network.eval()
    with torch.no_grad():
        network.start(batch)
    network.train()


def script(module: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted: torch.jit.ScriptModule = torch.jit.script(module)
    return scripted


def check_trains_and_scripts(network: nn.Module, batch: dict[str, Tensor], shape: tuple[int, ...]) -> None:
    """Checks that all parameters have gradients, and that TorchScript gives the same output of this shape."""
    network(batch).square().sum().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()] == []
    network.eval()
    answers = network(batch)
    assert answers.shape == shape
    torch.testing.assert_close(script(network)(batch), answers, rtol=0, atol=1e-5)


def build(
    task: Task,
    *,
    network: nn.Module | None = None,
    loss: nn.Module | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = ADAMW,
    scheduler: Callable[..., Any] | None = None,
    **settings: Any,
) -> SupervisedModule:
    """A module with the given network, by default an MLP with dropout initialized with seed 0."""
    torch.manual_seed(0)
    spec = target(task)
    network = network or MLP(INPUTS, spec.outputs, hidden=(16, 16), dropout=0.2)
    settings = {"monitor": "val/loss", "mode": "min"} | settings
    return SupervisedModule(network, spec, loss or losses.auto(spec), optimizer, scheduler, **settings)


def fit(
    module: SupervisedModule,
    train: dict[str, Tensor],
    *,
    epochs: int,
    batch_size: int = 32,
    shuffle: bool = True,
    callbacks: Sequence[Callback] = (),
    resume: Path | None = None,
    **settings: Any,
) -> Trainer:
    """Trains on the CPU with one thread and validates on other rows of the same task."""
    settings = {"enable_progress_bar": False, "logger": False} | settings
    trainer = Trainer(
        accelerator="cpu",
        threads=1,
        max_epochs=epochs,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, pl.callbacks.ModelCheckpoint) for callback in callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.prepare(module, {})
    trainer.fit(
        module,
        Batches(MemoryStore(train), batch_size, shuffle=shuffle, seed=1),
        Batches(MemoryStore(rows(module.target.task, 64, seed=9)), 32),
        ckpt_path=resume,
        weights_only=True,
    )
    return trainer
