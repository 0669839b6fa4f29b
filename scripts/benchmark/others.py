"""Trains the network of training.py with another framework. training.py runs it in an environment without the packages
of Lathe, so it does not import any module of Lathe.

python scripts/benchmark/others.py {skorch,fastai,pytorch-tabular} FILE BATCH_SIZE EPOCHS THREADS

FILE contains `train` and `val`, each (values, target), the `widths` of the network, and `norm`, whether it uses batch
norm. The last line of the output is JSON: seconds and CPU seconds of each epoch.
"""

import contextlib
import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]

RATE, DECAY = 1e-3, 1e-4
EVALUATED = 8192


@dataclass(frozen=True)
class Task:
    train: Pair
    val: Pair
    widths: tuple[int, ...]
    norm: bool

    @property
    def binary(self) -> bool:
        return self.widths[-1] == 1

    def frame(self) -> Any:
        """Returns a pandas DataFrame of the training and validation rows; `target` is the last column."""
        import pandas

        values, target = (torch.cat(pair) for pair in zip(self.train, self.val, strict=True))
        frame = pandas.DataFrame(values.numpy(), columns=[f"x{index}" for index in range(values.shape[1])])
        return frame.assign(target=target.numpy())


class Network(nn.Module):
    """MLP on the last argument only: fastai passes categories first. Bytes become standardized numbers."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, size in pairwise(task.widths[:-1]):
            layers += [nn.Linear(width, size), *([nn.BatchNorm1d(size)] if task.norm else []), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(task.widths[-2], task.widths[-1]))

    def forward(self, *columns: Tensor) -> Tensor:
        values = columns[-1].flatten(1)
        if values.dtype == torch.uint8:
            values = (values.float() / 255 - 0.5) / 0.25
        output: Tensor = self.layers(values)
        return output


class Clock:
    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def record(self, *_: Any) -> None:
        self.times.append((time.perf_counter(), time.process_time()))


def skorch(task: Task, batch_size: int, epochs: int, clock: Clock) -> None:
    from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
    from skorch.dataset import Dataset
    from skorch.helper import predefined_split

    train, val = task.train, task.val
    if task.binary:
        train, val = (train[0], train[1].float()), (val[0], val[1].float())
    kind = NeuralNetBinaryClassifier if task.binary else NeuralNetClassifier
    net = kind(
        Network(task),
        criterion=nn.BCEWithLogitsLoss if task.binary else nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=DECAY,
        optimizer__fused=True,
        lr=RATE,
        batch_size=batch_size,
        iterator_train__shuffle=True,
        iterator_valid__batch_size=EVALUATED,
        train_split=predefined_split(Dataset(*val)),
        max_epochs=1,
    )
    clock.record()
    for _ in range(epochs):
        net.partial_fit(*train)
        clock.record()


def fastai(task: Task, batch_size: int, epochs: int, clock: Clock) -> None:
    """Loads tables with fastai's own loader, which slices batches, and images row by row from a dataset."""
    from fastai.tabular import all as fast

    if task.train[0].dtype == torch.uint8:
        datasets = [torch.utils.data.TensorDataset(*pair) for pair in (task.train, task.val)]
        loaders = [
            fast.DataLoader(datasets[0], bs=batch_size, shuffle=True, num_workers=0),
            fast.DataLoader(datasets[1], bs=EVALUATED, num_workers=0),
        ]
    else:
        frame = task.frame()
        names = list(frame.columns[:-1])
        split = fast.IndexSplitter(range(len(task.train[1]), len(frame)))(frame)
        rows = fast.TabularPandas(frame, [], [], names, "target", fast.CategoryBlock(), split)
        loaders = [
            fast.TabDataLoader(rows.train, bs=batch_size, shuffle=True, drop_last=False, num_workers=0),
            fast.TabDataLoader(rows.valid, bs=EVALUATED, num_workers=0),
        ]
    learner = fast.Learner(
        fast.DataLoaders(*loaders),
        Network(task),
        loss_func=fast.BCEWithLogitsLossFlat() if task.binary else fast.CrossEntropyLossFlat(),
        opt_func=partial(fast.OptimWrapper, opt=partial(torch.optim.AdamW, fused=True)),
        metrics=partial(fast.accuracy_multi, sigmoid=True) if task.binary else fast.accuracy,
        cbs=fast.Callback(before_epoch=clock.record, after_fit=clock.record),
    )
    learner.fit(epochs, RATE, wd=DECAY)


def pytorch_tabular(task: Task, batch_size: int, epochs: int, clock: Clock) -> None:
    """Trains pytorch-tabular's own network with the same widths; it has one output for each of two classes."""
    from pytorch_lightning.callbacks import LambdaCallback
    from pytorch_tabular import TabularModel
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
    from pytorch_tabular.models import CategoryEmbeddingModelConfig

    frame = task.frame()
    model = TabularModel(
        data_config=DataConfig(target=["target"], continuous_cols=list(frame.columns[:-1])),
        model_config=CategoryEmbeddingModelConfig(
            task="classification",
            layers="-".join(map(str, task.widths[1:-1])),
            batch_norm_continuous_input=False,
            learning_rate=RATE,
        ),
        optimizer_config=OptimizerConfig("AdamW", {"weight_decay": DECAY, "fused": True}),
        trainer_config=TrainerConfig(batch_size=batch_size, max_epochs=epochs, accelerator="cpu"),
    )
    recorder = LambdaCallback(on_train_epoch_start=clock.record, on_train_end=clock.record)
    model.fit(frame[: len(task.train[1])], frame[len(task.train[1]) :], callbacks=[recorder])


def main() -> None:
    framework, file, *numbers = sys.argv[1:]
    batch_size, epochs, threads = map(int, numbers)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    task = Task(**torch.load(file))
    clock = Clock()
    train = {"skorch": skorch, "fastai": fastai, "pytorch-tabular": pytorch_tabular}[framework]
    with contextlib.redirect_stdout(sys.stderr):
        train(task, batch_size, epochs, clock)
    print(json.dumps([[end[0] - start[0], end[1] - start[1]] for start, end in pairwise(clock.times)]))


if __name__ == "__main__":
    main()
