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
        hooks = (self.optimizer._optimizer_step_pre_hooks, self.optimizer._optimizer_step_post_hooks)
        self.is_adam = type(optimizer) in (Adam, AdamW) and not any(hooks) and all(map(_is_plain, self.groups))
        self.on_cpu = all(parameter.device.type == "cpu" for parameter in self.parameters)
        self.state = self._state()

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def __call__(self) -> None:
        grads = [[parameter.grad for parameter in group["params"]] for group in self.groups]
        if not (self.state and self.on_cpu) or any(grad is None for each in grads for grad in each):
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
        if not self.is_adam or not all(parameter in state for parameter in self.parameters):
            return []
        return [
            (
                [state[parameter]["exp_avg"] for parameter in group["params"]],
                [state[parameter]["exp_avg_sq"] for parameter in group["params"]],
                [state[parameter]["step"] for parameter in group["params"]],
            )
            for group in self.groups
        ]


def _is_plain(group: dict[str, Any]) -> bool:
    return bool(group["fused"]) and not (group["amsgrad"] or group["maximize"] or isinstance(group["lr"], Tensor))
