"""What is said of a loss that is no longer finite: the columns, the parameters, the module, and what to do."""

import math

import pytest
import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec
from models import losses
from models.augment import mixed_loss
from models.diverged import RunningMean, diagnose
from models.linear import Linear
from models.mlp import MLP
from tests.models.problems import INPUTS, MIXED, mixed_rows, rows, target

Batch = dict[str, Tensor]
ADVICE = "Lower optimizer.lr, or set trainer.gradient_clip_val=1."
EXTREME = (
    " For extreme numbers take data.numbers=quantile or robust, or set such rows aside by data.ranges, or leave a column"
    " out by data.columns={NAME: drop}."
)


def make_network() -> MLP:
    torch.manual_seed(0)
    return MLP(INPUTS, 1, hidden=(8, 8), dropout=0.5)


def said(
    network: nn.Module, batch: Batch, *, spec: InputSpec | None = INPUTS, loss: nn.Module | None = None
) -> dict[str, str]:
    """The diagnosis by the word that a line begins with; what is to be done under ""."""
    criterion = loss or losses.auto(target("regression" if batch["target"].is_floating_point() else "binary"))
    parameters = list(network.parameters())
    groups = {
        "* (weights)": [each for each in parameters if each.ndim > 1],
        "* (others)": [each for each in parameters if each.ndim < 2],
    }
    text = diagnose(network, lambda output, batch: mixed_loss(criterion, output, batch), batch, spec, groups)
    *parts, advice = text.split("\n")
    return dict(part.strip().split(": ", 1) for part in parts) | {"": advice}


def test_a_value_that_is_not_finite_names_its_column_and_the_first_module() -> None:
    batch = rows("binary", 32)
    batch["numbers"][5, 1] = math.nan
    batch["numbers"][6, 3] = math.inf
    found = said(make_network(), batch)
    assert found["columns"] == "not finite in this batch: b (nan), b (missing) (inf)"
    assert found["parameters"].startswith('all finite; the largest weight is in inputs.embedding.weight in group "* (w')
    assert found["network"] == "the first output that is not finite is that of inputs (Inputs)"
    assert found[""] == ADVICE + EXTREME
    assert (
        said(make_network(), batch, spec=None)["columns"] == "not finite in this batch: number 1 (nan), number 3 (inf)"
    )


def test_of_extreme_values_those_are_named_without_which_the_loss_is_finite() -> None:
    batch = rows("regression", 32)
    batch["numbers"][5, 1] = -3e25  # its square is no float32
    batch["numbers"][9, 2] = 4e25
    batch["numbers"][9, 0] = 2e6  # harmless
    found = said(make_network(), batch)
    assert found["columns"] == "without b (-3e+25), c (4e+25) the loss of this batch is finite"
    assert found["network"].startswith("its output is finite, up to ")
    assert found["network"].endswith(", but not the loss of it")
    assert found[""] == ADVICE + EXTREME


def test_a_category_whose_vector_is_broken_is_named() -> None:
    network = make_network().eval()
    batch = rows("binary", 32)
    with torch.no_grad():
        network.get_parameter("inputs.embedding.weight")[batch["codes"][3, 2]] = math.inf
    found = said(network, batch)
    assert found["columns"] == "without wide the loss of this batch is finite"
    assert found["parameters"] == 'not finite: inputs.embedding.weight in group "* (weights)"'
    assert found[""] == ADVICE


def test_a_text_or_an_image_is_named() -> None:
    network = MLP(MIXED, 1, hidden=()).eval()
    batch = mixed_rows(16)
    with torch.no_grad():
        network.get_parameter("inputs.texts.0.embedding.weight")[1:] *= 1e38
        network.get_parameter("layers.0.weight")[:, 1:65] = 1e10
    assert said(network, batch, spec=MIXED)["columns"] == "without title the loss of this batch is finite"
    nn.init.zeros_(network.get_parameter("inputs.texts.0.embedding.weight"))
    network.get_submodule("inputs.images.0").get_buffer("deviation").fill_(1e-39)
    network.get_submodule("inputs.images.0").get_buffer("mean").fill_(0)
    assert said(network, batch, spec=MIXED)["columns"] == "without photo the loss of this batch is finite"


def test_weights_that_are_not_finite_are_named_by_group_and_the_most_extreme_columns_with_them() -> None:
    network = make_network()
    batch = rows("binary", 32)
    with torch.no_grad():
        for name in ("layers.0.weight", "layers.3.weight", "layers.3.bias"):
            network.get_parameter(name)[0] = math.nan
    found = said(network, batch)
    extreme = [(abs(float(value)), f"{name} ({value:.3g})") for name, value in _extremes(batch)]
    assert found["columns"] == (
        f"none is to blame alone; the most extreme, as encoded: {', '.join(text for _, text in sorted(extreme)[:0:-1])}"
    )
    assert found["parameters"] == (
        'not finite: layers.0.weight, layers.3.weight in group "* (weights)"; layers.3.bias in group "* (others)"'
    )
    assert found["network"] == "the first output that is not finite is that of layers.0 (Linear)"
    assert found[""] == ADVICE


def _extremes(batch: Batch) -> list[tuple[str, float]]:
    names = ["a", "b", "c", "b (missing)"]
    return [(name, max(batch["numbers"][:, place].tolist(), key=abs)) for place, name in enumerate(names)]


def test_gradients_that_are_not_finite_and_the_largest_are_named() -> None:
    network = make_network()
    batch = rows("binary", 32)
    losses.auto(target("binary"))(network(batch), batch["target"]).backward()
    network.get_parameter("layers.0.bias").data[2] = 1e6
    gradient = network.get_parameter("layers.6.weight").grad
    assert gradient is not None
    gradient[0, 0] = -1e9
    assert said(network, batch)["parameters"] == (
        'all finite; the largest weight is in layers.0.bias in group "* (others)", up to 1e+06; the largest gradient of'
        ' the last step in layers.6.weight in group "* (weights)", up to 1e+09'
    )
    gradient[0, 0] = math.inf
    assert said(network, batch)["parameters"] == (
        'all finite, but not the gradients of the last step: layers.6.weight in group "* (weights)"'
    )


class Root(nn.Module):
    """A network that itself, and no part of it, gives what is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, batch: Batch) -> Tensor:
        output: Tensor = self.layer(batch["numbers"])
        return (-output.square() - 1).sqrt()


def test_a_network_and_a_loss_that_turn_nan_by_themselves_are_told_apart() -> None:
    assert said(Root(), rows("binary", 8))["network"] == "the first output that is not finite is its own (Root)"

    class Loss(nn.Module):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return (output.square() + 1).neg().log().mean()

    found = said(Linear(INPUTS, 1), rows("binary", 8), loss=Loss())
    assert found["network"] == "its output is finite, up to 0, but not the loss of it"


def test_a_loss_that_is_finite_in_float32_says_so() -> None:
    network = Linear(InputSpec(numbers=("a",)), 1)
    nn.init.constant_(network.get_parameter("layer.weight"), 300.0)
    batch = {"numbers": torch.full((2, 1), 300.0), "target": torch.zeros(2)}
    with torch.autocast("cpu", torch.float16):
        found = said(network, batch, spec=InputSpec(numbers=("a",)))
    assert found["columns"] == "without a (300) the loss of this batch is finite"
    assert found[""] == ADVICE + EXTREME + " In float32 the loss of this batch is finite: trainer.precision=32-true."


def test_a_loss_that_is_finite_when_computed_again_blames_nothing() -> None:
    found = said(make_network(), rows("binary", 8))
    assert found["columns"].startswith("none is to blame alone; the most extreme, as encoded: ")
    assert found["network"] == "computed again, its output and the loss of it are finite"


def test_the_random_state_and_the_network_are_left_as_they_were() -> None:
    network = make_network()
    state = torch.get_rng_state()
    said(network, rows("binary", 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())


def test_a_mean_keeps_its_losses_until_it_is_looked_at() -> None:
    mean = RunningMean()
    mean.add(torch.tensor(1.0), 3)
    mean.add(torch.tensor(math.nan), 1)
    assert mean.look() == pytest.approx([1.0, math.nan], nan_ok=True)
    assert mean.look() == []
    mean.reset()
    mean.add(torch.tensor(1.0), 3)
    mean.add(torch.tensor(5.0), 1)
    assert mean.look() == [1.0, 5.0]
    assert mean.value() == 2.0
