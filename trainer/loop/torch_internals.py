"""The private parts of torch that Lathe uses, under public names. No other module uses them.

Checked with torch 2.15.0. If a name is missing, a public function takes its place, the optimizer takes
its own steps, or `graph_unsupported_reason` says why a step is not compiled.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

STEP_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def _add_each(tensors: Sequence[Tensor], value: float) -> None:
    for tensor in tensors:
        tensor.add_(value)


def _lerp_each(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    for tensor, end in zip(tensors, ends, strict=True):
        tensor.lerp_(end, weight)


foreach_add_: Callable[..., None] = getattr(torch, "_foreach_add_", _add_each)
"""Adds a number to each of the tensors, in place."""
foreach_lerp_: Callable[..., None] = getattr(torch, "_foreach_lerp_", _lerp_each)
"""Moves each of the tensors by the share `weight` towards the tensor at its place in `ends`, in place."""
fused_adam_: Callable[..., None] | None = getattr(torch, "_fused_adam_", None)
fused_adamw_: Callable[..., None] | None = getattr(torch, "_fused_adamw_", None)
"""One step for lists of parameters, gradients and moments on one device, in place; None if torch has no such kernel."""


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Returns whether hooks run around the optimizer's step; True if that is unknown."""
    return any(getattr(optimizer, name, True) for name in STEP_HOOKS)


def graph_unsupported_reason() -> str | None:
    """Returns why this version of torch cannot compile a whole training step; None if it can."""
    try:
        import torch._dynamo as dynamo  # here, because these take seconds to import
        import torch._inductor.config as inductor
    except ImportError as error:
        return f"torch {torch.__version__}: {error}"
    wanted = ((dynamo, "lookup_backend"), (dynamo.config, "trace_autograd_ops"), (inductor, "fallback_random"))
    absent = [name for owner, name in wanted if not hasattr(owner, name)]
    return f"torch {torch.__version__} has no {absent[0]}" if absent else None


def graph_compiler() -> Callable[[torch.fx.GraphModule, Any], Callable[..., Any]]:
    """Inductor, as a function that takes a graph and its example inputs."""
    compiler: Callable[[torch.fx.GraphModule, Any], Callable[..., Any]] = torch._dynamo.lookup_backend("inductor")
    return compiler


@contextmanager
def graph_settings() -> Iterator[None]:
    """Traces gradients as part of a graph, and draws random numbers from torch's generators."""
    with torch._dynamo.config.patch(trace_autograd_ops=True), torch._inductor.config.patch(fallback_random=True):
        yield
