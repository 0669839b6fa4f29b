"""Data-dependent initialization: unit variance of hidden layers, and no other changes."""

import pytest
import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec
from models.architectures.fusion import Fusion
from models.architectures.mlp import MLP
from models.layers.common import Norm
from tests.models.problems import INPUTS, rows, script, start


@pytest.mark.parametrize("kind", [MLP, Fusion])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_each_hidden_layer_has_unit_variance(kind: type[MLP] | type[Fusion], norm: Norm) -> None:
    torch.manual_seed(0)
    network = kind(INPUTS, 3, hidden=(50, 40, 30), activation="tanh", norm=norm, init="data", dropout=0.5)
    batch = rows("multiclass", 500)
    batch["numbers"] *= 20
    state = {name: values.clone() for name, values in network.state_dict().items()}
    random = torch.get_rng_state()
    start(network, batch)
    assert torch.equal(torch.get_rng_state(), random)
    names = [f"layers.{index}.weight" for index, layer in enumerate(network.layers) if isinstance(layer, nn.Linear)]
    changed = [name for name, values in network.state_dict().items() if not torch.equal(values, state[name])]
    assert changed == names[:-1]

    network.eval()
    torch.testing.assert_close(script(network)(batch), network(batch))
    given: list[Tensor] = []
    for layer in network.layers:
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda layer, arguments, output: given.append(output))
    network(batch)
    assert [float(output.detach().std(correction=0)) for output in given[:-1]] == pytest.approx([1.0] * 3, abs=1e-4)


def test_a_network_compiled_before_its_start_has_the_same_outputs() -> None:
    torch.manual_seed(0)
    network, batch = MLP(INPUTS, 1, init="data"), rows("binary", 50)
    network.compile(backend="eager")
    start(network, batch)
    with torch.no_grad():
        network.eval()
        others = rows("binary", 50, seed=1)
        torch.testing.assert_close(network(others), network.forward(others))


def test_constant_rows_do_not_change_weights() -> None:
    network = MLP(InputSpec(numbers=("a",)), 1, hidden=(1,), init="data")
    weight = network.layers[0].weight.detach().clone()
    start(network, {"numbers": torch.ones(20, 1)})
    start(network, {"numbers": torch.ones(1, 1)})
    assert torch.equal(network.layers[0].weight, weight)


def test_other_initializations_are_not_scaled() -> None:
    network = MLP(INPUTS, 1)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    start(network, rows("binary", 50))
    assert all(torch.equal(new, old) for new, old in zip(network.parameters(), before, strict=True))


def test_an_unknown_init_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^init='zero': choose he, xavier, orthogonal or data\.$"):
        MLP(INPUTS, 1, init="zero")
