"""An optimizer's step without what torch does around it, which takes longer than a small network's step itself."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

Moments = tuple[list[Tensor], list[Tensor], list[Tensor]]
"""Of a group's parameters the means of gradients, the means of their squares, and the counts of steps."""


class Step:
    """Calls the kernel of a fused Adam(W) on the optimizer's own state; any other optimizer steps by itself."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer: Any = optimizer
        self.groups = optimizer.param_groups
        self.parameters: list[Tensor] = [parameter for group in self.groups for parameter in group["params"]]
        self.foreign = _foreign(self.optimizer)
        """What is not plain Adam or AdamW; None where nothing is."""
        self.state = self._state()
        # torch calls the kernel once for all parameters of a device and type.
        alike = len({(parameter.device, parameter.dtype) for parameter in self.parameters}) == 1
        self.lean = self.foreign is None and alike and all(group["fused"] for group in self.groups)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def __call__(self) -> None:
        grads = [[parameter.grad for parameter in group["params"]] for group in self.groups]
        if not (self.state and self.lean) or any(grad is None for each in grads for grad in each):
            self.optimizer.step()
            self.state = self.state or self._state()
            return
        for group, grad, (means, squares, steps) in zip(self.groups, grads, self.state, strict=True):
            torch._foreach_add_(steps, 1)
            kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
            beta1, beta2 = group["betas"]
            settings = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
            kernel(group["params"], grad, means, squares, [], steps, beta1=beta1, beta2=beta2, **settings)

    def _state(self) -> list[Moments]:
        """Nothing where a parameter has none: before the first step, or where it never gets a gradient."""
        state = self.optimizer.state
        if self.foreign is not None or not all(parameter in state for parameter in self.parameters):
            return []
        return [
            (
                [state[parameter]["exp_avg"] for parameter in group["params"]],
                [state[parameter]["exp_avg_sq"] for parameter in group["params"]],
                [state[parameter]["step"] for parameter in group["params"]],
            )
            for group in self.groups
        ]


def _foreign(optimizer: Any) -> str | None:
    if type(optimizer) not in (Adam, AdamW):
        return f"the optimizer {type(optimizer).__name__} is not Adam or AdamW"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "the optimizer has hooks"
    for group in optimizer.param_groups:
        for setting in ("amsgrad", "maximize", "differentiable"):
            if group[setting]:
                return f"the optimizer has {setting}={group[setting]}"
        if isinstance(group["lr"], Tensor):
            return "the optimizer's lr is a tensor"
    return None
