"""A loss that is no longer finite: how it is noticed, and, looked for once and after the fact, why."""

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from common.distributed import rank
from common.errors import InputError
from datamodules.schema import InputSpec, drop_setting
from models.training import distributed

Batch = dict[str, Tensor]
MOST = 3
"""Columns, and parameters of a group, that a message names."""
EXTREME = 10.0
"""An encoded number is out of the ordinary from here on: ten deviations."""
LARGE = 100.0
"""Norm of all gradients from which on clipping is worth a try."""


class DivergedError(InputError):
    """A loss, or a weight, is no longer finite."""


class RunningMean:
    """Mean of a loss over rows, in double precision. Losses stay on their device until they are looked at.

    `rows` since the last reset, `all_rows` since the first.
    """

    def __init__(self) -> None:
        self.all_rows = 0
        self.reset()

    def reset(self) -> None:
        self.total = 0.0
        self.rows = 0
        self.waiting: list[tuple[Tensor, int]] = []

    def add(self, loss: Tensor, rows: int) -> None:
        self.waiting.append((loss.detach(), rows))
        self.rows += rows
        self.all_rows += rows

    def look(self) -> list[float]:
        """The losses since the last look, in their order; waits for the device."""
        if not self.waiting:
            return []
        waiting = [loss for loss, _ in self.waiting]
        losses = [float(waiting[0])] if len(waiting) == 1 else torch.stack(waiting).tolist()
        for loss, (_, rows) in zip(losses, self.waiting, strict=True):
            self.total += loss * rows
        self.waiting = []
        return losses

    def gather(self, device: torch.device) -> tuple[float, int]:
        """Total and rows of all processes, which meet on their `device`; rank 0 holds them from then on."""
        total, rows = distributed.all_reduce_sum(
            torch.tensor([self.total, self.rows], dtype=torch.float64, device=device)
        ).tolist()
        self.total, self.rows = (total, int(rows)) if rank() == 0 else (0.0, 0)
        return total, int(rows)


def diagnose(
    network: nn.Module,
    loss: Callable[[Tensor, Batch], Tensor],
    batch: Batch,
    spec: InputSpec | None,
    groups: Mapping[str, Sequence[nn.Parameter]],
    rate: float | None = None,
) -> str:
    """Which columns of `batch`, which parameters and which module make its loss infinite or NaN, and what to do.

    `loss` takes the network's output and the batch; `groups` are the optimizer's, by name, `rate` is its own. Without
    `spec` columns are called by their place. The network is called as it stands, in training or not, with equal dropout
    each time.
    """
    device = batch["target"].device

    def compute(batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            output: Tensor = network.forward(batch)  # not by a call, which may be compiled and then has no hooks
            return output, loss(output, batch)

    def finite(without: Sequence[_Column]) -> bool:
        return bool(compute(_without(batch, without))[1].isfinite())

    columns = _columns(batch, spec)
    blamed = _blamed(columns, finite)
    now = "" if rate is None else f" ({rate:.3g} at this step)"
    advice = [f"Lower optimizer.lr{now}, or let lr_find=true choose it."]
    gradients = [
        parameter.grad.norm() for parts in groups.values() for parameter in parts if parameter.grad is not None
    ]
    if gradients and not torch.stack(gradients).norm() < LARGE:  # NaN too
        advice.append("Against large gradients set trainer.gradient_clip_val=1.")
    extreme = [column for column in blamed or columns if column.extreme >= EXTREME]
    if extreme:
        names = dict.fromkeys(column.name.removesuffix(" (missing)") for column in extreme[:MOST])
        advice.append(
            "For extreme numbers take data.numbers=quantile or robust, or set such rows aside by data.ranges, or leave"
            f" columns out by {drop_setting(names)}."
        )
    if torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            if finite([]):
                advice.append("In float32 the loss of this batch is finite: trainer.precision=32-true.")
    return "\n".join(
        [
            f"  columns: {_about_columns(blamed, columns)}",
            f"  parameters: {_about_parameters(network, groups)}",
            f"  network: {_about_modules(network, lambda: compute(batch))}",
            " ".join(advice),
        ]
    )


def about_checkpoint(trainer: pl.Trainer) -> str:
    """Where the newest checkpoint of the run is, if there is one."""
    paths = [each.best_model_path for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    there = [path for path in paths if os.path.exists(path)]
    if not there:
        return "No epoch had ended: there is no checkpoint."
    newest = max(there, key=os.path.getmtime)
    epochs = torch.load(newest, map_location="cpu", weights_only=True)["epoch"] + 1
    return f"The last good checkpoint, after epoch {epochs}, is {newest}."


@dataclass(frozen=True)
class _Column:
    """A column of an encoded batch: the batch's key, and the place under it unless it is all that the key holds."""

    name: str
    key: str
    place: int | None
    value: float | None = None
    """The most extreme of a number."""

    @property
    def extreme(self) -> float:
        if self.value is None:
            return 0.0
        return abs(self.value) if self.value == self.value else float("inf")

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name} ({self.value:.3g})"


def _columns(batch: Batch, spec: InputSpec | None) -> list[_Column]:
    """All columns, the most extreme numbers first."""
    numbers, codes = (batch.get(key, torch.empty(0, 0)) for key in ("numbers", "codes"))
    if spec is None:
        names = [f"number {place}" for place in range(numbers.shape[1])]
        categories = [f"category {place}" for place in range(codes.shape[1])]
    else:
        names = [*spec.numbers, *(f"{name} (missing)" for name in spec.indicators)]
        categories = [name for name, _ in spec.categories]
    values: list[float] = []
    if numbers.numel() > 0:
        row = numbers.abs().nan_to_num(nan=torch.inf).argmax(0, keepdim=True)
        values = numbers.gather(0, row)[0].tolist()
    found = [_Column(name, "numbers", place, values[place]) for place, name in enumerate(names)]
    found.sort(key=lambda column: -column.extreme)
    found += [_Column(name, "codes", place) for place, name in enumerate(categories)]
    return found + [
        _Column(key.partition(".")[2], key, None) for key in batch if key.startswith(("tokens.", "images."))
    ]


def _without(batch: Batch, columns: Sequence[_Column]) -> Batch:
    """The batch with 0 in place of these columns: the mean, the unknown level or token, black."""
    changed = batch | {key: batch[key].clone() for key in {column.key for column in columns}}
    for column in columns:
        if column.place is None:
            changed[column.key].zero_()
        else:
            changed[column.key][:, column.place] = 0
    return changed


def _blamed(columns: Sequence[_Column], finite: Callable[[Sequence[_Column]], bool]) -> list[_Column]:
    """The few columns that must go before the loss is finite; none where it is as it is, or needs more of them."""
    blamed: list[_Column] = []
    rest = columns
    if not finite(columns):
        return []
    while not finite(blamed):
        if len(blamed) == MOST:
            return []
        # The fewest of the first that do, of which the last is needed.
        many = bisect_left(range(len(rest)), True, key=lambda many: finite([*blamed, *rest[:many]]))
        blamed.append(rest[many - 1])
        rest = rest[: many - 1]
    return blamed


def _about_columns(blamed: Sequence[_Column], columns: Sequence[_Column]) -> str:
    broken = [column for column in columns if column.value is not None and not column.extreme < float("inf")]
    if broken:
        return f"not finite in this batch: {_listed(map(str, broken))}"
    if blamed:
        return f"without {_listed(map(str, blamed))} the loss of this batch is finite"
    extreme = [str(column) for column in columns if column.extreme >= EXTREME]
    more = f"; extreme, as encoded: {_listed(extreme)}" if extreme else ""
    return f"none is to blame alone{more}"


def _about_parameters(network: nn.Module, groups: Mapping[str, Sequence[nn.Parameter]]) -> str:
    names = {id(parameter): name for name, parameter in network.named_parameters()}

    def by_group(broken: Callable[[nn.Parameter], bool]) -> str:
        found = {group: [names[id(each)] for each in parts if broken(each)] for group, parts in groups.items()}
        return "; ".join(f'{_listed(parts)} in group "{group}"' for group, parts in found.items() if parts)

    def largest(tensors: Iterator[tuple[str, nn.Parameter, Tensor]]) -> str:
        group, parameter, tensor = max(tensors, key=lambda each: float(each[2].abs().max()))
        return f'{names[id(parameter)]} in group "{group}", up to {float(tensor.abs().max()):.3g}'

    parameters = [(group, parameter) for group, parts in groups.items() for parameter in parts if parameter.numel() > 0]
    if broken := by_group(lambda parameter: not all_finite(parameter)):
        return f"not finite: {broken}"
    if broken := by_group(lambda parameter: parameter.grad is not None and not all_finite(parameter.grad)):
        return f"all finite, but not the gradients of the last step: {broken}"
    text = f"all finite; the largest weight is in {largest((g, p, p.detach()) for g, p in parameters)}"
    graded = [(group, parameter, parameter.grad) for group, parameter in parameters if parameter.grad is not None]
    return f"{text}; the largest gradient of the last step in {largest(iter(graded))}" if graded else text


def _about_modules(network: nn.Module, compute: Callable[[], tuple[Tensor, Tensor]]) -> str:
    broken: list[str] = []

    def look(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not all_finite(output):
                broken.append(f"{name} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in network.named_modules() if name]
    try:
        output, loss = compute()
    finally:
        for handle in handles:
            handle.remove()
    if broken:
        return f"the first output that is not finite is that of {broken[0]}"
    if not all_finite(output):
        return f"the first output that is not finite is its own ({type(network).__name__})"
    if not all_finite(loss):
        return f"its output is finite, up to {float(output.abs().max()):.3g}, but not the loss of it"
    return "computed again, its output and the loss of it are finite"


def all_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _listed(names: Iterator[str] | Sequence[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"{', '.join(names[:MOST])}{more}"
