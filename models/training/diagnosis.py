"""Finds out why a loss is not finite: which columns, parameters and module cause it."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec, drop_setting

Batch = dict[str, Tensor]
MAX_NAMES = 3
"""Maximum number of columns, or of parameters per group, that a message names."""
EXTREME = 10.0
"""Absolute value of an encoded number, in standard deviations, from which it counts as extreme."""
LARGE = 100.0
"""Norm of all gradients from which the message recommends clipping."""


def diagnose(
    network: nn.Module,
    loss: Callable[[Tensor, Batch], Tensor],
    batch: Batch,
    spec: InputSpec | None,
    groups: Mapping[str, Sequence[nn.Parameter]],
    rate: float | None = None,
) -> str:
    """Returns lines that say which columns of `batch`, parameters and module make its loss infinite or NaN, and advice.

    `loss` takes the network's output and the batch; `groups` are the parameter groups of the optimizer by name, `rate`
    is its learning rate. Without `spec`, columns are named by their index. The network keeps its mode (training or
    eval); dropout masks are the same in each call.
    """
    device = batch["target"].device

    def compute(batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            output: Tensor = network.forward(batch)  # calling the network may run compiled code, which ignores hooks
            return output, loss(output, batch)

    def finite(without: Sequence[_Column]) -> bool:
        return bool(compute(_without(batch, without))[1].isfinite())

    columns = _columns(batch, spec)
    causes = _find_causes(columns, finite)
    now = "" if rate is None else f" ({rate:.3g} at this step)"
    advice = [f"Lower optimizer.lr{now}, or let lr_find=true choose it."]
    gradients = [
        parameter.grad.norm() for parts in groups.values() for parameter in parts if parameter.grad is not None
    ]
    if gradients and not torch.stack(gradients).norm() < LARGE:  # NaN too
        advice.append("Gradients are large: set trainer.gradient_clip_val=1.")
    extreme = [column for column in causes or columns if column.extreme >= EXTREME]
    if extreme:
        names = dict.fromkeys(column.name.removesuffix(" (missing)") for column in extreme[:MAX_NAMES])
        advice.append(
            "Some numbers are extreme: use data.numbers=quantile or robust, reject such rows with data.ranges, or drop"
            f" columns with {drop_setting(names)}."
        )
    if torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            if finite([]):
                advice.append("In float32 the loss of this batch is finite: use trainer.precision=32-true.")
    return "\n".join(
        [
            f"  columns: {_about_columns(causes, columns)}",
            f"  parameters: {_about_parameters(network, groups)}",
            f"  network: {_about_modules(network, lambda: compute(batch))}",
            " ".join(advice),
        ]
    )


@dataclass(frozen=True)
class _Column:
    """A column of an encoded batch: its key, and its index if the key holds several columns."""

    name: str
    key: str
    index: int | None
    value: float | None = None
    """The most extreme value of a column of numbers."""

    @property
    def extreme(self) -> float:
        if self.value is None:
            return 0.0
        return abs(self.value) if self.value == self.value else float("inf")

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name} ({self.value:.3g})"


def _columns(batch: Batch, spec: InputSpec | None) -> list[_Column]:
    """Returns all columns, those with the most extreme numbers first."""
    numbers, codes = (batch.get(key, torch.empty(0, 0)) for key in ("numbers", "codes"))
    if spec is None:
        names = [f"number {index}" for index in range(numbers.shape[1])]
        categories = [f"category {index}" for index in range(codes.shape[1])]
    else:
        names = [*spec.numbers, *(f"{name} (missing)" for name in spec.indicators)]
        categories = [name for name, _ in spec.categories]
    values: list[float] = []
    if numbers.numel() > 0:
        row = numbers.abs().nan_to_num(nan=torch.inf).argmax(0, keepdim=True)
        values = numbers.gather(0, row)[0].tolist()
    found = [_Column(name, "numbers", index, values[index]) for index, name in enumerate(names)]
    found.sort(key=lambda column: -column.extreme)
    found += [_Column(name, "codes", index) for index, name in enumerate(categories)]
    return found + [
        _Column(key.partition(".")[2], key, None) for key in batch if key.startswith(("tokens.", "images."))
    ]


def _without(batch: Batch, columns: Sequence[_Column]) -> Batch:
    """The batch with these columns set to 0: the mean, the unknown level or token, a black image."""
    changed = batch | {key: batch[key].clone() for key in {column.key for column in columns}}
    for column in columns:
        if column.index is None:
            changed[column.key].zero_()
        else:
            changed[column.key][:, column.index] = 0
    return changed


def _find_causes(columns: Sequence[_Column], finite: Callable[[Sequence[_Column]], bool]) -> list[_Column]:
    """Returns up to MAX_NAMES columns without which the loss is finite, or an empty list if there are none.

    `finite` returns whether the loss without the given columns is finite.
    """
    causes: list[_Column] = []
    rest = columns
    if not finite(columns):
        return []
    while not finite(causes):
        if len(causes) == MAX_NAMES:
            return []
        # The smallest number of leading columns that suffices; the last of them is needed.
        count = bisect_left(range(len(rest)), True, key=lambda count: finite([*causes, *rest[:count]]))
        causes.append(rest[count - 1])
        rest = rest[: count - 1]
    return causes


def _about_columns(causes: Sequence[_Column], columns: Sequence[_Column]) -> str:
    nonfinite = [column for column in columns if column.value is not None and not column.extreme < float("inf")]
    if nonfinite:
        return f"not finite in this batch: {_listed(map(str, nonfinite))}"
    if causes:
        return f"without {_listed(map(str, causes))} the loss of this batch is finite"
    extreme = [str(column) for column in columns if column.extreme >= EXTREME]
    more = f"; extreme encoded values: {_listed(extreme)}" if extreme else ""
    return f"no single cause{more}"


def _about_parameters(network: nn.Module, groups: Mapping[str, Sequence[nn.Parameter]]) -> str:
    names = {id(parameter): name for name, parameter in network.named_parameters()}

    def by_group(matches: Callable[[nn.Parameter], bool]) -> str:
        found = {group: [names[id(each)] for each in parts if matches(each)] for group, parts in groups.items()}
        return "; ".join(f'{_listed(parts)} in group "{group}"' for group, parts in found.items() if parts)

    def largest(tensors: Iterator[tuple[str, nn.Parameter, Tensor]]) -> str:
        group, parameter, tensor = max(tensors, key=lambda each: float(each[2].abs().max()))
        return f'{names[id(parameter)]} in group "{group}", up to {float(tensor.abs().max()):.3g}'

    parameters = [(group, parameter) for group, parts in groups.items() for parameter in parts if parameter.numel() > 0]
    if nonfinite := by_group(lambda parameter: not all_finite(parameter)):
        return f"not finite: {nonfinite}"
    if nonfinite := by_group(lambda parameter: parameter.grad is not None and not all_finite(parameter.grad)):
        return f"all finite, but gradients of the last step are not: {nonfinite}"
    text = f"all finite; the largest weight is in {largest((g, p, p.detach()) for g, p in parameters)}"
    graded = [(group, parameter, parameter.grad) for group, parameter in parameters if parameter.grad is not None]
    return f"{text}; the largest gradient of the last step in {largest(iter(graded))}" if graded else text


def _about_modules(network: nn.Module, compute: Callable[[], tuple[Tensor, Tensor]]) -> str:
    nonfinite: list[str] = []

    def check(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not all_finite(output):
                nonfinite.append(f"{name} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(check(name)) for name, module in network.named_modules() if name]
    try:
        output, loss = compute()
    finally:
        for handle in handles:
            handle.remove()
    if nonfinite:
        return f"the first output that is not finite is that of {nonfinite[0]}"
    if not all_finite(output):
        return f"only the final output is not finite ({type(network).__name__})"
    if not all_finite(loss):
        return f"the output is finite (largest absolute value {float(output.abs().max()):.3g}), but the loss is not"
    return "when computed again, output and loss are finite"


def all_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _listed(names: Iterator[str] | Sequence[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{', '.join(names[:MAX_NAMES])}{more}"
