"""Networks: shapes, TorchScript, defaults, fusion, initialization, activations and batch norm."""

import functools
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from datamodules.schema import InputSpec, TargetSpec, Task
from models.architectures.fusion import Fusion
from models.architectures.linear import Linear
from models.architectures.mlp import MLP
from models.layers.common import ACTIVATIONS, BatchNorm, initialize, make_activation
from models.layers.tabular_embedding import TabularEmbedding
from models.training.prediction_head import PredictionHead
from tests.conftest import ROOT
from tests.models.problems import ADAMW, INPUTS, MIXED, mixed_rows, rows, script, target
from trainer.config.instantiate import instantiate

PERIODIC = functools.partial(TabularEmbedding, number_embedding="pbld", number_size=4)
EDGES = ((-2.0, 0.0, 2.0), (0.0, 1.0), (-1.0, -0.5, 0.0, 1.5))
NETWORKS: dict[str, Callable[[InputSpec, int], nn.Module]] = {
    "linear": Linear,
    "mlp": MLP,
    "fusion": Fusion,
    "batch norm": lambda inputs, outputs: MLP(inputs, outputs, norm="batch", activation="silu", init="xavier"),
    "layer norm": lambda inputs, outputs: MLP(inputs, outputs, norm="layer", init="orthogonal", hidden=(8,)),
    "piecewise linear": lambda inputs, outputs: MLP(replace(inputs, edges=EDGES), outputs),
    "periodic": lambda inputs, outputs: MLP(replace(inputs, edges=EDGES), outputs, inputs=PERIODIC),
}
TASKS: tuple[Task, ...] = ("regression", "binary", "multiclass")


class Predictor(nn.Module):
    def __init__(self, network: nn.Module, target: TargetSpec) -> None:
        super().__init__()
        self.network = network
        self.answer = PredictionHead(target)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.answer(self.network(batch))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NETWORKS)
def test_predictions_have_the_shape_of_the_task_and_torchscript_agrees(name: str, task: Task) -> None:
    torch.manual_seed(0)
    spec, batch = target(task), rows(task, 20)
    model = Predictor(NETWORKS[name](INPUTS, spec.outputs), spec).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # zero weights would hide differences
    answers = model(batch)
    if task == "regression":
        assert answers.shape == (20,)
    else:
        assert answers.shape == (20, len(spec.classes))
        torch.testing.assert_close(answers.sum(1), torch.ones(20))
    torch.testing.assert_close(script(model)(batch), answers, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "mlp", "fusion"])
def test_the_config_equals_the_defaults_of_the_code(name: str) -> None:
    torch.manual_seed(0)
    shipped = instantiate(OmegaConf.load(ROOT / "conf" / "model" / f"{name}.yaml"), spec=MIXED, outputs=2)
    torch.manual_seed(0)
    plain = NETWORKS[name](MIXED, 2)
    assert str(shipped) == str(plain)
    for key, values in plain.state_dict().items():
        torch.testing.assert_close(shipped.state_dict()[key], values)


def test_binary_predictions_are_sigmoids_and_numbers_are_in_target_units() -> None:
    output = torch.tensor([[-1.5], [0.0], [3.0]])
    torch.testing.assert_close(PredictionHead(target("binary"))(output)[:, 1], torch.sigmoid(output[:, 0]))
    assert PredictionHead(TargetSpec("y", "regression", mean=50.0, scale=8.0))(output).tolist() == [38.0, 50.0, 74.0]


@pytest.mark.parametrize(
    "spec", [InputSpec(numbers=("a",)), InputSpec(categories=(("b", 4),)), InputSpec(categories=(("c", 40),))]
)
def test_a_single_kind_of_column_is_supported(spec: InputSpec) -> None:
    batch = {"numbers": torch.randn(6, len(spec.numbers)), "codes": torch.ones(6, len(spec.categories)).int()}
    network = MLP(spec, 1).eval()
    torch.testing.assert_close(script(network)(batch), network(batch))
    assert network(batch).shape == (6, 1)


def test_fusion_learns_from_number_text_and_image_together() -> None:
    torch.manual_seed(0)
    network = Fusion(MIXED, 1, hidden=(32,), channels=4)
    train, test = mixed_rows(512), mixed_rows(512, seed=1)
    optimizer = ADAMW(network.parameters())
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(network(train)[:, 0], train["target"].float()).backward()
        optimizer.step()
    network.eval()

    def accuracy(batch: dict[str, Tensor]) -> float:
        return float(((network(batch)[:, 0] > 0) == (test["target"] == 1)).float().mean())

    assert accuracy(test) > 0.88
    other = mixed_rows(512, seed=2)
    for names in (["numbers"], ["tokens.title", "offsets.title"], ["images.photo"]):
        assert accuracy(test | {name: other[name] for name in names}) < 0.8, names
    torch.testing.assert_close(script(network)(test), network(test))


def test_fusion_supports_image_columns_only() -> None:
    network = Fusion(InputSpec(images=MIXED.images), 3).eval()
    batch = mixed_rows(4)
    assert network(batch).shape == (4, 3)
    torch.testing.assert_close(script(network)(batch), network(batch))


def test_he_initialization_preserves_variance_through_relu() -> None:
    torch.manual_seed(0)
    linear = initialize(nn.Linear(400, 600), "he")
    assert float(linear.weight.detach().mean()) == pytest.approx(0, abs=1e-3)
    assert float(linear.weight.detach().std()) == pytest.approx((2 / 400) ** 0.5, rel=0.01)
    assert not linear.bias.any()
    signal = torch.randn(500, 400)
    for _ in range(20):
        signal = torch.relu(initialize(nn.Linear(400, 400), "he")(signal).detach())
    assert 0.3 < float(signal.square().mean()) < 3


def test_xavier_and_orthogonal_initialization() -> None:
    torch.manual_seed(0)
    xavier = initialize(nn.Linear(400, 600), "xavier").weight.detach()
    assert float(xavier.std()) == pytest.approx((2 / 1000) ** 0.5, rel=0.01)
    orthogonal = initialize(nn.Linear(30, 20), "orthogonal").weight.detach()
    torch.testing.assert_close(orthogonal @ orthogonal.T, torch.eye(20), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_keeps_the_width_and_can_be_scripted(name: str) -> None:
    network = MLP(InputSpec(numbers=("a",)), 1, hidden=(4,), activation=name).eval()
    batch = {"numbers": torch.randn(5, 1)}
    torch.testing.assert_close(script(network)(batch), network(batch))


def test_a_misspelled_activation_has_a_suggestion() -> None:
    message = "activation='rellu' is not an activation of torch.nn: did you mean 'relu'?"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_activation("rellu")


def test_batch_norm_equals_that_of_torch_and_supports_a_single_row() -> None:
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
