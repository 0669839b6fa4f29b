"""Differentiable oblivious decision trees with soft splits, and their approximation by hard trees."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec
from models.layers.column_support import refuse_columns
from models.layers.entmax import entmax15, entmoid15
from models.layers.tabular_embedding import FLAT, TabularEmbedding

CHUNK_LEAVES = 4096
"""Number of leaves computed at a time: 2,048 trees with 64 leaves would need gigabytes per batch."""


class Gates(nn.Module):
    """Soft splits: entmoid15((x @ entmax15(choice) - threshold) / temperature) for each level of each tree.

    (rows, width) -> (rows, trees, depth) in [0, 1].
    """

    no_weight_decay = True

    def __init__(self, width: int, trees: int, depth: int) -> None:
        super().__init__()
        self.choice = nn.Parameter(torch.rand(trees, depth, width))
        self.threshold = nn.Parameter(torch.zeros(trees, depth))
        self.log_temperature = nn.Parameter(torch.zeros(trees, depth))

    def forward(self, x: Tensor) -> Tensor:
        return entmoid15((self.mix(x) - self.threshold) * torch.exp(-self.log_temperature))

    def mix(self, x: Tensor) -> Tensor:
        """Returns the weighted mean of inputs that each level compares: (rows, trees, depth)."""
        return torch.einsum("rw,tdw->rtd", x, entmax15(self.choice))

    @torch.jit.unused
    def start(self, x: Tensor) -> None:
        """Sets thresholds to random quantiles, and temperatures so that gates are about linear for 95 % of rows."""
        mixed = self.mix(x)
        row = torch.randint(len(x), (1, *self.threshold.shape), device=x.device)
        self.threshold.copy_(mixed.gather(0, row)[0])
        distance = (mixed - self.threshold).abs().kthvalue(max(int(0.95 * len(x)), 1), dim=0).values
        self.log_temperature.copy_(distance.clamp_min(1e-3).log())


class Tree(nn.Module):
    """The mean of `trees` oblivious trees (NODE, arXiv 1909.06312) with `depth` soft splits and 2^depth leaves each.

    All nodes of a level have the same split. The output of a tree is the mean of its leaf responses, weighted by
    `leaf_weights`. The binary digits of a leaf's index are its split results, the first split first. `inputs` encodes
    the columns; by default each number and each level is one input. Returns (rows, outputs) logits or standardized
    values. Raises ValueError for text and image columns.
    """

    def __init__(
        self,
        spec: InputSpec,
        outputs: int,
        *,
        trees: int = 64,
        depth: int = 6,
        inputs: Callable[[InputSpec], TabularEmbedding] = FLAT,
    ) -> None:
        super().__init__()
        refuse_columns(spec, "tree", ["number", "category"])
        for setting, value in {"trees": trees, "depth": depth}.items():
            if value < 1:
                raise ValueError(f"model.{setting}={value}: must be at least 1.")
        self.inputs = inputs(spec)
        self.gates = Gates(self.inputs.width, trees, depth)
        self.responses = nn.Parameter(torch.randn(trees, 2**depth, outputs))
        self.trees = trees
        self.chunk_trees = max(1, CHUNK_LEAVES // 2**depth)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        gates = self.gates(self.inputs(batch))
        parts: list[Tensor] = []
        for first in range(0, self.trees, self.chunk_trees):
            chunk = slice(first, first + self.chunk_trees)
            parts += [leaf_weights(gates[:, chunk]).flatten(1) @ self.responses[chunk].flatten(0, 1)]
        return torch.stack(parts).sum(0) / self.trees

    @torch.jit.unused
    def start(self, batch: dict[str, Tensor]) -> None:
        """Initializes thresholds and temperatures from training rows."""
        self.gates.start(self.inputs(batch))


def leaf_weights(gates: Tensor) -> Tensor:
    """Returns the weights of leaves, products of gates: (rows, trees, depth) -> (rows, trees, 2^depth)."""
    weights = torch.ones_like(gates[:, :, :1])
    for level in range(gates.shape[2]):
        above = gates[:, :, level : level + 1]
        weights = torch.stack([weights * (1 - above), weights * above], 3).flatten(2)
    return weights


@dataclass(frozen=True)
class HardTrees:
    """Oblivious trees whose splits compare one input with a threshold (true if above).

    The output of a row is the sum of the responses of its leaves, one per tree, plus the bias.
    """

    column: Tensor
    """Index of the input of each split, int64 (trees, depth)."""
    threshold: Tensor
    """Float (trees, depth)."""
    responses: Tensor
    """Float (trees, 2^depth, outputs)."""
    bias: Tensor
    """Float (outputs,)."""

    def leaves(self, x: Tensor) -> Tensor:
        """Returns the leaf of each row in each tree: int64 (rows, trees)."""
        trees, depth = self.column.shape
        above = (x[:, self.column.flatten()] > self.threshold.flatten()).view(-1, trees, depth)
        return (above * 2 ** torch.arange(depth - 1, -1, -1)).sum(2)

    def count_rows(self, leaves: Tensor) -> Tensor:
        """Returns the number of rows in each leaf: int64 (trees, 2^depth)."""
        trees, count, _ = self.responses.shape
        indices = (leaves + torch.arange(trees) * count).flatten()
        return torch.bincount(indices, minlength=trees * count).view(trees, count)

    def output(self, leaves: Tensor) -> Tensor:
        """Returns the output (rows, outputs) for the leaves of rows, (rows, trees)."""
        trees, count, _ = self.responses.shape
        return self.responses.flatten(0, 1)[leaves + torch.arange(trees) * count].sum(1) + self.bias


@torch.no_grad()
def harden(network: Tree, x: Tensor) -> tuple[HardTrees, float]:
    """Replaces each gate by the hard split closest to it in least squares on the encoded rows `x`, (rows, width).

    Candidates are all inputs with all midpoints of adjacent values. Responses are unchanged. Also returns the mean
    squared difference between gates and splits.
    """
    gates = network.gates(x).flatten(1)
    column = torch.zeros(gates.shape[1], dtype=torch.int64)
    threshold = torch.full_like(gates[0], torch.inf)
    # With gates g, the squared difference of a split is sum(g^2) minus the sum of 2g - 1 over the rows where the split
    # is true, so the best split maximizes the second sum.
    largest = torch.full_like(gates[0], -torch.inf)
    for index, values in enumerate(x.unbind(1)):
        ordered, row = values.sort(descending=True)
        ends = (ordered[:-1] > ordered[1:]).nonzero()[:, 0]
        if len(ends) == 0:
            continue
        gain, index_of_end = (2 * gates[row] - 1).cumsum(0)[ends].max(0)
        end = ends[index_of_end]
        middle = (ordered[end] + ordered[end + 1]) / 2
        middle = torch.where(middle < ordered[end], middle, ordered[end + 1])  # for adjacent floats
        better = gain > largest
        largest = torch.where(better, gain, largest)
        column[better] = index
        threshold = torch.where(better, middle, threshold)
    shape = network.gates.threshold.shape
    bias = torch.zeros(network.responses.shape[2])
    hard = HardTrees(column.view(shape), threshold.view(shape), network.responses / network.trees, bias)
    return hard, float(((x[:, column] > threshold).float() - gates).square().mean())


def refit(
    hard: HardTrees, leaves: Tensor, truth: Tensor, loss: Callable[[Tensor, Tensor], Tensor], penalty: float
) -> HardTrees:
    """Refits responses and bias with fixed splits: minimizes the loss plus an L2 penalty on changes of the responses.

    The penalty is `penalty` / 2 / rows times the squared change. The objective is convex for the usual losses.
    """
    responses, bias = hard.responses.clone().requires_grad_(), hard.bias.clone().requires_grad_()
    fitted = replace(hard, responses=responses, bias=bias)
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS([responses, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        moved = (responses - hard.responses).square().sum()
        total = loss(fitted.output(leaves), truth) + penalty / 2 / len(truth) * moved
        responses.grad, bias.grad = torch.autograd.grad(total, [responses, bias])
        return float(total.detach())

    optimizer.step(closure)
    return replace(hard, responses=responses.detach(), bias=bias.detach())


def prune(hard: HardTrees, rows: Tensor) -> HardTrees:
    """Gives all leaves of a branch without rows their mean response, so that splits in this branch have no effect.

    `rows`: number of rows in each leaf, (trees, 2^depth).
    """
    responses = hard.responses
    trees, leaves, outputs = responses.shape
    for level in range(1, hard.column.shape[1]):
        branches = responses.view(trees, 2**level, -1, outputs)
        has_rows = rows.view(trees, 2**level, -1, 1).sum(2, keepdim=True) > 0
        responses = torch.where(has_rows, branches, branches.mean(2, keepdim=True)).view(trees, leaves, outputs)
    return replace(hard, responses=responses)
