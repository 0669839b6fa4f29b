"""Parameters without weight decay, and learning rates by patterns of names."""

import functools

import pytest
import torch
from torch import nn

from common.errors import InputError
from models.architectures.mlp import MLP
from models.architectures.tabm import TabM
from models.training.parameter_groups import parameter_groups, split_parameters
from tests.models.problems import INPUTS

ADAMW = functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)


def by_name(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, float]]:
    """Learning rate and weight decay of each trainable parameter."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {
        names[id(parameter)]: {"lr": group["lr"], "weight_decay": group.get("weight_decay", 0.0)}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_biases_norms_embeddings_and_member_scales_have_no_weight_decay() -> None:
    network = MLP(INPUTS, 1, hidden=(4,), norm="layer")
    weights, others = split_parameters(network)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert [names[id(weight)] for weight in weights] == ["layers.0.weight", "layers.4.weight"]
    assert len(weights) + len(others) == len(names)
    tabm = TabM(INPUTS, 1, members=2, hidden=(4,), variant="full")
    kept = {id(weight) for weight in split_parameters(tabm)[0]}
    assert [name for name, each in tabm.named_parameters() if id(each) in kept] == [
        "layers.0.linear.weight",
        "heads.weight",
    ]


def test_the_last_matching_pattern_multiplies_learning_rate_and_decay() -> None:
    network = MLP(INPUTS, 1, hidden=(4,))
    patterns = {"layers.*": {"lr": 10.0}, "layers.3.*": {"lr": 0.5, "weight_decay": 2.0}}
    found = by_name(network, ADAMW(parameter_groups(network, ADAMW, patterns)))
    assert found == {
        "inputs.embedding.weight": {"lr": 0.01, "weight_decay": 0.0},
        "layers.0.weight": {"lr": 0.1, "weight_decay": 0.1},
        "layers.0.bias": {"lr": 0.1, "weight_decay": 0.0},
        "layers.3.weight": {"lr": 0.005, "weight_decay": 0.2},
        "layers.3.bias": {"lr": 0.005, "weight_decay": 0.0},
    }


def test_one_of_several_alternatives_must_match() -> None:
    network = MLP(INPUTS, 1, hidden=(4,))
    found = by_name(network, ADAMW(parameter_groups(network, ADAMW, {"inputs.bent.*|*.bias": {"lr": 0.1}})))
    assert {name for name, settings in found.items() if settings["lr"] != 0.01} == {"layers.0.bias", "layers.3.bias"}
    with pytest.raises(
        InputError, match=r"^param_groups: no parameter matches 'inputs.bent.\*\|\*.factor'; parameters: "
    ):
        parameter_groups(network, ADAMW, {"inputs.bent.*|*.factor": {"lr": 0.1}})


def test_frozen_parameters_are_not_trained() -> None:
    network = MLP(INPUTS, 1, hidden=(4,))
    network.inputs.requires_grad_(False)
    found = by_name(network, ADAMW(parameter_groups(network, ADAMW, {"inputs.*": {"lr": 0.1}})))
    assert list(found) == ["layers.0.weight", "layers.3.weight", "layers.0.bias", "layers.3.bias"]


def test_a_pattern_that_matches_nothing_and_an_unknown_factor_are_refused() -> None:
    network = nn.Linear(2, 1)
    with pytest.raises(InputError, match=r"^param_groups: no parameter matches 'head.\*'; parameters: weight, bias.$"):
        parameter_groups(network, ADAMW, {"head.*": {"lr": 2.0}})
    whole = "^param_groups: rate: only lr and weight_decay have factors, if the optimizer has them.$"
    with pytest.raises(InputError, match=whole):
        parameter_groups(network, ADAMW, {"*": {"rate": 2.0}})
    rprop = functools.partial(torch.optim.Rprop, lr=0.01)
    with pytest.raises(InputError, match=r"^param_groups: weight_decay: "):
        parameter_groups(network, rprop, {"*": {"weight_decay": 2.0}})
    assert by_name(network, rprop(parameter_groups(network, rprop, {}))).keys() == {"weight", "bias"}
