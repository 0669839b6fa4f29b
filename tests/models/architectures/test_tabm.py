"""TabM: differences between members, averaging, losses, and selection of members."""

import functools
from typing import Literal

import pytest
import torch
from omegaconf import OmegaConf

from datamodules.schema import Task
from models.architectures.tabm import TabM
from models.layers.tabular_embedding import TabularEmbedding
from models.training import losses
from models.training.members import choose_members
from models.training.prediction_head import PredictionHead, combine
from tests.conftest import ROOT
from tests.models.problems import INPUTS, MIXED, build, check_trains_and_scripts, fit, mixed_rows, rows, script, target
from trainer.config.instantiate import instantiate

TASKS: tuple[Task, ...] = ("regression", "binary", "multiclass")
VARIANTS: tuple[Literal["mini", "full"], ...] = ("mini", "full")
small = functools.partial(TabM, INPUTS, members=4, hidden=(8, 8))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("task", TASKS)
def test_all_parameters_have_gradients_and_torchscript_agrees(task: Task, variant: Literal["mini", "full"]) -> None:
    torch.manual_seed(0)
    spec, batch = target(task), rows(task, 40)
    network = small(outputs=spec.outputs, variant=variant)
    check_trains_and_scripts(network, batch, (40, 4, spec.outputs))
    output, answers = network(batch), PredictionHead(spec)
    torch.testing.assert_close(script(answers)(output), answers(output), rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_members_differ_initially_with_one_scale_per_column(variant: Literal["mini", "full"]) -> None:
    torch.manual_seed(0)
    network = small(outputs=1, variant=variant).eval()
    views = network.views if variant == "mini" else network.layers[0].before
    narrow = network.inputs.sizes.index(5)  # a category of five levels, one-hot
    first = sum(network.inputs.sizes[:narrow])
    block = views.scale[:, first : first + 5]
    assert torch.equal(block, block[:, :1].expand(4, 5))
    assert views.scale.abs().eq(1).all()  # without embedded numbers the factors are signs
    hidden = network.layers(network.views(network.inputs(rows("binary", 8)).unsqueeze(1)))
    assert (hidden[:, 0] != hidden[:, 1]).any()


def test_the_prediction_is_the_mean_of_the_members_probabilities() -> None:
    output = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0)) * 4
    answers = PredictionHead(target("multiclass"))(output)
    torch.testing.assert_close(answers, torch.softmax(output, 2).mean(1))
    binary = PredictionHead(target("binary"))(output[:, :, :1])
    torch.testing.assert_close(binary[:, 1], torch.sigmoid(output[:, :, 0]).mean(1))
    values = PredictionHead(target("regression"))(output[:, :, :1])
    torch.testing.assert_close(values, output[:, :, 0].mean(1) * 8 + 50)


def test_the_training_loss_is_the_mean_of_the_members_losses() -> None:
    module = build(
        "multiclass",
        network=small(outputs=3, dropout=0.0, inputs=functools.partial(TabularEmbedding, unknown_rate=0.0)),
    )
    batch = rows("multiclass", 20)
    output = module(batch)
    each = torch.stack([module.loss(output[:, member], batch["target"]) for member in range(4)])
    torch.testing.assert_close(module.training_step(batch, 0), each.mean())
    assert each.mean() > module.loss(combine(output, "multiclass"), batch["target"])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_selected_members_keep_their_outputs(task: Task, variant: Literal["mini", "full"]) -> None:
    torch.manual_seed(0)
    spec, batch = target(task), rows(task, 50)
    network = small(outputs=spec.outputs, variant=variant).eval()
    output = network(batch)
    chosen = choose_members(output, batch["target"], losses.auto(spec), task, 2)
    network.select(chosen)
    torch.testing.assert_close(network(batch), output[:, chosen])


def test_members_are_chosen_greedily_by_the_loss_of_their_mean() -> None:
    truth = torch.zeros(3)
    output = torch.tensor([[3.0, 1.0, -2.5, -0.9]]).expand(3, 4).unsqueeze(2)
    spec = target("regression")
    assert choose_members(output, truth, losses.MSE(spec), "regression", 1) == [3]
    assert choose_members(output, truth, losses.MSE(spec), "regression", 2) == [1, 3]
    assert choose_members(output, truth, losses.MSE(spec), "regression", 4) == [0, 1, 2, 3]


def test_keep_must_not_exceed_members() -> None:
    with pytest.raises(ValueError, match=r"^model.keep=5: must be from 1 to the 4 of model.members, or null.$"):
        small(outputs=1, keep=5)


def test_text_and_image_columns_are_supported() -> None:
    network = TabM(MIXED, 2, members=3, hidden=(8,)).eval()
    torch.testing.assert_close(script(network)(mixed_rows(6)), network(mixed_rows(6)))


def test_the_config_equals_the_defaults_of_the_code() -> None:
    shipped = instantiate(OmegaConf.load(ROOT / "conf" / "model" / "tabm.yaml"), spec=INPUTS, outputs=2)
    assert str(shipped) == str(TabM(INPUTS, 2))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("task", "metric", "least"), [("regression", "r2", 0.9), ("binary", "accuracy", 0.85)])
def test_a_known_function_is_learned(task: Task, metric: str, least: float, variant: Literal["mini", "full"]) -> None:
    torch.manual_seed(0)
    module = build(task, network=TabM(INPUTS, 1, members=8, hidden=(32, 32), variant=variant))
    trainer = fit(module, rows(task, 1024), epochs=10)
    assert float(trainer.callback_metrics[f"val/{metric}"]) > least


def test_golden_loss() -> None:
    torch.manual_seed(0)
    module = build("binary", network=small(outputs=1))
    trainer = fit(module, rows("binary", 256), epochs=3)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(0.58857, abs=1e-4)
