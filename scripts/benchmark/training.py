"""Rows a second in training, against a bare loop of PyTorch, in turns: an epoch of it before and after each epoch.

python scripts/benchmark/training.py [--cases I:64 I:256 T:256 T:1024] [--variants ordinary fast] [--rounds 5]
    [--rows ROWS] [--threads 1] [--json FILE]

(I): 784-64-128-64-10 with batch norm on 60,000 images of bytes; (T): 108-256-256-256-1 on 39,073 rows of numbers. Each
with a validation set and fused AdamW. Lathe has checkpoints, early stopping, TensorBoard, metrics and progress besides;
`lightning` is its plain Trainer with a DataLoader, and all that it switches on by itself. The frameworks of others.py
run in processes of their own, each in an environment that uv makes for it with this Python and this torch.
"""

import argparse
import contextlib
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[2]))

from datamodules.loading.batch_loader import Batches
from datamodules.loading.store import MemoryStore, Rows
from datamodules.schema import TargetSpec
from models.architectures.mlp import perceptron
from models.layers.common import Norm
from models.training import losses
from models.training.lightning_module import SupervisedModule
from scripts.benchmark.page import ROOT, markdown, publish
from trainer.callbacks.progress import Progress
from trainer.callbacks.random_state import RandomState
from trainer.loop.trainer import Trainer
from trainer.loop.quiet import quiet_lightning

EPOCHS = 4
"""Of a round: its figure is of all but the first."""
EVALUATED = 8192


@dataclass(frozen=True)
class Workload:
    train: Rows
    val: Rows
    target: TargetSpec
    column: str
    """What the network looks at."""
    widths: tuple[int, ...]
    norm: Norm

    def build(self) -> nn.Module:
        """A network from batches to logits."""
        width, *hidden, outputs = self.widths
        return Network(self.column, perceptron(width, hidden, outputs, "relu", self.norm, 0.0, "he"))


class Network(nn.Module):
    """An MLP on one column of a batch; bytes become standardised numbers."""

    def __init__(self, column: str, layers: nn.Sequential) -> None:
        super().__init__()
        self.column = column
        self.layers = layers

    def forward(self, batch: Rows) -> Tensor:
        values = batch[self.column].flatten(1)
        if values.dtype == torch.uint8:
            values = (values.float() / 255 - 0.5) / 0.25
        output: Tensor = self.layers(values)
        return output


def images(count: int = 60_000) -> Workload:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(784, 10, generator=generator)

    def rows(count: int) -> Rows:
        pixels = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
        target = ((pixels.flatten(1).float() / 255 - 0.5) @ directions).argmax(1)
        return {"images.image": pixels, "target": target}

    target = TargetSpec("digit", "multiclass", tuple("0123456789"), (count // 10,) * 10)
    return Workload(rows(count), rows(count // 6), target, "images.image", (784, 64, 128, 64, 10), "batch")


def table(count: int = 39_073) -> Workload:
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(108, generator=generator)

    def rows(count: int) -> Rows:
        numbers = torch.randn(count, 108, generator=generator)
        return {"numbers": numbers, "target": (numbers @ direction > 0).long()}

    target = TargetSpec("answer", "binary", ("no", "yes"), (count // 2, count - count // 2))
    return Workload(rows(count), rows(count // 4), target, "numbers", (108, 256, 256, 256, 1), "none")


WORKLOADS: dict[str, Callable[..., Workload]] = {"I": images, "T": table}


class Clock(Callback):
    """Looks at the time at the start of each epoch and at the end of the last.

    Seconds of the clock, and of this process on its cores: where other work takes these, the second is surer.
    """

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def look(self) -> None:
        self.times.append((time.perf_counter(), time.process_time()))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.look()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.look()


class Bare:
    """A plain loop over tensors in memory; a call is an epoch and its validation."""

    def __init__(self, work: Workload, batch_size: int) -> None:
        self.work, self.batch_size = work, batch_size
        self.network = work.build()
        self.loss = losses.auto(work.target)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)

    def __call__(self) -> None:
        train, val = self.work.train, self.work.val
        self.network.train()
        for index in torch.split(torch.randperm(len(train["target"])), self.batch_size):
            batch = {name: values.index_select(0, index) for name, values in train.items()}
            self.optimizer.zero_grad()
            torch.autograd.backward(self.loss(self.network(batch), batch["target"]))
            self.optimizer.step()
        self.network.eval()
        with torch.inference_mode():
            for index in torch.split(torch.arange(len(val["target"])), EVALUATED):
                batch = {name: values.index_select(0, index) for name, values in val.items()}
                self.loss(self.network(batch), batch["target"])


class InTurns(Clock):
    """Has an epoch of the bare loop made before each epoch, and after the last.

    What else the machine has to do slows both alike: it may change by half from one minute to the next.
    """

    def __init__(self, bare: Bare) -> None:
        super().__init__()
        self.bare = bare

    def look(self) -> None:
        super().look()
        self.bare()
        super().look()

    def epochs(self) -> "Epochs":
        spans = np.diff(self.times, axis=0)
        beside, own = spans[0::2], spans[1::2]
        return np.stack([own, (beside[:-1] + beside[1:]) / 2], axis=1)


def ours(work: Workload, batch_size: int, clock: Clock, **settings: Any) -> None:
    """Lathe, with all that a run has switched on."""
    module = SupervisedModule(
        work.build(),
        work.target,
        losses.auto(work.target),
        partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-4),
        None,
        monitor="val/loss",
        mode="min",
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            **{"max_epochs": EPOCHS, "accelerator": "cpu", "threads": torch.get_num_threads(), **settings},
            num_sanity_val_steps=0,
            enable_model_summary=False,
            logger=TensorBoardLogger(folder),
            callbacks=[
                ModelCheckpoint(folder, "best", monitor="val/loss"),
                ModelCheckpoint(folder, "last", enable_version_counter=False),
                EarlyStopping("val/loss", patience=16),
                Progress(),
                RandomState(),
                clock,
            ],
        )
        device = trainer.strategy.root_device
        stores = [
            MemoryStore({name: values.to(device) for name, values in rows.items()}) for rows in (work.train, work.val)
        ]
        trainer.prepare(module, {})
        trainer.fit(module, Batches(stores[0], batch_size, shuffle=True), Batches(stores[1], EVALUATED))


class Plain(pl.LightningModule):
    """As a tutorial of Lightning has it."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.network = work.build()
        self.column = work.column
        self.loss = losses.auto(work.target)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.loss(self.network({self.column: batch[0]}), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(self.network({self.column: batch[0]}), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)


def lightning(work: Workload, batch_size: int, clock: Clock, **settings: Any) -> None:
    """The Trainer's own progress bar, checkpoint and logger, and rows from a DataLoader without workers."""
    datasets = [TensorDataset(rows[work.column], rows["target"]) for rows in (work.train, work.val)]
    train, val = DataLoader(datasets[0], batch_size, shuffle=True), DataLoader(datasets[1], EVALUATED)
    # Its bar and its summary would stand in the midst of the table.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        trainer = pl.Trainer(
            **{"max_epochs": EPOCHS, "accelerator": "cpu", **settings}, default_root_dir=folder, callbacks=[clock]
        )
        trainer.fit(Plain(work), train, val)


UNDECLARED = {"pytorch-tabular": ("requests",)}
"""What a framework imports though its package does not ask for it."""


class Unavailable(Exception):
    """A framework that cannot be measured, and why."""


Epochs = np.ndarray
"""(epochs, 2, 2): of each, and of a bare one beside it, the seconds and the CPU seconds."""


@cache
def environment(framework: str) -> tuple[list[str], str]:
    """The command of a Python that has it, and its version."""
    command = ["uv", "run", "--quiet", "--isolated", "--no-project", "--python", platform.python_version()]
    for package in (framework, f"torch=={version('torch')}", *UNDECLARED.get(framework, ())):
        command += ["--with", package]
    command += ["python"]
    told = f"from importlib.metadata import version; print(version('{framework}'))"
    made = subprocess.run([*command, "-c", told], capture_output=True, text=True)
    if made.returncode != 0:
        raise Unavailable(f"cannot be installed: {' '.join(made.stderr.split())}")
    return command, made.stdout.strip()


def elsewhere(framework: str, work: Workload, batch_size: int) -> Epochs:
    """Another framework, by others.py."""
    if framework == "pytorch-tabular" and work.column != "numbers":
        raise Unavailable("takes tables alone")
    with tempfile.TemporaryDirectory() as folder:
        rows = [(rows[work.column], rows["target"]) for rows in (work.train, work.val)]
        task = {"train": rows[0], "val": rows[1], "widths": work.widths, "norm": work.norm == "batch"}
        torch.save(task, f"{folder}/task.pt")
        command = [*environment(framework)[0], str(ROOT / "scripts/benchmark/others.py"), framework, "task.pt"]
        command += [str(number) for number in (batch_size, EPOCHS, torch.get_num_threads())]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    bare, clock = Bare(work, batch_size), Clock()
    clock.look()
    for _ in range(EPOCHS):
        bare()
        clock.look()
    return np.stack([json.loads(done.stdout.splitlines()[-1]), np.diff(clock.times, axis=0)], axis=1)


def here(train: Callable[..., None], work: Workload, batch_size: int, **settings: Any) -> Epochs:
    torch.manual_seed(0)
    clock = InTurns(Bare(work, batch_size))
    train(work, batch_size, clock, **settings)
    return clock.epochs()


OTHERS = ("skorch", "fastai", "pytorch-tabular")
VARIANTS: dict[str, Callable[[Workload, int], Epochs]] = {
    "ordinary": partial(here, ours, fast="off"),
    "fast": partial(here, ours, fast="on"),
    "compiled": partial(here, ours, fast="on", compile=True),
    "lightning": partial(here, lightning),
    **{name: partial(elsewhere, name) for name in OTHERS},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["I:64", "I:256", "T:256", "T:1024"])
    alone = [name for name in VARIANTS if name not in OTHERS]
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=alone)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, help="of training, where not those of the cases")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # Else each step of an optimizer looks for a driver, until Lathe's Trainer has told torch that it need not.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    quiet_lightning()
    logging.getLogger("trainer").setLevel(logging.WARNING)

    figures: dict[str, dict[str, list[list[list[float]]]]] = {}
    rows: list[list[str]] = []
    for case in arguments.cases:
        letter, size = case.split(":")
        work = WORKLOADS[letter](*([arguments.rows] if arguments.rows else []))
        rounds: dict[str, list[list[list[float]]]] = {name: [] for name in arguments.variants}
        missing: dict[str, str] = {}
        for _ in range(arguments.rounds):
            for name in [name for name in rounds if name not in missing]:
                try:
                    rounds[name].append(VARIANTS[name](work, int(size))[1:].sum(0).tolist())
                except Unavailable as why:
                    missing[name] = str(why)
        figures[case] = rounds
        trained = (EPOCHS - 1) * len(work.train["target"])
        beside = [bare[0] for each in rounds.values() for _, bare in each]
        rows.append([case, "bare", "1", "1", f"{trained / np.median(beside):,.0f}"])
        for name, taken in rounds.items():
            if name in missing:
                rows.append([case, name, missing[name], "", ""])
                continue
            own, bare = np.array(taken).swapaxes(0, 1)
            wall, cpu = (bare / own).T
            label = f"{name} {environment(name)[1]}" if name in OTHERS else name
            ratio = f"{np.median(wall):.2f} ({wall.min():.2f} to {wall.max():.2f})"
            rows.append([case, label, ratio, f"{np.median(cpu):.2f}", f"{trained / np.median(own[:, 0]):,.0f}"])
    headings = ["case", "variant", "of bare", "in CPU time", "rows/s"]
    told = f"Median (range) of {arguments.rounds} rounds of {EPOCHS - 1} epochs, each between two of the bare loop."
    if not set(OTHERS).isdisjoint(arguments.variants):
        told += " Those of other frameworks come before theirs of the bare loop, not in turns."
    body = f"{markdown(headings, rows)}\n\n{told}"
    command = shlex.join(["python", "scripts/benchmark/training.py", *sys.argv[1:]])
    publish("Training", command, body, figures, arguments.json)


if __name__ == "__main__":
    main()
