"""TabM: a parameter-efficient ensemble of MLPs with averaged predictions (arXiv 2410.24210)."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec
from models.layers.common import Dropout, make_activation
from models.layers.tabular_embedding import TabularEmbedding


class MemberScale(nn.Module):
    """Learned scale per member: (rows, members or 1, width) * (members, width)."""

    no_weight_decay = True

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(members, width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale

    @torch.no_grad()
    def differ(self, sizes: Sequence[int], signs: bool) -> "MemberScale":
        """Draws a random factor per member and column, shared by all values of the column: a sign, or N(0, 1)."""
        factors = torch.randn(len(self.scale), len(sizes))
        factors = factors.sign() if signs else factors
        self.scale.copy_(factors.repeat_interleave(torch.tensor(sizes), 1))
        return self


class SharedLinear(nn.Module):
    """Linear layer shared by all members, with scales r, s and bias b per member: ((x * r) W) * s + b (BatchEnsemble).

    (rows, members, width) -> (rows, members, outer). Only r of the first layer is random, see `MemberScale.differ`.
    """

    def __init__(self, members: int, width: int, outer: int) -> None:
        super().__init__()
        self.before = MemberScale(members, width)
        self.linear = nn.Linear(width, outer, bias=False)
        self.after = MemberScale(members, outer)
        bound = width**-0.5
        self.bias = nn.Parameter(torch.empty(outer).uniform_(-bound, bound).repeat(members, 1))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.after(self.linear(self.before(x))) + self.bias
        return output


class Heads(nn.Module):
    """A separate linear layer per member: (rows, members, width) -> (rows, members, outputs)."""

    def __init__(self, members: int, width: int, outputs: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(members, width, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("rmw,mwo->rmo", x, self.weight) + self.bias


class TabM(nn.Module):
    """`members` MLPs of sizes `hidden` that share most weights.

    `variant`: with "mini", members differ in the scales of their inputs and in their heads; with "full", also in scales
    and biases of each layer. `keep`: number of members to keep after training, chosen on the validation rows, for
    faster inference; None keeps all.

    Returns (rows, members, outputs) logits or standardized values.
    """

    def __init__(
        self,
        spec: InputSpec,
        outputs: int,
        *,
        members: int = 32,
        variant: Literal["mini", "full"] = "mini",
        hidden: Sequence[int] = (512, 512),
        activation: str = "relu",
        dropout: float = 0.1,
        keep: int | None = None,
        inputs: Callable[[InputSpec], TabularEmbedding] = TabularEmbedding,
    ) -> None:
        super().__init__()
        if keep is not None and not 1 <= keep <= members:
            raise ValueError(f"model.keep={keep}: must be from 1 to the {members} of model.members, or null.")
        self.keep = keep
        self.inputs = inputs(spec)
        width = self.inputs.width
        signs = self.inputs.bent is None  # for embedded numbers a sign would change too little
        self.views: nn.Module = nn.Identity()
        if variant == "mini":
            self.views = MemberScale(members, width).differ(self.inputs.sizes, signs)
        layers: list[nn.Module] = []
        for index, size in enumerate(hidden):
            if variant == "mini":
                layers.append(nn.Linear(width, size))
            else:
                layers.append(shared := SharedLinear(members, width, size))
                if index == 0:
                    shared.before.differ(self.inputs.sizes, signs)
            layers += [make_activation(activation), Dropout(dropout)]
            width = size
        self.layers = nn.Sequential(*layers)
        self.heads = Heads(members, width, outputs)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.heads(self.layers(self.views(self.inputs(batch).unsqueeze(1))))
        return output

    @torch.no_grad()
    def select(self, members: Sequence[int]) -> None:
        """Keeps only these members."""
        for module in self.modules():
            if isinstance(module, MemberScale | SharedLinear | Heads):
                for name, parameter in module.named_parameters(recurse=False):
                    setattr(module, name, nn.Parameter(parameter[list(members)]))
