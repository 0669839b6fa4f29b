"""Soft trees: entmax, TorchScript, initialization from data, learning, and conversion to hard trees."""

import re

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from datamodules.schema import InputSpec, Task, TextSpec
from models.architectures.tree import HardTrees, Tree, harden, leaf_weights, prune, refit
from models.layers.entmax import entmax15, entmoid15
from models.training.parameter_groups import split_parameters
from tests.conftest import ROOT
from tests.models.problems import INPUTS, build, check_trains_and_scripts, fit, rows, script, start, target
from trainer.config.instantiate import instantiate

TASKS: tuple[Task, ...] = ("regression", "binary", "multiclass")


def by_bisection(scores: Tensor) -> Tensor:
    """1.5-entmax by its definition: the weights ((s/2 - t)+)^2 for the t at which they sum to 1."""
    half = scores / 2
    low, high = half.max(-1, keepdim=True).values - 1, half.max(-1, keepdim=True).values
    for _ in range(80):
        middle = (low + high) / 2
        too_much = (half - middle).clamp_min(0).square().sum(-1, keepdim=True) > 1
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return (half - low).clamp_min(0).square()


@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0, 30.0])
def test_entmax_equals_its_definition_and_has_exact_gradients(spread: float) -> None:
    torch.manual_seed(0)
    scores = (spread * torch.randn(40, 9, dtype=torch.float64)).requires_grad_()
    weights = entmax15(scores)
    torch.testing.assert_close(weights, by_bisection(scores.detach()))
    torch.testing.assert_close(script(Entmax())(scores), weights)
    if spread == 30.0:
        assert (weights == 0).float().mean() > 0.8
    if spread > 0:  # not differentiable where all scores are equal
        assert torch.autograd.gradcheck(entmax15, (scores[:4].detach().requires_grad_(),))


def test_entmax_of_a_single_score_and_of_ties() -> None:
    assert entmax15(torch.tensor([[7.0]])).tolist() == [[1.0]]
    torch.testing.assert_close(entmax15(torch.tensor([1.0, 1.0, -9.0, 1.0])), torch.tensor([1.0, 1.0, 0.0, 1.0]) / 3)


def test_entmoid_is_the_first_weight_of_two() -> None:
    x = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(entmoid15(x), entmax15(torch.stack([x, torch.zeros_like(x)], 1))[:, 0])
    assert torch.autograd.gradcheck(entmoid15, (x[21:40].detach().requires_grad_(),))
    assert entmoid15(torch.tensor([-2.0, 0.0, 2.0])).tolist() == pytest.approx([0.0, 0.5, 1.0])
    assert entmoid15(torch.tensor([-9.0, 9.0])).tolist() == [0.0, 1.0]


class Entmax(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return entmax15(scores)


@pytest.mark.parametrize("task", TASKS)
def test_all_parameters_have_gradients_and_torchscript_agrees(task: Task) -> None:
    torch.manual_seed(0)
    outputs = target(task).outputs
    network, batch = Tree(INPUTS, outputs, trees=5, depth=3), rows(task, 40)
    start(network, batch)
    check_trains_and_scripts(network, batch, (40, outputs))


def test_trees_in_chunks_give_the_same_output() -> None:
    torch.manual_seed(0)
    network, batch = Tree(INPUTS, 2, trees=7, depth=2).eval(), rows("binary", 20)
    together = network(batch)
    network.chunk_trees = 3
    torch.testing.assert_close(network(batch), together)


def test_the_digits_of_a_leaf_index_are_its_split_results() -> None:
    gates = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]])
    assert leaf_weights(gates).argmax(2).tolist() == [[0b101, 0b011]]
    soft = leaf_weights(torch.rand(9, 4, 5))
    assert soft.shape == (9, 4, 32)
    torch.testing.assert_close(soft.sum(2), torch.ones(9, 4))


def test_the_output_is_the_mean_of_the_leaf_responses() -> None:
    network = Tree(InputSpec(numbers=("a", "b")), 1, trees=2, depth=1)
    with torch.no_grad():
        network.gates.choice.copy_(torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]]))
        network.gates.log_temperature.fill_(-5)
        network.responses.copy_(torch.tensor([[[1.0], [3.0]], [[10.0], [30.0]]]))
    answers = network({"numbers": torch.tensor([[1.0, -1.0], [-1.0, 1.0]])})
    torch.testing.assert_close(answers, torch.tensor([[(3 + 10) / 2], [(1 + 30) / 2]]))


def test_the_start_sets_thresholds_and_temperatures_from_the_rows() -> None:
    torch.manual_seed(0)
    network, batch = Tree(INPUTS, 1, trees=50, depth=4), rows("binary", 2000)
    batch["numbers"][:, :3] = 100 * batch["numbers"][:, :3] + 5
    start(network, batch)
    gates = network.gates(network.eval().inputs(batch))
    share = (gates > 0.5).float().mean(0).flatten()
    # Thresholds are random quantiles: the shares of rows above them are uniformly distributed.
    assert float(share.mean()) == pytest.approx(0.5, abs=0.07)
    assert float(share.std()) == pytest.approx(12**-0.5, abs=0.06)
    assert float(((gates > 0) & (gates < 1)).float().mean()) > 0.95


def test_gates_have_no_weight_decay() -> None:
    network = Tree(INPUTS, 1, trees=2, depth=2)
    weights, others = split_parameters(network)
    assert [id(weight) for weight in weights] == [id(network.responses)]
    assert len(others) == 3


def test_the_config_equals_the_defaults_of_the_code() -> None:
    torch.manual_seed(0)
    shipped = instantiate(OmegaConf.load(ROOT / "conf" / "model" / "tree.yaml"), spec=INPUTS, outputs=2)
    torch.manual_seed(0)
    plain = Tree(INPUTS, 2)
    assert (str(shipped), vars(shipped.inputs)["sizes"]) == (str(plain), vars(plain.inputs)["sizes"])
    for key, values in plain.state_dict().items():
        assert torch.equal(shipped.state_dict()[key], values)


@pytest.mark.parametrize("setting", ["trees", "depth"])
def test_trees_and_depth_are_at_least_1(setting: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'model.{setting}=0: must be at least 1.')}$"):
        Tree(INPUTS, 1, **{setting: 0})


def test_texts_are_refused() -> None:
    message = (
        "tree supports only numbers and categories, but there are numbers and texts: use model=mlp, linear,"
        " tabm, realmlp, resnet, ft_transformer or text_transformer, or drop columns with"
        " data.columns='{t: drop}'."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Tree(InputSpec(numbers=("a",), texts=(TextSpec("t", ("x",), (1.0,)),)), 1)


@pytest.mark.parametrize(("task", "metric", "least"), [("regression", "r2", 0.8), ("binary", "accuracy", 0.85)])
def test_a_known_function_is_learned(task: Task, metric: str, least: float) -> None:
    torch.manual_seed(0)
    network, train = Tree(INPUTS, 1, trees=16, depth=3), rows(task, 512)
    start(network, train)
    trainer = fit(build(task, network=network), train, epochs=15)
    assert float(trainer.callback_metrics[f"val/{metric}"]) > least


def test_golden_loss() -> None:
    torch.manual_seed(0)
    network, train = Tree(INPUTS, 1, trees=8, depth=3), rows("binary", 256)
    start(network, train)
    trainer = fit(build("binary", network=network), train, epochs=3)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(0.64108, rel=1e-3)


def sharp(trees: int, depth: int, width: int) -> Tree:
    """Almost hard trees: each level uses one input, and its gate is steep."""
    network = Tree(InputSpec(numbers=tuple(f"x{i}" for i in range(width))), 2, trees=trees, depth=depth)
    with torch.no_grad():
        network.gates.choice.copy_(9.0 * nn.functional.one_hot(torch.randint(width, (trees, depth)), width))
        network.gates.threshold.normal_()
        network.gates.log_temperature.fill_(-12)
    return network.eval()


def test_trees_that_are_hard_stay_what_they_are() -> None:
    torch.manual_seed(0)
    network, x = sharp(6, 3, 4), torch.randn(500, 4)
    hard, distance = harden(network, x)
    assert distance < 1e-3
    assert torch.equal(hard.column, network.gates.choice.argmax(2))
    torch.testing.assert_close(hard.output(hard.leaves(x)), network({"numbers": x}), rtol=0, atol=1e-4)
    torch.testing.assert_close(hard.threshold, network.gates.threshold.detach(), rtol=0, atol=0.05)


def test_a_soft_gate_becomes_the_question_that_is_nearest_to_it() -> None:
    torch.manual_seed(0)
    network, x = Tree(InputSpec(numbers=("a", "b", "c")), 1, trees=4, depth=2), torch.randn(60, 3).round(decimals=1)
    start(network, {"numbers": x})
    hard, distance = harden(network, x)
    gates = network.gates(x).detach()

    def off(column: int, threshold: float, tree: int, level: int) -> float:
        return float(((x[:, column] > threshold).float() - gates[:, tree, level]).square().mean())

    least = []
    for tree in range(4):
        for level in range(2):
            every = [off(c, t, tree, level) for c in range(3) for t in x[:, c].unique()[:-1].tolist()]
            found = off(int(hard.column[tree, level]), float(hard.threshold[tree, level]), tree, level)
            assert found == pytest.approx(min(every), abs=1e-6)
            least.append(found)
    assert distance == pytest.approx(sum(least) / len(least), abs=1e-6)


def test_a_threshold_separates_adjacent_floats() -> None:
    one = torch.tensor(1.0)
    x = torch.stack([one, one.nextafter(torch.tensor(2.0))]).repeat(10)[:, None]
    network = Tree(InputSpec(numbers=("a",)), 1, trees=1, depth=1)
    hard, _ = harden(network, x)
    assert hard.leaves(x)[:, 0].tolist() == [0, 1] * 10


def some_trees() -> tuple[HardTrees, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(400, 3)
    hard = HardTrees(torch.randint(3, (5, 2)), torch.randn(5, 2) / 2, torch.randn(5, 4, 1) / 5, torch.zeros(1))
    return hard, hard.leaves(x), (x[:, 0] + x[:, 1] > 0).float()


def logistic(output: Tensor, truth: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(output[:, 0], truth)


def test_refitting_the_leaves_minimizes_the_loss() -> None:
    hard, leaves, truth = some_trees()
    fitted = refit(hard, leaves, truth, logistic, penalty=1.0)
    assert logistic(fitted.output(leaves), truth) < logistic(hard.output(leaves), truth)
    responses, bias = fitted.responses.clone().requires_grad_(), fitted.bias.clone().requires_grad_()
    loss = logistic(HardTrees(hard.column, hard.threshold, responses, bias).output(leaves), truth)
    loss = loss + 0.5 / 400 * (responses - hard.responses).square().sum()
    for gradient in torch.autograd.grad(loss, [responses, bias]):
        assert gradient.abs().max() < 1e-4
    still = refit(hard, leaves, truth, logistic, penalty=1e6)
    torch.testing.assert_close(still.responses, hard.responses, rtol=0, atol=1e-2)


def test_branches_without_rows_have_a_single_response() -> None:
    hard = HardTrees(torch.zeros(1, 3).long(), torch.zeros(1, 3), torch.arange(8.0).view(1, 8, 1), torch.zeros(1))
    pruned = prune(hard, torch.tensor([[0, 0, 0, 0, 5, 0, 0, 0]]))
    assert pruned.responses.flatten().tolist() == [1.5, 1.5, 1.5, 1.5, 4.0, 5.0, 6.5, 6.5]
    assert prune(hard, torch.ones(1, 8)).responses.equal(hard.responses)


def test_rows_are_counted_per_leaf() -> None:
    hard, leaves, _ = some_trees()
    counts = hard.count_rows(leaves)
    assert counts.tolist() == [[int((leaves[:, tree] == leaf).sum()) for leaf in range(4)] for tree in range(5)]
