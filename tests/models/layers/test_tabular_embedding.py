"""TabularEmbedding: the encoding of each kind of column."""

import functools
import math
import re
from bisect import bisect
from typing import Literal

import pytest
import torch
from torch import nn

from datamodules.schema import InputSpec
from models.architectures.linear import Linear
from models.architectures.mlp import MLP
from models.layers.tabular_embedding import Periodic, PiecewiseLinear, TabularEmbedding
from models.layers.text_bag import TextBag
from tests.models.problems import INPUTS, MIXED, mixed_rows, script


def test_outputs_are_numbers_binary_one_hot_and_embedded_categories() -> None:
    inputs = TabularEmbedding(INPUTS, embedding_size=2).eval()
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


def test_a_piecewise_linear_embedding_starts_linear_and_has_knots_at_the_edges() -> None:
    edges = [[-1.0, 0.0, 0.5, 2.0], [0.0, 1.0, 3.0]]
    layer = PiecewiseLinear(edges, 4)
    numbers = torch.tensor([[-3.0, -1.0], [-0.5, 0.5], [0.25, 1.0], [2.0, 2.0], [9.0, 30.0]])
    linear = numbers.unsqueeze(2) * layer.linear + layer.shift
    torch.testing.assert_close(layer(numbers), linear)
    bend = nn.init.normal_(layer.bend).detach()
    for column, ends in enumerate(edges):
        # At edge t the term is the sum of the first t bends; between and beyond the edges it is linear.
        at = torch.cat([torch.zeros(1, 4), bend[column, : len(ends) - 1].cumsum(0)])
        for row, x in enumerate(numbers[:, column].tolist()):
            t = min(max(bisect(ends, x) - 1, 0), len(ends) - 2)
            expected = linear[row, column] + at[t] + (at[t + 1] - at[t]) * (x - ends[t]) / (ends[t + 1] - ends[t])
            torch.testing.assert_close(layer(numbers)[row, column], expected)


def test_edges_equal_in_single_precision_are_merged() -> None:
    layer = PiecewiseLinear([[0.0, 1.0, 1.0 + 1e-12, 2.0], [5.0, 5.0 + 1e-12, 5.0 + 2e-12, 5.0 + 3e-12]], 2)
    nn.init.normal_(layer.bend)
    plain = PiecewiseLinear([[0.0, 1.0, 2.0], [5.0, 6.0]], 2)
    plain.load_state_dict(layer.state_dict() | {"bend": layer.bend[:, :2]})
    numbers = torch.tensor([[-1.0, 4.0], [0.5, 5.0], [1.0, 5.0], [3.0, 6.0]])
    torch.testing.assert_close(layer(numbers)[:, 0], plain(numbers)[:, 0])
    assert bool(layer(numbers).isfinite().all())


def test_codes_become_unknown_only_in_training_at_the_given_rate() -> None:
    torch.manual_seed(0)
    inputs = TabularEmbedding(InputSpec(categories=(("narrow", 5), ("wide", 21))), unknown_rate=0.1)
    assert inputs.embedding is not None
    nn.init.zeros_(inputs.embedding.weight[0:1])
    codes = torch.tensor([[3, 7]]).int().repeat(20_000, 1)
    encoded = inputs({"codes": codes})
    narrow, wide = encoded[:, 0], (encoded[:, 5:] == 0).all(1).float()
    for unknown in (narrow, wide):
        assert 0.09 < float(unknown.detach().mean()) < 0.11
    # Cells are drawn independently, not whole rows.
    assert 0.005 < float((narrow * wide).detach().mean()) < 0.015
    encoded[:, 5:].sum().backward()
    assert inputs.embedding.weight.grad is not None
    assert inputs.embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [0, 7]
    assert inputs.eval()({"codes": codes})[:, 0].sum().item() == 0


@pytest.mark.parametrize("edges", [(), ((-2.0, 0.0, 2.0), (-2.0, 1.0, 2.0))])
def test_noise_is_added_only_to_numbers_in_training(edges: tuple[tuple[float, ...], ...]) -> None:
    torch.manual_seed(0)
    spec = InputSpec(numbers=("a", "b"), indicators=("b",), categories=(("yes", 3),), edges=edges)
    inputs = TabularEmbedding(spec, number_size=1, unknown_rate=0.0, noise=0.1)
    batch = {"numbers": torch.tensor([[0.5, -1.0, 1.0]]).repeat(20_000, 1), "codes": torch.ones(20_000, 1).int()}
    before = {name: values.clone() for name, values in batch.items()}
    noise = (inputs(batch) - inputs.eval()(batch)).detach()
    assert all(torch.equal(values, before[name]) for name, values in batch.items())
    slope = inputs.bent.linear.detach()[:, 0].abs() if isinstance(inputs.bent, PiecewiseLinear) else torch.ones(2)
    torch.testing.assert_close(noise[:, :2].std(0), 0.1 * slope, rtol=0.02, atol=0)
    assert float(noise[:, :2].T.corrcoef()[0, 1].abs()) < 0.03
    assert not noise[:, 2:].any()
    torch.testing.assert_close(script(inputs)(batch), inputs(batch))


def test_negative_noise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^noise=-0.1: must not be negative\.$"):
        TabularEmbedding(INPUTS, noise=-0.1)


def test_a_periodic_embedding_is_the_number_and_cosines_of_it() -> None:
    torch.manual_seed(0)
    layer = Periodic(2, 4)
    numbers = torch.tensor([[-3.0, 0.0], [0.5, 2.0]])
    vectors = layer(numbers)
    assert vectors.shape == (2, 2, 4)
    assert torch.equal(vectors[:, :, 0], numbers)
    for row in range(2):
        for column in range(2):
            angle = 2 * math.pi * layer.frequency[column] * numbers[row, column] + layer.phase[column]
            expected = layer.mix[column].T @ angle.cos() + layer.shift[column]
            torch.testing.assert_close(vectors[row, column, 1:], expected)


@pytest.mark.parametrize("embedding", ["ple", "pbld"])
def test_numbers_with_two_values_are_not_embedded(embedding: Literal["ple", "pbld"]) -> None:
    spec = InputSpec(numbers=("a", "b"), edges=((0.0, 1.0), (0.0, 1.0, 2.0)), indicators=("a",))
    inputs = TabularEmbedding(spec, number_size=3, number_embedding=embedding)
    assert inputs.width == 3 + 1 + 1
    numbers = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.5, 1.0]])
    assert torch.equal(inputs({"numbers": numbers})[:, 3:], numbers[:, [0, 2]])


def test_texts_are_bags_of_words_and_images_are_standardized_pixels() -> None:
    inputs = TabularEmbedding(MIXED, text=functools.partial(TextBag, size=5, weighting="mean")).eval()
    batch = mixed_rows(6)
    encoded = inputs(batch)
    assert encoded.shape == (6, inputs.width) == (6, 1 + 5 + 64)
    assert torch.equal(encoded[:, 1:6], inputs.texts[0](batch))
    pixels = (batch["images.photo"].flatten(1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(encoded[:, 6:], pixels)
    torch.testing.assert_close(script(inputs)(batch), encoded)


def test_a_linear_network_has_a_weight_for_the_tfidf_of_each_word() -> None:
    batch = mixed_rows(6)
    network = Linear(MIXED, 2)
    assert not network(batch).any()
    bag = TextBag(MIXED.texts[0], 2)
    words = network.texts[0]
    with torch.no_grad():
        words.weights.weight.copy_(bag.embedding.weight / words.pace.unsqueeze(1))
    torch.testing.assert_close(network(batch), bag(batch))
    common, rare = words.pace[1], words.pace[-1]
    assert (common > rare) == (MIXED.texts[0].idf[0] < MIXED.texts[0].idf[-1])
    assert network.layer is not None
    assert network.layer.in_features == 1 + 64


def test_a_linear_network_supports_text_columns_only() -> None:
    batch = mixed_rows(20)
    network = Linear(InputSpec(texts=MIXED.texts), 1)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    assert network.bias is not None
    no_words = batch["offsets.title"].diff() == 0
    assert no_words.any()
    assert (network(batch)[no_words] == network.bias).all()
    torch.testing.assert_close(script(network)(batch), network(batch))


@pytest.mark.parametrize("network", [Linear, MLP])
def test_a_table_without_input_columns_is_refused(network: type[Linear] | type[MLP]) -> None:
    message = (
        "there are no input columns: all columns but the target are constant, identifiers or dropped."
        " Set data.columns='{NAME: KIND}'."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        network(InputSpec(), 1)
