"""RealMLP: initialization from data, layers, parameter groups and learning."""

import functools
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from datamodules.schema import InputSpec, Task
from models.architectures.realmlp import NTKLinear, PartActivation, RealMLP
from models.training.parameter_groups import parameter_groups, split_parameters
from tests.conftest import ROOT
from tests.models.problems import (
    INPUTS,
    MIXED,
    build,
    check_trains_and_scripts,
    fit,
    mixed_rows,
    rows,
    script,
    start,
    target,
)
from trainer.config.instantiate import instantiate

TASKS: tuple[Task, ...] = ("regression", "binary", "multiclass")
BENT = replace(INPUTS, edges=((-2.0, 0.0, 2.0), (0.0, 1.0), (-1.0, -0.5, 0.0, 1.5)))
small = functools.partial(RealMLP, members=2, hidden=(16, 16))


def started(task: Task, spec: InputSpec = BENT, dropout: float = 0.15) -> RealMLP:
    torch.manual_seed(0)
    network = small(spec, target(task).outputs, dropout=dropout)
    start(network, rows(task, 500))
    return network


@pytest.mark.parametrize("task", TASKS)
def test_all_parameters_have_gradients_and_torchscript_agrees(task: Task) -> None:
    network, batch = started(task), rows(task, 400, seed=1)
    check_trains_and_scripts(network, batch, (400, 2, target(task).outputs))


def test_units_start_with_unit_deviation_and_zeros_inside_the_data() -> None:
    network = started("multiclass").eval()
    seen: list[torch.Tensor] = []
    for layer in network.layers:
        if isinstance(layer, NTKLinear):
            layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.detach()))
    network(rows("multiclass", 500))  # the rows of the start
    assert [tuple(values.shape) for values in seen] == [(2, 500, 16), (2, 500, 16), (2, 500, 3)]
    for values in seen:
        torch.testing.assert_close(values.std(1), torch.ones(2, values.shape[2]), rtol=0, atol=0.1)
        assert (values > 0).any(1).all()
        assert (values < 0).any(1).all()


def test_a_unit_with_constant_inputs_keeps_its_weights_and_starts_at_zero() -> None:
    torch.manual_seed(0)
    layer = NTKLinear(2, 3, 4)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.start(torch.ones(2, 10, 3))
    torch.testing.assert_close(layer.weight.detach(), before)
    torch.testing.assert_close(layer(torch.ones(2, 2, 3)).detach(), torch.zeros(2, 2, 4), rtol=0, atol=1e-6)


def test_the_scale_of_outputs_does_not_depend_on_the_width() -> None:
    torch.manual_seed(0)
    for width in (10, 1000):
        output = NTKLinear(1, width, 2000)(torch.ones(1, 1, width)).detach()
        assert float(output.std()) == pytest.approx(1, rel=0.05)


def test_members_share_only_the_encoded_columns() -> None:
    network, batch = started("binary", dropout=0.0).eval(), rows("binary", 20)
    before = network(batch).detach()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.startswith("inputs."):
                parameter[0] += 1.0
    after = network(batch).detach()
    assert torch.equal(after[:, 1], before[:, 1])
    assert not torch.isclose(after[:, 0], before[:, 0]).any()


def test_there_is_at_least_one_member() -> None:
    with pytest.raises(ValueError, match=r"^model.members=0: must be at least 1.$"):
        RealMLP(INPUTS, 1, members=0)


def test_the_share_interpolates_between_identity_and_activation() -> None:
    part, x = PartActivation("relu", 1, 3), torch.tensor([[[-1.0, -1.0, -1.0]]])
    part.share.data = torch.tensor([[[0.0, 0.25, 1.0]]])
    assert part(x).tolist() == [[[-1.0, -0.75, 0.0]]]


@pytest.mark.parametrize("spec", [BENT, INPUTS], ids=["numbers", "no edges"])
def test_the_recipe_has_matching_groups_and_scales_have_no_weight_decay(spec: InputSpec) -> None:
    network = started("binary", spec)
    weights = {id(weight) for weight in split_parameters(network)[0]}
    decayed = {name for name, weight in network.named_parameters() if id(weight) in weights}
    assert decayed == {"layers.0.weight", "layers.3.weight", "layers.6.weight"}
    recipe = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "experiment" / "realmlp.yaml").param_groups)
    groups = parameter_groups(network, functools.partial(torch.optim.AdamW, lr=1.0), recipe)
    named = {id(weight): name for name, weight in network.named_parameters()}
    rates = {named[id(weight)]: group.get("lr", 1.0) for group in groups for weight in group["params"]}
    assert rates["scale.factor"] == 6.0
    assert {name for name, rate in rates.items() if rate == 0.1} == {
        *(f"layers.{index}.bias" for index in (0, 3, 6)),
        *(f"layers.{index}.share" for index in (1, 4)),
        *(f"inputs.bent.{name}" for name in ("linear", "shift", "bend") if spec is BENT),
    }


def test_text_and_image_columns_are_supported() -> None:
    network = small(MIXED, 2)
    start(network, mixed_rows(20))
    network.eval()
    torch.testing.assert_close(script(network)(mixed_rows(6)), network(mixed_rows(6)))


def test_the_config_equals_the_defaults_of_the_code() -> None:
    shipped = instantiate(OmegaConf.load(ROOT / "conf" / "model" / "realmlp.yaml"), spec=INPUTS, outputs=2)
    assert str(shipped) == str(RealMLP(INPUTS, 2))


@pytest.mark.parametrize(("task", "metric", "least"), [("regression", "r2", 0.97), ("binary", "accuracy", 0.85)])
def test_a_known_function_is_learned(task: Task, metric: str, least: float) -> None:
    module = build(task, network=started(task, dropout=0.0))
    trainer = fit(module, rows(task, 1024), epochs=10)
    assert float(trainer.callback_metrics[f"val/{metric}"]) > least


def test_golden_loss() -> None:
    trainer = fit(build("binary", network=started("binary")), rows("binary", 256), epochs=3)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(0.55028, abs=1e-4)
