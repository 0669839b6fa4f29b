"""Rows per second in training, relative to a plain PyTorch loop that runs an epoch before and after each epoch.

python scripts/benchmark/training.py [--cases I:64 I:256 T:256 T:1024] [--variants ordinary fast] [--rounds 5]
    [--rows ROWS] [--threads 1] [--json FILE]

(I): 784-64-128-64-10 with batch norm on 60,000 images of bytes; (T): 108-256-256-256-1 on 39,073 rows of numbers. Both
have a validation set and use fused AdamW. Lathe also has checkpoints, early stopping, TensorBoard, metrics and a
progress bar; `lightning` is the plain Trainer with its defaults and a DataLoader. The frameworks of others.py run in
their own processes, each in an environment that uv creates with this version of Python and torch.
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
from trainer.loop.quiet import quiet_lightning
from trainer.loop.trainer import Trainer

EPOCHS = 4
"""Epochs per round; the first one is not counted."""
EVALUATED = 8192


@dataclass(frozen=True)
class Workload:
    train: Rows
    val: Rows
    target: TargetSpec
    column: str
    """Input column of the network."""
    widths: tuple[int, ...]
    norm: Norm

    def build(self) -> nn.Module:
        """Builds a network that maps batches to logits."""
        width, *hidden, outputs = self.widths
        return Network(self.column, perceptron(width, hidden, outputs, "relu", self.norm, 0.0, "he"))


class Network(nn.Module):
    """An MLP on one column of a batch; bytes become standardized numbers."""

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
    """Records the time at the start of each epoch and at the end of the last.

    Records wall seconds and CPU seconds of this process; the latter are more reliable if other work uses the cores.
    """

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def record(self) -> None:
        self.times.append((time.perf_counter(), time.process_time()))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.record()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.record()


class Bare:
    """A plain PyTorch loop over tensors in memory; a call runs one epoch and its validation."""

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


class Alternating(Clock):
    """Runs an epoch of the plain loop before each epoch, and after the last.

    Other work on the machine then slows both alike; its load may change by half from one minute to the next.
    """

    def __init__(self, bare: Bare) -> None:
        super().__init__()
        self.bare = bare

    def record(self) -> None:
        super().record()
        self.bare()
        super().record()

    def epochs(self) -> "Epochs":
        spans = np.diff(self.times, axis=0)
        plain, own = spans[0::2], spans[1::2]
        return np.stack([own, (plain[:-1] + plain[1:]) / 2], axis=1)


def ours(work: Workload, batch_size: int, clock: Clock, **settings: Any) -> None:
    """Trains with Lathe, with everything that is on by default."""
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
    """A LightningModule as in Lightning's tutorials."""

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
    """Trains with Lightning's default progress bar, checkpoint and logger, and a DataLoader without workers."""
    datasets = [TensorDataset(rows[work.column], rows["target"]) for rows in (work.train, work.val)]
    train, val = DataLoader(datasets[0], batch_size, shuffle=True), DataLoader(datasets[1], EVALUATED)
    # Its progress bar and model summary would be mixed with the table.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        trainer = pl.Trainer(
            **{"max_epochs": EPOCHS, "accelerator": "cpu", **settings}, default_root_dir=folder, callbacks=[clock]
        )
        trainer.fit(Plain(work), train, val)


UNDECLARED = {"pytorch-tabular": ("requests",)}
"""Packages that a framework imports without declaring them as dependencies."""


class Unavailable(Exception):
    """Reason why a framework cannot be measured."""


Epochs = np.ndarray
"""(epochs, 2, 2): wall and CPU seconds of each epoch, and of the epochs of the plain loop next to it."""


@cache
def environment(framework: str) -> tuple[list[str], str]:
    """Returns the command of a Python with the framework installed, and the version of the framework."""
    command = ["uv", "run", "--quiet", "--isolated", "--no-project", "--python", platform.python_version()]
    for package in (framework, f"torch=={version('torch')}", *UNDECLARED.get(framework, ())):
        command += ["--with", package]
    command += ["python"]
    code = f"from importlib.metadata import version; print(version('{framework}'))"
    made = subprocess.run([*command, "-c", code], capture_output=True, text=True)
    if made.returncode != 0:
        raise Unavailable(f"cannot be installed: {' '.join(made.stderr.split())}")
    return command, made.stdout.strip()


def run_external(framework: str, work: Workload, batch_size: int) -> Epochs:
    """Trains with another framework in a separate process, using others.py."""
    if framework == "pytorch-tabular" and work.column != "numbers":
        raise Unavailable("supports only tables")
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
    clock.record()
    for _ in range(EPOCHS):
        bare()
        clock.record()
    return np.stack([json.loads(done.stdout.splitlines()[-1]), np.diff(clock.times, axis=0)], axis=1)


def run_alternating(train: Callable[..., None], work: Workload, batch_size: int, **settings: Any) -> Epochs:
    torch.manual_seed(0)
    clock = Alternating(Bare(work, batch_size))
    train(work, batch_size, clock, **settings)
    return clock.epochs()


OTHERS = ("skorch", "fastai", "pytorch-tabular")
VARIANTS: dict[str, Callable[[Workload, int], Epochs]] = {
    "ordinary": partial(run_alternating, ours, fast="off"),
    "fast": partial(run_alternating, ours, fast="on"),
    "compiled": partial(run_alternating, ours, fast="on", compile=True),
    "lightning": partial(run_alternating, lightning),
    **{name: partial(run_external, name) for name in OTHERS},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["I:64", "I:256", "T:256", "T:1024"])
    alone = [name for name in VARIANTS if name not in OTHERS]
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=alone)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, help="number of training rows, instead of the defaults of the cases")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # Otherwise each optimizer step looks for a CUDA driver, until Lathe's Trainer turns this off.
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
        bare_seconds = [bare[0] for each in rounds.values() for _, bare in each]
        rows.append([case, "bare", "1", "1", f"{trained / np.median(bare_seconds):,.0f}"])
        for name, taken in rounds.items():
            if name in missing:
                rows.append([case, name, missing[name], "", ""])
                continue
            own, bare = np.array(taken).swapaxes(0, 1)
            wall, cpu = (bare / own).T
            label = f"{name} {environment(name)[1]}" if name in OTHERS else name
            ratio = f"{np.median(wall):.2f} ({wall.min():.2f} to {wall.max():.2f})"
            rows.append([case, label, ratio, f"{np.median(cpu):.2f}", f"{trained / np.median(own[:, 0]):,.0f}"])
    headings = ["case", "variant", "relative to bare", "in CPU time", "rows/s"]
    note = f"Median (range) of {arguments.rounds} rounds of {EPOCHS - 1} epochs,"
    note += " each between two epochs of the plain loop."
    if not set(OTHERS).isdisjoint(arguments.variants):
        note += " The epochs of other frameworks do not alternate with the plain loop: they all run before it."
    body = f"{markdown(headings, rows)}\n\n{note}"
    command = shlex.join(["python", "scripts/benchmark/training.py", *sys.argv[1:]])
    publish("Training", command, body, figures, arguments.json)


if __name__ == "__main__":
    main()
