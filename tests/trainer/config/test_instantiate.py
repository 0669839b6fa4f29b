"""Objects built from the settings: errors of constructors, and a monitor that does not exist for the target."""

import pytest
from omegaconf import OmegaConf

from datamodules.schema import InputSpec, TargetSpec
from trainer.config.errors import ConfigError
from trainer.config.instantiate import check_monitor, instantiate

TARGET = TargetSpec("y", "binary", ("no", "yes"), (3, 3))


def test_a_monitor_that_is_not_logged_for_this_target_is_rejected() -> None:
    check_monitor("val/f1/yes", TARGET)
    check_monitor("val/rmse", TargetSpec("y", "regression"))
    with pytest.raises(ConfigError) as caught:
        check_monitor("val/rmse", TARGET)
    assert str(caught.value) == (
        "monitor: 'val/rmse' is not logged for the target 'y' (binary). Did you mean val/loss? It may be train/loss,"
        " val/loss, val/accuracy, val/balanced_accuracy, val/f1, val/auroc, val/average_precision, val/log_loss,"
        " val/calibrated_log_loss, val/calibration_error, val/f1/no, val/f1/yes."
    )


def test_instantiate_passes_plain_containers_and_omits_null_nodes() -> None:
    config = OmegaConf.create(
        {
            "model": {"_target_": "models.architectures.mlp.MLP", "hidden": [4, 4]},
            "counters": {"one": {"_target_": "collections.OrderedDict", "a": {"b": [1]}}, "none": None},
            "empty": {},
        }
    )
    network = instantiate(config.model, spec=InputSpec(numbers=("a", "b")), outputs=1)
    assert [layer.out_features for layer in network.layers if hasattr(layer, "out_features")] == [4, 4, 1]
    counters = instantiate(config.counters)
    assert counters == {"one": {"a": {"b": [1]}}}
    assert type(counters["one"]["a"]["b"]) is list
    assert instantiate(config.empty) is None
    assert instantiate(None) is None


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "val/loss", "mode": "mix"},
            "callbacks.own: `mode` can be min, max, got mix",
        ),
        (
            {"_target_": "trainer.loop.trainer.Trainer", "threads": 0},
            "callbacks.own: trainer.threads=0: must be at least 1, or auto",
        ),
        (
            {"_target_": "torch.optim.SGD", "_partial_": True, "lr": -1},
            "callbacks.own: Invalid learning rate: -1",
        ),
    ],
)
def test_an_error_of_a_constructor_is_reported_with_the_key(node: dict[str, object], message: str) -> None:
    import torch

    config = OmegaConf.create({"callbacks": {"own": node}})
    with pytest.raises(ConfigError) as caught:
        instantiate(config.callbacks)["own"]([torch.zeros(1, requires_grad=True)])
    assert str(caught.value) == message
