"""Layers that several networks share: activations by name, initialization, dropout and normalization."""

from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import activation as activations

Init = Literal["he", "xavier", "orthogonal", "data"]
Norm = Literal["none", "batch", "layer"]

# Excluded are those that change the width, mix columns or need an argument.
_NOT_BY_NAME = {"GLU", "LogSoftmax", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "Threshold"}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    name.lower(): getattr(nn, name) for name in activations.__all__ if name not in _NOT_BY_NAME
}


def make_activation(name: str) -> nn.Module:
    """Returns the activation of torch.nn with this case-insensitive name. Raises ValueError if there is none."""
    if name.lower() not in ACTIVATIONS:
        close = get_close_matches(name.lower(), ACTIVATIONS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(sorted(ACTIVATIONS))}."
        raise ValueError(f"activation={name!r} is not an activation of torch.nn: {hint}")
    return ACTIVATIONS[name.lower()]()


def initialize(linear: nn.Linear, init: Init) -> nn.Linear:
    """Initializes the weight by He (arXiv 1502.01852), Xavier (Glorot and Bengio 2010) or orthogonal (arXiv 1312.6120).

    "data" is orthogonal too; `unit_variance` scales it later. The bias is 0.
    """
    if init == "he":
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    elif init == "xavier":
        nn.init.xavier_normal_(linear.weight)
    elif init in ("orthogonal", "data"):
        nn.init.orthogonal_(linear.weight)
    else:
        raise ValueError(f"init={init!r}: choose he, xavier, orthogonal or data.")
    nn.init.zeros_(linear.bias)
    return linear


def unit_variance(network: nn.Module, layers: nn.Sequential, batch: dict[str, Tensor]) -> None:
    """Scales the weights of all linear `layers` but the last so that their outputs have variance 1 on `batch`.

    Layer-sequential unit variance (arXiv 1511.06422), in one forward pass: each layer is scaled before the next one is
    computed. Call it in eval mode without gradients; biases must be 0. A layer with constant outputs is left unchanged.
    """

    def scale(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
        assert isinstance(layer, nn.Linear)
        deviation = output.std(correction=0)
        if deviation == 0:
            return output
        layer.weight.div_(deviation)
        return output / deviation

    *hidden, _ = [layer for layer in layers if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(scale) for layer in hidden]
    network(batch)
    for handle in handles:
        handle.remove()


def _random(count: int) -> Tensor:
    """int64 (count,) of random bits."""
    return torch.empty(count, dtype=torch.int64).random_(-(2**63), None)


# torch.compile does not support `random_`.
_random_in_graph = torch.library.custom_op(
    "lathe::random", _random, mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
_random_in_graph.register_fake(lambda count: torch.empty(count, dtype=torch.int64))


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al. 2014); on the CPU it needs one random byte per value, so rates are multiples of 1/256.

    torch draws one random number per value, which takes as long as a small layer on the CPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        return self.drop(input) if self.training else input

    @torch.jit.unused
    def drop(self, input: Tensor) -> Tensor:
        cut = round(self.p * 256)
        if input.device.type != "cpu" or cut in (0, 256):
            return F.dropout(input, self.p)
        values = input.numel()
        numbers = (_random_in_graph if torch.compiler.is_compiling() else _random)((values + 7) // 8)
        kept = numbers.view(torch.uint8)[:values].view(input.shape) >= cut
        return input * kept.to(input.dtype).mul_(256 / (256 - cut))


class BatchNorm(nn.BatchNorm1d):
    """Batch norm of (rows, features). A batch of one row, which has no variance, uses the running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        use_batch = self.training and input.shape[0] > 1
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=use_batch, eps=self.eps
        )


def make_norm(norm: Norm, width: int) -> nn.Module:
    """Returns the normalization layer with this name for (rows, width)."""
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return BatchNorm(width)
    if norm == "layer":
        return nn.LayerNorm(width)
    raise ValueError(f"norm={norm!r}: choose none, batch or layer.")
