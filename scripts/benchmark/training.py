"""Rows a second in training, against a bare loop of PyTorch, side by side in one process.

python scripts/benchmark/training.py [--cases I:64 I:256 T:256 T:1024] [--variants bare ordinary fast] [--rounds 5]
    [--threads 1] [--json FILE]

(I): 784-64-128-64-10 with batch norm on 60,000 images of bytes; (T): 108-256-256-256-1 on 39,073 rows of numbers. Each
with a validation set, AdamW, and, but for the bare loop, checkpoints, early stopping, TensorBoard, metrics, progress.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from datamodules.loader import Batches
from datamodules.schema import TargetSpec
from datamodules.store import MemoryStore, Rows
from models import losses
from models.mlp import perceptron
from models.supervised import SupervisedModule
from scripts.benchmark.page import markdown, publish
from trainer.callbacks.progress import Progress
from trainer.callbacks.random_state import RandomState
from trainer.loop import Trainer
from trainer.run import quiet_lightning

EPOCHS = 3
"""Of a round: its figure is the faster of all but the first."""
EVALUATED = 8192


@dataclass(frozen=True)
class Workload:
    train: Rows
    val: Rows
    target: TargetSpec
    build: Callable[[], nn.Module]
    """A network from batches to logits."""


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


def images() -> Workload:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(784, 10, generator=generator)

    def rows(count: int) -> Rows:
        pixels = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
        target = ((pixels.flatten(1).float() / 255 - 0.5) @ directions).argmax(1)
        return {"images.image": pixels, "target": target}

    def build() -> nn.Module:
        return Network("images.image", perceptron(784, (64, 128, 64), 10, "relu", "batch", 0.0, "he"))

    target = TargetSpec("digit", "multiclass", tuple("0123456789"), (6000,) * 10)
    return Workload(rows(60_000), rows(10_000), target, build)


def table() -> Workload:
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(108, generator=generator)

    def rows(count: int) -> Rows:
        numbers = torch.randn(count, 108, generator=generator)
        return {"numbers": numbers, "target": (numbers @ direction > 0).long()}

    def build() -> nn.Module:
        return Network("numbers", perceptron(108, (256, 256, 256), 1, "relu", "none", 0.0, "he"))

    return Workload(rows(39_073), rows(9_768), TargetSpec("answer", "binary", ("no", "yes"), (19_536, 19_537)), build)


Times = list[tuple[float, float]]

WORKLOADS = {"I": images, "T": table}


def now() -> tuple[float, float]:
    """Seconds of the clock, and of this process on its cores: where other work takes these, the second is surer."""
    return time.perf_counter(), time.process_time()


def bare(work: Workload, batch_size: int) -> Times:
    """A plain loop over tensors in memory."""
    torch.manual_seed(0)
    network = work.build()
    loss = losses.auto(work.target)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    times = [now()]
    for _ in range(EPOCHS):
        network.train()
        order = torch.randperm(len(work.train["target"]))
        for index in torch.split(order, batch_size):
            batch = {name: values.index_select(0, index) for name, values in work.train.items()}
            optimizer.zero_grad()
            loss(network(batch), batch["target"]).backward()
            optimizer.step()
        network.eval()
        with torch.inference_mode():
            for index in torch.split(torch.arange(len(work.val["target"])), EVALUATED):
                batch = {name: values.index_select(0, index) for name, values in work.val.items()}
                loss(network(batch), batch["target"])
        times.append(now())
    return times


class Clock(Callback):
    """Looks at the time at the start of each epoch and at the end of the last."""

    def __init__(self) -> None:
        self.times: Times = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.times.append(now())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.times.append(now())


def ours(work: Workload, batch_size: int, **settings: Any) -> Times:
    """Lathe, with all that a run has switched on."""
    torch.manual_seed(0)
    module = SupervisedModule(
        work.build(),
        work.target,
        losses.auto(work.target),
        partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-4),
        None,
        monitor="val/loss",
        mode="min",
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            threads=torch.get_num_threads(),
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
            **settings,
        )
        train = Batches(MemoryStore(work.train), batch_size, shuffle=True)
        trainer.prepare(module, {})
        trainer.fit(module, train, Batches(MemoryStore(work.val), EVALUATED))
    return clock.times


VARIANTS: dict[str, Callable[[Workload, int], Times]] = {
    "bare": bare,
    "ordinary": lambda work, size: ours(work, size, fast="off"),
    "fast": lambda work, size: ours(work, size, fast="on"),
    "compiled": lambda work, size: ours(work, size, fast="on", compile=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["I:64", "I:256", "T:256", "T:1024"])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    quiet_lightning()
    logging.getLogger("trainer").setLevel(logging.WARNING)

    figures: dict[str, dict[str, list[list[float]]]] = {}
    for case in arguments.cases:
        letter, size = case.split(":")
        work = WORKLOADS[letter]()
        rounds: dict[str, list[list[float]]] = {name: [] for name in arguments.variants}
        for _ in range(arguments.rounds):
            for name in arguments.variants:
                epochs = np.diff(VARIANTS[name](work, int(size)), axis=0)[1:]
                rounds[name].append((len(work.train["target"]) / epochs.min(0)).tolist())
        figures[case] = rounds
    rows = []
    for case, rounds in figures.items():
        base = np.array(rounds[arguments.variants[0]])
        for name, rates in rounds.items():
            ratios = np.array(rates) / base
            wall, low, high = np.median(ratios[:, 0]), *np.sort(ratios[:, 0])[[0, -1]]
            rate = np.median(np.array(rates)[:, 0])
            rows.append(
                [case, name, f"{wall:.2f} ({low:.2f} to {high:.2f})", f"{np.median(ratios[:, 1]):.2f}", f"{rate:,.0f}"]
            )
    body = markdown(["case", "variant", "of the bare loop", "in CPU time", "rows/s"], rows)
    publish("Training", "python scripts/benchmark/training.py", body, figures, arguments.json)


if __name__ == "__main__":
    main()
