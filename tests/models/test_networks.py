"""Networks: shapes, what the artefact's TorchScript gives, how inputs and weights are made."""

import re
import warnings
from bisect import bisect
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec, Task
from models.answers import answer
from models.inputs import Inputs, PiecewiseLinear
from models.layers import ACTIVATIONS, BatchNorm, initialise, make_activation
from models.linear import Linear
from models.mlp import MLP
from tests.models.problems import INPUTS, rows, target

EDGES = ((-2.0, 0.0, 2.0), (0.0, 1.0), (-1.0, -0.5, 0.0, 1.5))
NETWORKS: dict[str, Callable[[InputSpec, int], nn.Module]] = {
    "linear": Linear,
    "mlp": MLP,
    "batch norm": lambda inputs, outputs: MLP(inputs, outputs, norm="batch", activation="silu", init="xavier"),
    "layer norm": lambda inputs, outputs: MLP(inputs, outputs, norm="layer", init="orthogonal", hidden=(8,)),
    "bent": lambda inputs, outputs: MLP(replace(inputs, edges=EDGES), outputs, number_size=3),
}
TASKS: tuple[Task, ...] = ("regression", "binary", "multiclass")


def script(module: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted: torch.jit.ScriptModule = torch.jit.script(module)
    return scripted


class Answering(nn.Module):
    def __init__(self, network: nn.Module, task: str) -> None:
        super().__init__()
        self.network = network
        self.task = task

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return answer(self.network(batch), self.task, 50.0, 8.0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NETWORKS)
def test_answers_have_the_shape_of_the_task_and_are_the_same_in_torchscript(name: str, task: Task) -> None:
    torch.manual_seed(0)
    spec, batch = target(task), rows(task, 20)
    model = Answering(NETWORKS[name](INPUTS, spec.outputs), task).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # those that start at zero would hide a difference
    answers = model(batch)
    if task == "regression":
        assert answers.shape == (20,)
    else:
        assert answers.shape == (20, len(spec.classes))
        torch.testing.assert_close(answers.sum(1), torch.ones(20))
    torch.testing.assert_close(script(model)(batch), answers, rtol=0, atol=1e-6)


def test_a_binary_answer_is_the_sigmoid_of_its_logit_and_a_number_has_the_targets_unit() -> None:
    output = torch.tensor([[-1.5], [0.0], [3.0]])
    torch.testing.assert_close(answer(output, "binary", 0.0, 1.0)[:, 1], torch.sigmoid(output[:, 0]))
    assert answer(output, "regression", 50.0, 8.0).tolist() == [38.0, 50.0, 74.0]


def test_inputs_are_numbers_then_signs_and_one_hot_then_vectors() -> None:
    inputs = Inputs(INPUTS, embedding_size=2).eval()
    batch = {"numbers": torch.tensor([[0.5, -1.0, 2.0, 1.0]]).repeat(3, 1), "codes": torch.zeros(3, 4).int()}
    batch["codes"][1] = torch.tensor([1, 4, 20, 12])
    batch["codes"][2] = torch.tensor([2, 1, 1, 0])
    encoded = inputs(batch)
    assert encoded.shape == (3, inputs.width) == (3, 4 + 1 + 5 + 2 * 2)
    assert encoded[:, :4].tolist() == batch["numbers"].tolist()
    assert encoded[:, 4].tolist() == [0.0, -1.0, 1.0]
    assert encoded[:, 5:10].argmax(1).tolist() == [0, 4, 1]
    assert encoded[:, 5:10].sum(1).tolist() == [1.0, 1.0, 1.0]
    assert inputs.embedding is not None
    table = inputs.embedding.weight
    assert torch.equal(encoded[1, 10:], torch.cat([table[20], table[21 + 12]]))
    assert torch.equal(encoded[2, 10:], torch.cat([table[1], table[21]]))


def test_a_piecewise_linear_vector_starts_linear_and_its_bends_turn_at_the_edges() -> None:
    edges = [[-1.0, 0.0, 0.5, 2.0], [0.0, 1.0, 3.0]]
    layer = PiecewiseLinear(edges, 4)
    numbers = torch.tensor([[-3.0, -1.0], [-0.5, 0.5], [0.25, 1.0], [2.0, 2.0], [9.0, 30.0]])
    linear = numbers.unsqueeze(2) * layer.linear + layer.shift
    torch.testing.assert_close(layer(numbers), linear)
    bend = nn.init.normal_(layer.bend).detach()
    for column, ends in enumerate(edges):
        # At edge t the bend is the sum of the first t; between the edges, and beyond them, it goes on straight.
        at = torch.cat([torch.zeros(1, 4), bend[column, : len(ends) - 1].cumsum(0)])
        for row, x in enumerate(numbers[:, column].tolist()):
            t = min(max(bisect(ends, x) - 1, 0), len(ends) - 2)
            expected = linear[row, column] + at[t] + (at[t + 1] - at[t]) * (x - ends[t]) / (ends[t + 1] - ends[t])
            torch.testing.assert_close(layer(numbers)[row, column], expected)


def test_edges_that_are_one_in_single_precision_are_one() -> None:
    layer = PiecewiseLinear([[0.0, 1.0, 1.0 + 1e-12, 2.0], [5.0, 5.0 + 1e-12, 5.0 + 2e-12, 5.0 + 3e-12]], 2)
    nn.init.normal_(layer.bend)
    plain = PiecewiseLinear([[0.0, 1.0, 2.0], [5.0, 6.0]], 2)
    plain.load_state_dict(layer.state_dict() | {"bend": layer.bend[:, :2]})
    numbers = torch.tensor([[-1.0, 4.0], [0.5, 5.0], [1.0, 5.0], [3.0, 6.0]])
    torch.testing.assert_close(layer(numbers)[:, 0], plain(numbers)[:, 0])
    assert bool(layer(numbers).isfinite().all())


@pytest.mark.parametrize(
    "spec", [InputSpec(numbers=("a",)), InputSpec(categories=(("b", 4),)), InputSpec(categories=(("c", 40),))]
)
def test_a_table_may_have_one_kind_of_column_alone(spec: InputSpec) -> None:
    batch = {"numbers": torch.randn(6, len(spec.numbers)), "codes": torch.ones(6, len(spec.categories)).int()}
    network = MLP(spec, 1).eval()
    torch.testing.assert_close(script(network)(batch), network(batch))
    assert network(batch).shape == (6, 1)


def test_unknown_levels_are_seen_in_training_at_their_rate_and_never_after() -> None:
    torch.manual_seed(0)
    inputs = Inputs(InputSpec(categories=(("narrow", 5), ("wide", 21))), unknown_rate=0.1)
    assert inputs.embedding is not None
    nn.init.zeros_(inputs.embedding.weight[0:1])
    codes = torch.tensor([[3, 7]]).int().repeat(20_000, 1)
    encoded = inputs({"codes": codes})
    narrow, wide = encoded[:, 0], (encoded[:, 5:] == 0).all(1).float()
    for unknown in (narrow, wide):
        assert 0.09 < float(unknown.detach().mean()) < 0.11
    # Each cell by itself, not a row at a time.
    assert 0.005 < float((narrow * wide).detach().mean()) < 0.015
    encoded[:, 5:].sum().backward()
    assert inputs.embedding.weight.grad is not None
    assert inputs.embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [0, 7]
    assert inputs.eval()({"codes": codes})[:, 0].sum().item() == 0


def test_he_weights_keep_the_size_of_signals_through_relu() -> None:
    torch.manual_seed(0)
    linear = initialise(nn.Linear(400, 600), "he")
    assert float(linear.weight.detach().mean()) == pytest.approx(0, abs=1e-3)
    assert float(linear.weight.detach().std()) == pytest.approx((2 / 400) ** 0.5, rel=0.01)
    assert not linear.bias.any()
    signal = torch.randn(500, 400)
    for _ in range(20):
        signal = torch.relu(initialise(nn.Linear(400, 400), "he")(signal).detach())
    assert 0.3 < float(signal.square().mean()) < 3


def test_xavier_and_orthogonal_weights() -> None:
    torch.manual_seed(0)
    xavier = initialise(nn.Linear(400, 600), "xavier").weight.detach()
    assert float(xavier.std()) == pytest.approx((2 / 1000) ** 0.5, rel=0.01)
    orthogonal = initialise(nn.Linear(30, 20), "orthogonal").weight.detach()
    torch.testing.assert_close(orthogonal @ orthogonal.T, torch.eye(20), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_keeps_the_width_and_is_scripted(name: str) -> None:
    network = MLP(InputSpec(numbers=("a",)), 1, hidden=(4,), activation=name).eval()
    batch = {"numbers": torch.randn(5, 1)}
    torch.testing.assert_close(script(network)(batch), network(batch))


def test_a_misspelt_activation_names_the_nearest() -> None:
    message = "activation='rellu' is not an activation of torch.nn: did you mean 'relu'?"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_activation("rellu")


def test_batch_norm_is_torchs_and_takes_a_single_row() -> None:
    torch.manual_seed(0)
    ours, torchs = BatchNorm(3), nn.BatchNorm1d(3)
    for _ in range(3):
        batch = torch.randn(8, 3) * 2 + 1
        torch.testing.assert_close(ours(batch), torchs(batch))
    assert ours.running_var is not None
    assert torchs.running_var is not None
    torch.testing.assert_close(ours.running_var, torchs.running_var)
    single = torch.randn(1, 3)
    torch.testing.assert_close(ours(single), torchs.eval()(single))
