"""A whole step of training, forward, backward, clipping and Adam, as one compiled graph."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision
from torch import Tensor

from models.training.lightning_module import Batch, SupervisedModule
from trainer.loop.fused_step import Moments, Step

COST = 15.0
"""Seconds that compiling took at most where it was measured (docs/benchmarks.md)."""
GAIN = 0.13
"""Share of a step's time that the graph saved at least."""


class StepGraph:
    """Compiled for the shapes of its first batch, and called past Dynamo, whose checks take long: nothing else changes.

    The state it works on is the optimizer's own. In float32 it ends within rounding of the steps taken one by one,
    because sums are taken in another order; random numbers are those of torch's generators, in the same order.
    """

    def __init__(self, trainer: pl.Trainer, module: SupervisedModule, step: Step) -> None:
        self.step = step
        self.shapes: dict[str, Any] = {}
        self.facts = facts(trainer, step)
        self.synced, self.pending = 0.0, 0
        """Steps by the optimizer's own counts, and those that they lack: to add to a tensor for each parameter would
        take too long, and to read one waits for a GPU."""
        self.everything = _graph(module.objective, trainer.precision_plugin, step, trainer.gradient_clip_val)

    def fits(self, batch: Batch) -> bool:
        return {name: (values.shape, values.dtype) for name, values in batch.items()} == self.shapes

    def start(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The first call, which compiles. Any error of torch may come of it."""
        self.shapes = {name: (values.shape, values.dtype) for name, values in batch.items()}
        settings = self._next_settings()
        compile = torch._dynamo.lookup_backend("inductor")

        def backend(module: torch.fx.GraphModule, examples: Any) -> Callable[..., Any]:
            self.compiled: Callable[..., Any] = compile(module, examples)

            def first(*inputs: Tensor) -> Any:
                if len(module.graph.output_node().all_input_nodes) > 2:
                    raise RuntimeError("the network keeps tensors of a step besides its buffers")
                # All tensors in a row, the state too; of these the batch and the settings are new each time.
                self.inputs = list(inputs)
                self.places = {name: place for name, values in batch.items() for place in _places(inputs, values)}
                (self.place_of_settings,) = _places(inputs, settings)
                return self.compiled(*inputs)

            return first

        with torch._dynamo.config.patch(trace_autograd_ops=True), torch._inductor.config.patch(fallback_random=True):
            compiled = torch.compile(self.everything, fullgraph=True, dynamic=False, backend=backend)
            done: tuple[Tensor, Tensor] = compiled(batch, settings, self.step.state)
            return done

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Takes the step; gives the loss that is logged, and the one that was minimised."""
        for name, place in self.places.items():
            self.inputs[place] = batch[name]
        self.inputs[self.place_of_settings] = self._next_settings()
        losses = self.compiled(*self.inputs)
        return losses[0], losses[-1]  # one tensor where they are the same

    def _next_settings(self) -> Tensor:
        if self.pending == 0:  # steps may have been taken without the graph
            self.synced = float(self.step.state[0][2][0])
        self.pending += 1
        rows = [_settings(group, self.synced + self.pending) for group in self.step.groups]
        device = self.step.parameters[0].device
        # To a GPU from pinned memory, which torch does not use anew before the copy is done: so nothing waits for it.
        return torch.tensor(rows, pin_memory=device.type == "cuda").to(device, non_blocking=True)

    def sync_step_counts(self) -> None:
        """Brings the optimizer's counts up to date; before anyone but the graph reads them."""
        for _, _, steps in self.step.state:
            torch._foreach_add_(steps, self.pending)
        self.pending = 0


def facts(trainer: pl.Trainer, step: Step) -> list[Any]:
    """What is compiled in, and a callback may change at the start of an epoch."""
    modules = trainer.lightning_module.modules()
    return [
        (trainer.accumulate_grad_batches, trainer.gradient_clip_val),
        [(id(parameter), parameter.requires_grad) for parameter in step.parameters],
        [(module.training, getattr(module, "p", None)) for module in modules],
    ]


def unsupported_reason(trainer: pl.Trainer, step: Step, batch: Batch) -> str | None:
    """What cannot be part of the graph; None where there is nothing."""
    if step.foreign is not None:
        return step.foreign
    if trainer.accumulate_grad_batches > 1:
        return "gradients accumulate over batches"
    if not step.state:
        return "a parameter has no gradient"
    counts = torch.stack([count for _, _, steps in step.state for count in steps])
    if (counts != counts[0]).any():
        return "some parameters have taken fewer steps than others"
    if trainer.gradient_clip_algorithm == "value":
        return "gradients are clipped by value"
    if any(name.startswith("offsets.") for name in batch):
        return "batches of texts are of any length"
    return None


def pays(seconds: float) -> bool:
    """Whether steps that will take so long one by one repay the compilation."""
    return seconds * GAIN > COST


def _graph(
    objective: Callable[[Batch], tuple[Tensor, Tensor]], precision: Precision, step: Step, clip: float | None
) -> Callable[[Batch, Tensor, Sequence[Moments]], tuple[Tensor, Tensor]]:
    decoupled = [group["decoupled_weight_decay"] for group in step.groups]

    def everything(batch: Batch, settings: Tensor, state: Sequence[Moments]) -> tuple[Tensor, Tensor]:
        with precision.forward_context():
            loss, minimised = objective(batch)
        grads = torch.autograd.grad(minimised, step.parameters)
        with torch.no_grad():
            # What is not finite is told of after the step: it must not spoil the weights that are looked at then.
            grads = tuple(torch.where(minimised.isfinite(), grad, 0.0) for grad in grads)
            if clip is not None and clip > 0:  # Lightning takes 0 for none
                norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
                grads = tuple(grad * (clip / (norm + 1e-6)).clamp(max=1.0) for grad in grads)
            each = iter(grads)
            for place, (group, (means, squares, _)) in enumerate(zip(step.groups, state, strict=True)):
                for parameter, mean, square in zip(group["params"], means, squares, strict=True):
                    _adam(parameter, next(each), mean, square, settings[place], decoupled[place])
        return loss.detach(), minimised.detach()

    # Of the same code Dynamo compiles a few networks at most.
    everything.__code__ = everything.__code__.replace()
    return everything


def _places(tensors: Sequence[Tensor], wanted: Tensor) -> list[int]:
    return [place for place, tensor in enumerate(tensors) if tensor is wanted]


def _settings(group: dict[str, Any], step: float) -> list[float]:
    """What a step of Adam multiplies by, worked out in double precision: `1 - beta2` of float32 would be far off."""
    beta1, beta2 = group["betas"]
    rate, decay = group["lr"], group["weight_decay"]
    kept = 1 - rate * decay if group["decoupled_weight_decay"] else decay
    root = math.sqrt(1 - beta2**step)
    return [kept, 1 - beta1, beta2, 1 - beta2, rate / (1 - beta1**step), root, group["eps"]]


def _adam(parameter: Tensor, grad: Tensor, mean: Tensor, square: Tensor, settings: Tensor, decoupled: bool) -> None:
    """Adam (arXiv 1412.6980), with decoupled weight decay AdamW (1711.05101), in place."""
    decay, to_mean, of_square, to_square, length, root, eps = settings.unbind()
    if decoupled:
        parameter.mul_(decay)
    else:
        grad = grad + decay * parameter
    mean.add_((grad - mean) * to_mean)
    square.mul_(of_square).add_(grad * grad * to_square)
    parameter.sub_(length * mean / (square.sqrt() / root + eps))
