"""CNN: images of any size, TorchScript, stages and learning."""

import re

import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from torch import nn

from datamodules.schema import ImageSpec, InputSpec
from models.architectures.cnn import CNN, ImageEncoder
from tests.conftest import ROOT
from tests.models.problems import MIXED, script
from trainer.config.instantiate import instantiate


def spec(*shapes: tuple[int, int, int]) -> InputSpec:
    return InputSpec(
        images=tuple(
            ImageSpec(f"photo {index}", shape, (0.5,) * shape[0], (0.25,) * shape[0])
            for index, shape in enumerate(shapes)
        )
    )


@pytest.mark.parametrize("shapes", [[(1, 1, 1)], [(3, 5, 2)], [(1, 28, 28)], [(3, 40, 96)], [(1, 8, 8), (3, 9, 7)]])
def test_torchscript_agrees_for_images_of_any_size(shapes: list[tuple[int, int, int]]) -> None:
    torch.manual_seed(0)
    network = CNN(spec(*shapes), 3, channels=4, dropout=0.5)
    batch = {f"images.photo {i}": torch.randint(0, 256, (6, *shape)).byte() for i, shape in enumerate(shapes)}
    network(batch).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.eval()
    assert network(batch).shape == (6, 3)
    torch.testing.assert_close(script(network)(batch), network(batch))
    # The output of a row does not depend on the batch.
    torch.testing.assert_close(network({name: pixels[2:3] for name, pixels in batch.items()})[0], network(batch)[2])


@pytest.mark.parametrize(("size", "stages", "width"), [(1, 1, 4), (8, 2, 8), (28, 3, 16), (32, 4, 32), (224, 6, 32)])
def test_stages_halve_the_image_and_double_the_channels(size: int, stages: int, width: int) -> None:
    encoder = ImageEncoder(ImageSpec("photo", (3, size, size), (0.5,) * 3, (0.25,) * 3), channels=4, depth=3)
    kinds = [type(layer) for layer in encoder.layers]
    assert kinds.count(nn.MaxPool2d) == stages
    assert kinds.count(nn.Conv2d) == 3 * stages
    assert encoder.width == width


def test_the_config_equals_the_defaults_of_the_code() -> None:
    shipped = instantiate(OmegaConf.load(ROOT / "conf" / "model" / "cnn.yaml"), spec=spec((1, 8, 8)), outputs=2)
    assert str(shipped) == str(CNN(spec((1, 8, 8)), 2))


def test_training_on_a_single_row() -> None:
    network = CNN(spec((1, 4, 4)), 1)
    assert network({"images.photo 0": torch.zeros(1, 1, 4, 4).byte()}).isfinite().all()


def test_digits_are_learned() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    images = torch.from_numpy(digits.images * 15).byte().unsqueeze(1)
    target = torch.from_numpy(digits.target)
    network = CNN(spec((1, 8, 8)), 10, channels=16)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(6):
        for rows in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network({"images.photo 0": images[rows]}), target[rows])
            loss.backward()
            optimizer.step()
    answers = network.eval()({"images.photo 0": images[1400:]}).argmax(1)
    assert float((answers == target[1400:]).float().mean()) > 0.94  # logistic regression has 0.91


def test_other_columns_are_refused() -> None:
    message = "cnn supports only images, but there are numbers, texts and images: use model=fusion,"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        CNN(MIXED, 1)
