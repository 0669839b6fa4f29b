"""ResNet for tables: TorchScript, residual blocks and learning."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from datamodules.schema import InputSpec, Task
from models.architectures.resnet import Block, ResNet
from tests.conftest import ROOT
from tests.models.problems import INPUTS, MIXED, build, check_trains_and_scripts, fit, mixed_rows, rows, script, target
from trainer.config.instantiate import instantiate


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_all_parameters_have_gradients_and_torchscript_agrees(task: Task) -> None:
    torch.manual_seed(0)
    outputs = target(task).outputs
    network, batch = ResNet(INPUTS, outputs, size=12, hidden=20, residual_dropout=0.1), rows(task, 40)
    check_trains_and_scripts(network, batch, (40, outputs))


def test_a_block_is_residual() -> None:
    block, x = Block(6, 10, 0.0, 0.0), torch.randn(5, 6)
    nn.init.zeros_(block.layers[4].weight)
    nn.init.zeros_(block.layers[4].bias)
    assert torch.equal(block(x), x)


def test_text_and_image_columns_are_supported() -> None:
    network = ResNet(MIXED, 2, size=8, hidden=8).eval()
    torch.testing.assert_close(script(network)(mixed_rows(6)), network(mixed_rows(6)))


def test_training_on_a_single_row() -> None:
    network = ResNet(InputSpec(numbers=("a",)), 1)
    assert network({"numbers": torch.ones(1, 1)}).isfinite().all()


def test_the_config_equals_the_defaults_of_the_code() -> None:
    shipped = instantiate(OmegaConf.load(ROOT / "conf" / "model" / "resnet.yaml"), spec=INPUTS, outputs=2)
    assert str(shipped) == str(ResNet(INPUTS, 2))


@pytest.mark.parametrize(("task", "metric", "least"), [("regression", "r2", 0.9), ("binary", "accuracy", 0.85)])
def test_a_known_function_is_learned(task: Task, metric: str, least: float) -> None:
    torch.manual_seed(0)
    module = build(task, network=ResNet(INPUTS, 1, size=32, hidden=64, dropout=0.1))
    trainer = fit(module, rows(task, 1024), epochs=12)
    assert float(trainer.callback_metrics[f"val/{metric}"]) > least


def test_golden_loss() -> None:
    torch.manual_seed(0)
    module = build("binary", network=ResNet(INPUTS, 1, size=16, hidden=16))
    trainer = fit(module, rows("binary", 256), epochs=3)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(0.44165, rel=1e-3)
