"""An optimizer step without torch's checks around it, which take longer than the step of a small network."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from trainer.loop import torch_internals

Moments = tuple[list[Tensor], list[Tensor], list[Tensor]]
"""Means of the gradients, means of their squares, and step counts of the parameters of a group."""


class Step:
    """Calls the kernel of a fused Adam or AdamW on the optimizer's own state; any other optimizer steps by itself."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer: Any = optimizer
        self.groups = optimizer.param_groups
        self.parameters: list[Tensor] = [parameter for group in self.groups for parameter in group["params"]]
        self.unsupported = _unsupported_reason(self.optimizer)
        """What differs from plain Adam or AdamW; None if nothing does."""
        self.state = self._moments()
        # torch calls the kernel once for all parameters of a device and dtype.
        alike = len({(parameter.device, parameter.dtype) for parameter in self.parameters}) == 1
        kernels = torch_internals.fused_adam_ is not None and torch_internals.fused_adamw_ is not None
        self.fused = kernels and self.unsupported is None and alike and all(group["fused"] for group in self.groups)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def __call__(self) -> None:
        grads = [[parameter.grad for parameter in group["params"]] for group in self.groups]
        if not (self.state and self.fused) or any(grad is None for each in grads for grad in each):
            self.optimizer.step()
            self.state = self.state or self._moments()
            return
        for group, grad, (means, squares, steps) in zip(self.groups, grads, self.state, strict=True):
            torch_internals.foreach_add_(steps, 1)
            adamw = group["decoupled_weight_decay"]
            kernel: Any = torch_internals.fused_adamw_ if adamw else torch_internals.fused_adam_
            beta1, beta2 = group["betas"]
            settings = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
            kernel(group["params"], grad, means, squares, [], steps, beta1=beta1, beta2=beta2, **settings)

    def _moments(self) -> list[Moments]:
        """The state of each group; empty if a parameter has none: before the first step, or if it gets no gradient."""
        state = self.optimizer.state
        if self.unsupported is not None or not all(parameter in state for parameter in self.parameters):
            return []
        return [
            (
                [state[parameter]["exp_avg"] for parameter in group["params"]],
                [state[parameter]["exp_avg_sq"] for parameter in group["params"]],
                [state[parameter]["step"] for parameter in group["params"]],
            )
            for group in self.groups
        ]


def _unsupported_reason(optimizer: Any) -> str | None:
    if type(optimizer) not in (Adam, AdamW):
        return f"the optimizer {type(optimizer).__name__} is not Adam or AdamW"
    if torch_internals.has_step_hooks(optimizer):
        return "the optimizer has hooks"
    for group in optimizer.param_groups:
        for setting in ("amsgrad", "maximize", "differentiable"):
            if group[setting]:
                return f"the optimizer has {setting}={group[setting]}"
        if isinstance(group["lr"], Tensor):
            return "the optimizer's lr is a tensor"
    return None
