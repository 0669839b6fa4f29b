"""An ensemble of oblivious decision trees with soft splits, trained by gradient; and the hard trees nearest to it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec
from models.layers.column_support import refuse_columns
from models.layers.entmax import entmax15, entmoid15
from models.layers.tabular_embedding import FLAT, TabularEmbedding

LEAVES = 4096
"""So many of all trees are looked at together: 2,048 trees of 64 leaves would need gigabytes for a batch."""


class Gates(nn.Module):
    """The splits: each level of each tree mixes its inputs to one value and asks, softly, whether it is above a
    threshold: entmoid15((x @ entmax15(choice) - threshold) / temperature).

    Takes (rows, width), gives (rows, trees, depth) in 0..1.
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
        """The value that each level asks about: (rows, trees, depth)."""
        return torch.einsum("rw,tdw->rtd", x, entmax15(self.choice))

    @torch.jit.unused
    def start(self, x: Tensor) -> None:
        """Thresholds at random quantiles of the mixed values; temperatures so that 95 % of the rows lie in the half
        of the gate's slope where it is about linear.
        """
        mixed = self.mix(x)
        row = torch.randint(len(x), (1, *self.threshold.shape), device=x.device)
        self.threshold.copy_(mixed.gather(0, row)[0])
        distance = (mixed - self.threshold).abs().kthvalue(max(int(0.95 * len(x)), 1), dim=0).values
        self.log_temperature.copy_(distance.clamp_min(1e-3).log())


class Tree(nn.Module):
    """The mean of `trees` oblivious trees (NODE, arXiv 1909.06312): each asks `depth` questions, the same of all rows,
    and has a response for each of the 2^depth answers; a row gets their mean, weighted by how far it is in each leaf.

    Leaf i stands for the answers that are the digits of i in base 2, the first question's first. `inputs` makes the
    first layer; by default a hard split is on a number or on a level. Gives (rows, outputs) logits or standardised
    values. ValueError for columns of texts and images.
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
                raise ValueError(f"model.{setting}={value}: must be 1 or more.")
        self.inputs = inputs(spec)
        self.gates = Gates(self.inputs.width, trees, depth)
        self.responses = nn.Parameter(torch.randn(trees, 2**depth, outputs))
        self.trees = trees
        self.at_once = max(1, LEAVES // 2**depth)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        gates = self.gates(self.inputs(batch))
        parts: list[Tensor] = []
        for first in range(0, self.trees, self.at_once):
            some = slice(first, first + self.at_once)
            parts += [leaf_weights(gates[:, some]).flatten(1) @ self.responses[some].flatten(0, 1)]
        return torch.stack(parts).sum(0) / self.trees

    @torch.jit.unused
    def start(self, batch: dict[str, Tensor]) -> None:
        """Suits thresholds and temperatures to training rows, before the first step."""
        self.gates.start(self.inputs(batch))


def leaf_weights(gates: Tensor) -> Tensor:
    """How far a row is in each leaf, by outer products: (rows, trees, depth) -> (rows, trees, 2^depth)."""
    weights = torch.ones_like(gates[:, :, :1])
    for level in range(gates.shape[2]):
        above = gates[:, :, level : level + 1]
        weights = torch.stack([weights * (1 - above), weights * above], 3).flatten(2)
    return weights


@dataclass(frozen=True)
class HardTrees:
    """Trees whose every question is whether one input is above a threshold. A row's output is the sum of its leaves'
    responses, one a tree, and the bias.
    """

    column: Tensor
    """Which input is asked about, int64 (trees, depth)."""
    threshold: Tensor
    """Float (trees, depth)."""
    responses: Tensor
    """Float (trees, 2^depth, outputs)."""
    bias: Tensor
    """Float (outputs,)."""

    def leaves(self, x: Tensor) -> Tensor:
        """The leaf of each row in each tree: int64 (rows, trees)."""
        trees, depth = self.column.shape
        above = (x[:, self.column.flatten()] > self.threshold.flatten()).view(-1, trees, depth)
        return (above * 2 ** torch.arange(depth - 1, -1, -1)).sum(2)

    def rows_in(self, leaves: Tensor) -> Tensor:
        """How many rows are in each leaf: int64 (trees, 2^depth)."""
        trees, count, _ = self.responses.shape
        places = (leaves + torch.arange(trees) * count).flatten()
        return torch.bincount(places, minlength=trees * count).view(trees, count)

    def sum_of(self, leaves: Tensor) -> Tensor:
        """Leaves -> output (rows, outputs)."""
        trees, count, _ = self.responses.shape
        return self.responses.flatten(0, 1)[leaves + torch.arange(trees) * count].sum(1) + self.bias


@torch.no_grad()
def harden(network: Tree, x: Tensor) -> tuple[HardTrees, float]:
    """Each gate becomes the question that is nearest to it on the encoded rows `x`, (rows, width): in least squares,
    over all inputs and all thresholds in the middle of two neighbouring values. The responses stay.

    Also gives the mean squared difference of gates and questions.
    """
    gates = network.gates(x).flatten(1)
    column = torch.zeros(gates.shape[1], dtype=torch.int64)
    threshold = torch.full_like(gates[0], torch.inf)
    # A question that is true for some rows is off by the mean of g^2, less the mean over all rows of 2g - 1 where it
    # is true: the nearest one has the largest of these sums.
    largest = torch.full_like(gates[0], -torch.inf)
    for index, values in enumerate(x.unbind(1)):
        ordered, row = values.sort(descending=True)
        ends = (ordered[:-1] > ordered[1:]).nonzero()[:, 0]
        if len(ends) == 0:
            continue
        gained, place = (2 * gates[row] - 1).cumsum(0)[ends].max(0)
        end = ends[place]
        middle = (ordered[end] + ordered[end + 1]) / 2
        middle = torch.where(middle < ordered[end], middle, ordered[end + 1])  # of two that are next to each other
        better = gained > largest
        largest = torch.where(better, gained, largest)
        column[better] = index
        threshold = torch.where(better, middle, threshold)
    shape = network.gates.threshold.shape
    bias = torch.zeros(network.responses.shape[2])
    hard = HardTrees(column.view(shape), threshold.view(shape), network.responses / network.trees, bias)
    return hard, float(((x[:, column] > threshold).float() - gates).square().mean())


def refit(
    hard: HardTrees, leaves: Tensor, truth: Tensor, loss: Callable[[Tensor, Tensor], Tensor], penalty: float
) -> HardTrees:
    """The same questions with other responses and bias: those with the least loss on these rows, and `penalty` / 2
    times their squared distance from the old ones, divided by the rows. For the usual losses that is convex.
    """
    responses, bias = hard.responses.clone().requires_grad_(), hard.bias.clone().requires_grad_()
    fitted = replace(hard, responses=responses, bias=bias)
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS([responses, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        moved = (responses - hard.responses).square().sum()
        total = loss(fitted.sum_of(leaves), truth) + penalty / 2 / len(truth) * moved
        responses.grad, bias.grad = torch.autograd.grad(total, [responses, bias])
        return float(total.detach())

    optimizer.step(closure)
    return replace(hard, responses=responses.detach(), bias=bias.detach())


def prune(hard: HardTrees, rows: Tensor) -> HardTrees:
    """Gives the leaves behind a branch that none of the `rows` in leaves, (trees, 2^depth), has taken one response,
    their mean: a question asked there says nothing.
    """
    responses = hard.responses
    trees, leaves, outputs = responses.shape
    for level in range(1, hard.column.shape[1]):
        branches = responses.view(trees, 2**level, -1, outputs)
        taken = rows.view(trees, 2**level, -1, 1).sum(2, keepdim=True) > 0
        responses = torch.where(taken, branches, branches.mean(2, keepdim=True)).view(trees, leaves, outputs)
    return replace(hard, responses=responses)
