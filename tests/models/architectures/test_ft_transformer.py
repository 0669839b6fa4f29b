"""FT-Transformer: tokens, blocks compared with their formulas, TorchScript, weight decay, learning."""

import math
import re

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.schema import InputSpec, Task
from models.architectures import ft_transformer
from models.architectures.ft_transformer import Block, FTTransformer, Tokens
from models.training.parameter_groups import split_parameters
from tests.conftest import ROOT
from tests.models.problems import INPUTS, MIXED, build, check_trains_and_scripts, fit, mixed_rows, rows, script, target
from trainer.config.instantiate import instantiate

TEXT = InputSpec(numbers=MIXED.numbers, texts=MIXED.texts)


def small(spec: InputSpec, outputs: int, size: int = 16, **settings: float) -> FTTransformer:
    settings = {"blocks": 2, "heads": 4, "hidden": 20} | settings
    return FTTransformer(spec, outputs, inputs=lambda spec: Tokens(spec, size=size), **settings)


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_all_parameters_have_gradients_and_torchscript_agrees(task: Task) -> None:
    torch.manual_seed(0)
    outputs = target(task).outputs
    network, batch = small(INPUTS, outputs), rows(task, 40)
    check_trains_and_scripts(network, batch, (40, outputs))


def test_tokens_are_numbers_indicators_categories_and_texts() -> None:
    tokens, batch = Tokens(INPUTS, size=3).eval(), rows("binary", 10)
    assert tokens.scale is not None
    assert tokens.levels is not None
    given = tokens(batch)
    assert given.shape == (10, 3 + 1 + 4, 3)
    for column in range(4):
        expected = batch["numbers"][:, [column]] * tokens.scale[column] + tokens.shift[column]
        torch.testing.assert_close(given[:, column], expected)
    start = 0
    for column, (_, levels) in enumerate(INPUTS.categories):
        expected = tokens.levels[start + batch["codes"][:, column]] + tokens.shift[4 + column]
        torch.testing.assert_close(given[:, 4 + column], expected)
        start += levels
    assert len(tokens.levels) == start

    tokens, batch = Tokens(TEXT, size=3).eval(), mixed_rows(10)
    given = tokens(batch)
    assert given.shape == (10, 2, 3)
    text = tokens.texts[0]
    torch.testing.assert_close(given[:, 1], text.linear(text.bag(batch)))
    assert float(given[:, 1].detach().std(0).min()) > 0


def test_codes_become_unknown_only_in_training_at_the_given_rate() -> None:
    torch.manual_seed(0)
    tokens = Tokens(InputSpec(categories=(("narrow", 5), ("wide", 21))), size=1, unknown_rate=0.1)
    codes = torch.tensor([[3, 7]]).int().repeat(20_000, 1)
    known = tokens.eval()({"codes": codes})
    changed = (tokens.train()({"codes": codes}) != known).float()
    assert known.std(0).max() == 0
    assert changed.mean(0).flatten().tolist() == pytest.approx([0.1, 0.1], abs=0.01)


def test_blocks_are_attention_and_reglu_and_return_the_first_token() -> None:
    torch.manual_seed(0)
    x, heads = torch.randn(5, 7, 12), 3
    blocks = [Block(12, heads, 10, 0.3, 0.3, first=index == 0, last=index == 1).eval() for index in range(2)]
    for parameter in (parameter for block in blocks for parameter in block.parameters()):
        nn.init.normal_(parameter, std=0.5)
    given = blocks[1](blocks[0](x))
    assert given.shape == (5, 1, 12)
    for index, block in enumerate(blocks):
        normed = x if index == 0 else F.layer_norm(x, [12], block.attention_norm.weight, block.attention_norm.bias)
        query, (key, value) = block.query(normed), block.key_value(normed).chunk(2, 2)
        attended = []
        for head in range(heads):
            part = slice(4 * head, 4 * head + 4)
            weights = torch.softmax(query[..., part] @ key[..., part].mT / math.sqrt(4), 2)
            attended.append(weights @ value[..., part])
        x = x + block.attention_out(torch.cat(attended, 2))
        value, gate = block.value_gate(F.layer_norm(x, [12], block.norm.weight, block.norm.bias)).chunk(2, 2)
        x = x + block.out(value * torch.relu(gate))
    torch.testing.assert_close(given, x[:, :1], rtol=1e-4, atol=1e-5)


def test_many_rows_are_encoded_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, whole = rows("binary", 50), small(INPUTS, 1).eval()
    monkeypatch.setattr(ft_transformer, "CHUNK_SIZE", 7)
    chunked = small(INPUTS, 1).eval()
    chunked.load_state_dict(whole.state_dict())
    torch.testing.assert_close(chunked(batch), whole(batch))


def test_tokens_norms_and_biases_have_no_weight_decay() -> None:
    network = small(TEXT, 1)
    weights = {id(weight) for weight in split_parameters(network)[0]}
    decayed = {name for name, weight in network.named_parameters() if id(weight) in weights}
    linear = {"query", "key_value", "attention_out", "value_gate", "out"}
    assert decayed == {f"blocks.{block}.{name}.weight" for block in range(2) for name in linear} | {"head.2.weight"}


@pytest.mark.parametrize(
    "spec", [InputSpec(numbers=("a",)), InputSpec(categories=(("b", 4),)), InputSpec(texts=MIXED.texts)]
)
def test_a_single_kind_of_column_is_supported(spec: InputSpec) -> None:
    batch: dict[str, Tensor] = {"numbers": torch.randn(6, len(spec.numbers)), "codes": torch.ones(6, 1).int()}
    batch = mixed_rows(6) if spec.texts else batch
    network = small(spec, 1).eval()
    assert network(batch).shape == (6, 1)
    torch.testing.assert_close(script(network)(batch), network(batch))


@pytest.mark.parametrize(("task", "metric", "least"), [("regression", "r2", 0.9), ("binary", "accuracy", 0.85)])
def test_a_known_function_is_learned(task: Task, metric: str, least: float) -> None:
    torch.manual_seed(0)
    module = build(task, network=small(INPUTS, 1, size=32, attention_dropout=0.0))
    trainer = fit(module, rows(task, 1024), epochs=12)
    assert float(trainer.callback_metrics[f"val/{metric}"]) > least


def test_golden_loss() -> None:
    torch.manual_seed(0)
    module = build("binary", network=small(INPUTS, 1))
    trainer = fit(module, rows("binary", 256), epochs=3)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(0.66149, rel=1e-3)


def test_the_config_equals_the_defaults_of_the_code() -> None:
    torch.manual_seed(0)
    shipped = instantiate(OmegaConf.load(ROOT / "conf" / "model" / "ft_transformer.yaml"), spec=TEXT, outputs=2)
    torch.manual_seed(0)
    plain = FTTransformer(TEXT, 2)
    assert str(shipped) == str(plain)
    for key, values in plain.state_dict().items():
        torch.testing.assert_close(shipped.state_dict()[key], values)


def test_images_are_refused() -> None:
    message = "ft_transformer supports only numbers, categories and texts, but there are numbers, texts and images"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}: use model=fusion"):
        FTTransformer(MIXED, 1)


def test_a_size_that_is_not_a_multiple_of_the_heads_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^inputs\.size=18: must be a multiple of heads=4\.$"):
        small(INPUTS, 1, size=18)
