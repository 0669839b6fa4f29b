"""A whole training step, with forward, backward, clipping and Adam, as one compiled graph."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision
from torch import Tensor

from models.training.lightning_module import Batch, SupervisedModule
from trainer.loop import torch_internals
from trainer.loop.fused_step import Moments, Step

COST = 15.0
"""Longest measured compilation in seconds (docs/benchmarks.md)."""
GAIN = 0.13
"""Smallest measured share of a step's time that the graph saved."""


class StepGraph:
    """A graph compiled for the shapes of its first batch, and called without Dynamo, whose checks take long.

    It works on the optimizer's own state. In float32 the results match those of eager steps within rounding, because
    sums are computed in a different order; random numbers come from torch's generators, in the same order.
    """

    def __init__(self, trainer: pl.Trainer, module: SupervisedModule, step: Step) -> None:
        self.step = step
        self.shapes: dict[str, Any] = {}
        self.constants = constants(trainer, step)
        self.synced, self.pending = 0.0, 0
        """The optimizer's own step count, and the steps it lacks: adding to a tensor per parameter in each step would
        take too long, and reading one waits for a GPU."""
        self.train_step = _train_step(module.objective, trainer.precision_plugin, step, trainer.gradient_clip_val)

    def fits(self, batch: Batch) -> bool:
        return {name: (values.shape, values.dtype) for name, values in batch.items()} == self.shapes

    def start(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compiles the graph and takes the first step. May raise any error of torch."""
        self.shapes = {name: (values.shape, values.dtype) for name, values in batch.items()}
        settings = self._next_settings()
        compile = torch_internals.graph_compiler()

        def backend(module: torch.fx.GraphModule, examples: Any) -> Callable[..., Any]:
            self.compiled = compile(module, examples)

            def first(*inputs: Tensor) -> Any:
                if len(module.graph.output_node().all_input_nodes) > 2:
                    raise RuntimeError("the network keeps tensors of a step besides its buffers")
                # All tensors as one list, with the state; only the batch and the settings change in each step.
                self.inputs = list(inputs)
                self.positions = {name: index for name, values in batch.items() for index in _find(inputs, values)}
                (self.settings_position,) = _find(inputs, settings)
                return self.compiled(*inputs)

            return first

        with torch_internals.graph_settings():
            compiled = torch.compile(self.train_step, fullgraph=True, dynamic=False, backend=backend)
            losses: tuple[Tensor, Tensor] = compiled(batch, settings, self.step.state)
            return losses

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Takes a step; returns the loss, which is logged, and the objective, which is minimized."""
        for name, index in self.positions.items():
            self.inputs[index] = batch[name]
        self.inputs[self.settings_position] = self._next_settings()
        losses = self.compiled(*self.inputs)
        return losses[0], losses[-1]  # one tensor if they are the same

    def _next_settings(self) -> Tensor:
        if self.pending == 0:  # eager steps may have been taken
            self.synced = float(self.step.state[0][2][0])
        self.pending += 1
        rows = [_settings(group, self.synced + self.pending) for group in self.step.groups]
        device = self.step.parameters[0].device
        # Pinned memory, which torch does not reuse before the copy to the GPU is done, so that nothing waits for it.
        return torch.tensor(rows, pin_memory=device.type == "cuda").to(device, non_blocking=True)

    def sync_step_counts(self) -> None:
        """Updates the optimizer's step counts, before anything but the graph reads them."""
        for _, _, steps in self.step.state:
            torch_internals.foreach_add_(steps, self.pending)
        self.pending = 0


def constants(trainer: pl.Trainer, step: Step) -> list[Any]:
    """Everything that is compiled into a graph and that a callback may change at the start of an epoch."""
    modules = trainer.lightning_module.modules()
    return [
        (trainer.accumulate_grad_batches, trainer.gradient_clip_val),
        [(id(parameter), parameter.requires_grad) for parameter in step.parameters],
        [(module.training, getattr(module, "p", None)) for module in modules],
    ]


def unsupported_reason(trainer: pl.Trainer, step: Step, batch: Batch) -> str | None:
    """Returns what cannot be part of the graph; None if everything can."""
    if step.unsupported is not None:
        return step.unsupported
    if trainer.accumulate_grad_batches > 1:
        return "gradients accumulate over batches"
    if not step.state:
        return "a parameter has no gradient"
    counts = torch.stack([count for _, _, steps in step.state for count in steps])
    if (counts != counts[0]).any():
        return "some parameters have had fewer steps than others"
    if trainer.gradient_clip_algorithm == "value":
        return "gradients are clipped by value"
    if any(name.startswith("offsets.") for name in batch):
        return "batches of texts vary in length"
    return torch_internals.graph_unsupported_reason()


def is_worthwhile(seconds: float) -> bool:
    """Returns whether compiling takes less time than it saves, given the duration of the remaining eager steps."""
    return seconds * GAIN > COST


def _train_step(
    objective: Callable[[Batch], tuple[Tensor, Tensor]], precision: Precision, step: Step, clip: float | None
) -> Callable[[Batch, Tensor, Sequence[Moments]], tuple[Tensor, Tensor]]:
    decoupled = [group["decoupled_weight_decay"] for group in step.groups]

    def train_step(batch: Batch, settings: Tensor, state: Sequence[Moments]) -> tuple[Tensor, Tensor]:
        with precision.forward_context():
            loss, minimized = objective(batch)
        grads = torch.autograd.grad(minimized, step.parameters)
        with torch.no_grad():
            # A loss that is not finite is reported after the step, which must leave the weights intact for the report.
            grads = tuple(torch.where(minimized.isfinite(), grad, 0.0) for grad in grads)
            if clip is not None and clip > 0:  # in Lightning 0 means no clipping
                norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
                grads = tuple(grad * (clip / (norm + 1e-6)).clamp(max=1.0) for grad in grads)
            each = iter(grads)
            for index, (group, (means, squares, _)) in enumerate(zip(step.groups, state, strict=True)):
                for parameter, mean, square in zip(group["params"], means, squares, strict=True):
                    _adam(parameter, next(each), mean, square, settings[index], decoupled[index])
        return loss.detach(), minimized.detach()

    # Dynamo compiles the same code object only for a few networks.
    train_step.__code__ = train_step.__code__.replace()
    return train_step


def _find(tensors: Sequence[Tensor], wanted: Tensor) -> list[int]:
    return [index for index, tensor in enumerate(tensors) if tensor is wanted]


def _settings(group: dict[str, Any], step: float) -> list[float]:
    """The factors of an Adam step, computed in double precision: `1 - beta2` in float32 would be inaccurate."""
    beta1, beta2 = group["betas"]
    lr, decay = group["lr"], group["weight_decay"]
    decay_factor = 1 - lr * decay if group["decoupled_weight_decay"] else decay
    root = math.sqrt(1 - beta2**step)
    return [decay_factor, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1**step), root, group["eps"]]


def _adam(parameter: Tensor, grad: Tensor, mean: Tensor, square: Tensor, settings: Tensor, decoupled: bool) -> None:
    """Takes a step of Adam (arXiv 1412.6980), or AdamW with decoupled weight decay (1711.05101), in place."""
    decay, mean_rate, square_decay, square_rate, step_size, root, eps = settings.unbind()
    if decoupled:
        parameter.mul_(decay)
    else:
        grad = grad + decay * parameter
    mean.add_((grad - mean) * mean_rate)
    square.mul_(square_decay).add_(grad * grad * square_rate)
    parameter.sub_(step_size * mean / (square.sqrt() / root + eps))
