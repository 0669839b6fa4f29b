"""Networks of torchvision: TorchScript, learning, pretrained weights, frozen submodules and errors."""

import functools
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision import models

from datamodules.schema import ImageSpec, InputSpec
from inference.artifact import Artifact
from models.architectures.torchvision_classifier import TorchvisionClassifier, networks
from models.training.parameter_groups import parameter_groups
from tests.conftest import ROOT
from tests.models.problems import MIXED, script
from trainer.config.instantiate import instantiate

SMALL = "mobilenet_v3_small"
GOLDEN = [2.429, 1.465, 0.893]
"""Losses of the first three steps on digits."""


def spec(*shapes: tuple[int, int, int]) -> InputSpec:
    return InputSpec(
        images=tuple(
            ImageSpec(f"photo {index}", shape, (0.5,) * shape[0], (0.25,) * shape[0])
            for index, shape in enumerate(shapes)
        )
    )


def pixels(rows: int, *shape: int) -> dict[str, Tensor]:
    return {"images.photo 0": torch.randint(0, 256, (rows, *shape), generator=torch.Generator().manual_seed(0)).byte()}


def saved(path: Path, network: nn.Module) -> str:
    torch.save(network.state_dict(), path)
    return str(path)


def checkpoint(path: Path, network: nn.Module) -> str:
    torch.save({"state_dict": {f"network.{name}": each for name, each in network.state_dict().items()}}, path)
    return str(path)


@pytest.fixture
def source_network() -> nn.Module:
    """A network of torchvision with norm statistics from data."""
    torch.manual_seed(1)
    network: nn.Module = models.get_model(SMALL, num_classes=5)
    network(torch.randn(4, 3, 32, 32))
    return network.eval()


@pytest.mark.parametrize(
    ("name", "shape", "outputs"),
    [
        ("resnet18", (1, 28, 28), 10),
        (SMALL, (3, 64, 48), 1),
        ("efficientnet_b0", (3, 32, 32), 3),
        ("convnext_tiny", (1, 32, 32), 3),
        pytest.param("vit_b_32", (3, 64, 64), 3, marks=pytest.mark.slow),
    ],
)
def test_outputs_gradients_and_torchscript(name: str, shape: tuple[int, int, int], outputs: int) -> None:
    torch.manual_seed(0)
    network = TorchvisionClassifier(spec(shape), outputs, name=name, dropout=0.2)
    batch = pixels(4, *shape)
    network(batch).square().sum().backward()
    assert [name for name, each in network.named_parameters() if each.grad is None] == []
    assert network(pixels(1, *shape)).shape == (1, outputs)  # the last batch may have one row
    network.eval()
    nn.init.normal_(network.head.weight)  # some are initially zero
    with torch.no_grad():
        answers = network(batch)
        assert answers.shape == (4, outputs)
        assert float(answers.std()) > 0
        torch.testing.assert_close(script(network)(batch), answers, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["alexnet", "densenet121", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "resnext50_32x4d", "swin_v2_t", "vgg11_bn"],
)
def test_other_families_have_a_head_for_the_target(name: str) -> None:
    assert name in networks()
    with torch.device("meta"):  # without computation
        network = TorchvisionClassifier(spec((3, 224, 224)), 3, name=name)
        assert network.head.out_features == 3
        assert network({"images.photo 0": torch.zeros(2, 3, 224, 224).byte()}).shape == (2, 3)


@pytest.mark.parametrize("name", ["resnet18", "torchvision"])
def test_the_config_equals_the_defaults_of_the_code(name: str) -> None:
    settings = OmegaConf.load(ROOT / "conf" / "model" / "torchvision.yaml")
    settings = OmegaConf.merge(settings, {"name": "resnet18"} if name == "torchvision" else shipped(name))
    built = instantiate(settings, spec=spec((1, 8, 8)), outputs=2)
    assert str(built) == str(TorchvisionClassifier(spec((1, 8, 8)), 2, name="resnet18"))


def shipped(name: str) -> Any:
    settings = OmegaConf.load(ROOT / "conf" / "model" / f"{name}.yaml")
    assert settings.pop("defaults") == ["torchvision"]
    return settings


@pytest.mark.parametrize("steps", [3, pytest.param(16, marks=pytest.mark.slow)])
def test_digits_are_learned_with_golden_losses(steps: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    images = torch.from_numpy(digits.images * 15).byte().unsqueeze(1)
    target = torch.from_numpy(digits.target)
    network = TorchvisionClassifier(spec((1, 8, 8)), 10, name="resnet18")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    losses = []
    for rows in torch.randperm(800).split(50)[:steps]:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network({"images.photo 0": images[rows]}), target[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[:3] == pytest.approx(GOLDEN, abs=1e-2)
    if steps > 3:
        with torch.no_grad():
            answers = network.eval()({"images.photo 0": images[1400:]}).argmax(1)
        assert float((answers == target[1400:]).float().mean()) > 0.8


def test_the_stem_depends_on_image_size_and_weights(tmp_path: Path) -> None:
    def stem(size: int, **settings: Any) -> tuple[int, bool]:
        body = TorchvisionClassifier(spec((3, size, size)), 2, name="resnet18", **settings).body
        return body.conv1.kernel_size[0], isinstance(body.maxpool, nn.MaxPool2d)

    small, standard = (3, False), (7, True)
    assert stem(63) == small
    assert stem(64) == standard
    assert stem(32, stem="standard") == standard
    assert stem(64, stem="small") == small
    assert stem(32, weights=saved(tmp_path / "a.pth", models.resnet18(num_classes=2))) == standard
    trained = TorchvisionClassifier(spec((3, 32, 32)), 2, name="resnet18")
    assert stem(64, weights=checkpoint(tmp_path / "a.ckpt", trained)) == small
    with pytest.raises(ValueError, match=f"^stem=small is only for resnets, not for {SMALL}: set model.stem=auto.$"):
        TorchvisionClassifier(spec((3, 32, 32)), 2, name=SMALL, stem="small")


def test_pretrained_weights_give_the_outputs_of_torchvision(tmp_path: Path, source_network: nn.Module) -> None:
    network = TorchvisionClassifier(
        spec((3, 32, 32)), 5, name=SMALL, weights=saved(tmp_path / "a.pth", source_network)
    ).eval()
    batch = pixels(4, 3, 32, 32)
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    with torch.no_grad():
        expected = source_network((batch["images.photo 0"] / 255 - mean) / deviation)
        torch.testing.assert_close(network(batch), expected, rtol=1e-4, atol=1e-4)
    # A gray image has three equal channels.
    gray = TorchvisionClassifier(spec((1, 32, 32)), 5, name=SMALL, weights=str(tmp_path / "a.pth")).eval()
    batch = pixels(4, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(gray(batch), network({k: each.repeat(1, 3, 1, 1) for k, each in batch.items()}))


def test_weights_of_a_checkpoint_keep_their_standardization(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = InputSpec(images=(ImageSpec("photo 0", (1, 32, 32), (0.2,), (0.4,)),))
    trained = TorchvisionClassifier(first, 3, name=SMALL).eval()
    again = TorchvisionClassifier(spec((1, 32, 32)), 3, name=SMALL, weights=checkpoint(tmp_path / "a.ckpt", trained))
    batch = pixels(4, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(batch), trained(batch))


@pytest.mark.parametrize("form", [saved, checkpoint])
def test_a_head_with_other_outputs_is_replaced_and_logged(
    tmp_path: Path, form: Callable[[Path, nn.Module], str], caplog: pytest.LogCaptureFixture
) -> None:
    source = models.get_model(SMALL, num_classes=9)
    if form is checkpoint:
        source = TorchvisionClassifier(spec((3, 32, 32)), 9, name=SMALL)
    path = form(tmp_path / "a.pt", source)
    with caplog.at_level(logging.INFO):
        network = TorchvisionClassifier(spec((3, 32, 32)), 2, name=SMALL, weights=path)
    assert caplog.messages == [f"weights={path}: its head has another number of outputs, so a new head is trained"]
    assert network.head.out_features == 2
    body = source.body if form is checkpoint else source
    for name, values in network.body.state_dict().items():
        assert torch.equal(values, body.state_dict()[name]), name


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", models.densenet121(num_classes=2))
    with pytest.raises(ValueError, match="do not fit resnet18") as caught:
        TorchvisionClassifier(spec((3, 32, 32)), 2, name="resnet18", weights=path)
    first, missing, unexpected = str(caught.value).splitlines()
    assert first == f"weights={path} do not fit resnet18. They fit model.name=densenet121."
    assert missing.startswith("  100 missing: bn1.bias, bn1.running_mean, bn1.running_var, bn1.weight, conv1.weight,")
    assert missing.endswith(" and 90 more")
    assert re.fullmatch(r"  \d+ unexpected: classifier\.bias, classifier\.weight, .* and \d+ more", unexpected)


def test_parameter_names_of_older_versions_are_converted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = models.densenet121(num_classes=2)
    old = {
        re.sub(r"(denselayer\d+\.(norm|conv))(\d)", r"\1.\3", name): values
        for name, values in source.state_dict().items()
        if "num_batches" not in name
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "a.pth")
    network = TorchvisionClassifier(spec((3, 64, 64)), 2, name="densenet121", weights=str(tmp_path / "a.pth"))
    assert torch.equal(network.head.weight, source.classifier.weight)
    assert torch.equal(
        network.body.features.denseblock4.denselayer16.conv2.weight,
        source.features.denseblock4.denselayer16.conv2.weight,
    )


def test_default_weights_are_read_from_the_cache_or_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source_network: nn.Module
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # a closed port
    path = tmp_path / "hub" / "checkpoints" / "mobilenet_v3_small-047dcff4.pth"
    message = (
        r"weights=default: cannot download https://download\.pytorch\.org/models/mobilenet_v3_small-047dcff4\.pth"
        rf" \(.+\)\. Download it elsewhere and copy it to {re.escape(str(path))}, or use a file with"
        r" model\.weights=FILE\."
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        TorchvisionClassifier(spec((3, 32, 32)), 5, name=SMALL, weights="default")
    assert list(path.parent.iterdir()) == []
    saved(path, source_network)
    network = TorchvisionClassifier(spec((3, 32, 32)), 5, name=SMALL, weights="default")
    assert torch.equal(network.head.weight, source_network.classifier[3].weight)


def test_frozen_submodules_do_not_change_and_others_do(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", models.resnet18(num_classes=2))
    frozen = ["conv1", "bn1", "layer1", "layer2.0"]
    network = TorchvisionClassifier(spec((3, 64, 64)), 2, name="resnet18", weights=path, freeze=frozen)
    prefixes = tuple(f"body.{part}." for part in frozen)
    still = {name for name, each in network.named_parameters() if not each.requires_grad}
    assert still == {name for name, _ in network.named_parameters() if name.startswith(prefixes)}
    groups = parameter_groups(network, functools.partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1), {})
    taken = {id(parameter) for group in groups for parameter in group["params"]}
    assert taken == {id(each) for name, each in network.named_parameters() if name not in still}

    before = {name: values.clone() for name, values in network.state_dict().items()}
    optimizer = torch.optim.AdamW(groups)
    network.eval()
    network.train()  # as after validation
    network(pixels(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    for name, values in network.state_dict().items():
        changed = not torch.equal(values, before[name])
        assert changed == (not name.startswith((*prefixes, "pixels."))), name


def test_the_recipe_has_a_smaller_learning_rate_for_the_body(tmp_path: Path) -> None:
    recipe: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "experiment" / "finetune.yaml"))
    path = saved(tmp_path / "a.pth", models.resnet18(num_classes=2))
    settings = recipe["model"] | {"weights": path}
    network = TorchvisionClassifier(spec((3, 64, 64)), 2, name="resnet18", **settings)
    optimizer = functools.partial(torch.optim.AdamW, **recipe["optimizer"])
    rates = {
        id(parameter): group.get("lr", recipe["optimizer"]["lr"])
        for group in parameter_groups(network, optimizer, recipe["param_groups"])
        for parameter in group["params"]
    }
    assert rates[id(network.head.weight)] == pytest.approx(10 * rates[id(network.body.layer4[1].conv2.weight)])
    assert id(network.body.layer1[0].conv1.weight) not in rates


@pytest.mark.slow
def test_a_run_is_fine_tuned_from_another_run_and_exported(tmp_path: Path, run_here: Callable[..., Path]) -> None:
    for label, shade in (("dark", 60), ("light", 180)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(20):
            image = Image.new("RGB", (32, 32), (shade + index, shade, shade - index))
            image.save(tmp_path / "photos" / label / f"{index}.png")
    settings = (
        "data=images",
        f"data.path={tmp_path / 'photos'}",
        f"paths.cache={tmp_path / 'cache'}",
        "model=torchvision",
        f"model.name={SMALL}",
        "trainer=cpu",
        "trainer.max_epochs=1",
        "logger=none",
        "data.batch_size=13",
    )
    first = run_here(*settings, folder=tmp_path / "first")
    tuned = run_here(
        *settings,
        f"model.weights={first}",
        "model.freeze=[features.0]",
        "+param_groups={body.*:{lr:0.1}}",
        folder=tmp_path / "tuned",
    )
    assert Artifact.load(tuned / "model.pt").check() is None
    states = [torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"] for run in (first, tuned)]
    for name, same in (
        ("body.features.0.0.weight", True),
        ("body.features.0.1.running_mean", True),
        ("body.features.1.block.0.0.weight", False),
        ("pixels.mean", True),
    ):
        assert torch.equal(states[0][f"network.{name}"], states[1][f"network.{name}"]) == same, name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "resnet19"},
            "name='resnet19' is not a classification network of torchvision: did you mean 'resnet18'?",
        ),
        (
            {"name": "googlenet"},
            "name=googlenet is not supported: it has several outputs in training. Use another network, such as"
            " resnet18.",
        ),
        (
            {"name": "resnet18", "freeze": ["layer1"]},
            "freeze: without weights it would freeze random layers; set model.weights.",
        ),
        (
            {"name": "vgg11"},
            "vgg11 does not support images of 16 x 16 pixels: set data.image_size=224. (Given input size: (512x1x1)."
            " Calculated output size: (512x0x0). Output size is too small)",
        ),
        (
            {"name": "vit_b_32"},
            "vit_b_32 does not support images of 16 x 16 pixels: set data.image_size=224. (Input shape indivisible by"
            " patch size!)",
        ),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TorchvisionClassifier(spec((3, 16, 16)), 2, **settings)


def test_unknown_submodules_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", models.resnet18(num_classes=2))
    message = (
        "freeze: resnet18 has no submodule 'stage1'; it has conv1, bn1, relu, maxpool, layer1, layer2, layer3, layer4,"
        " avgpool, fc, and their submodules, such as layer1.0."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TorchvisionClassifier(spec((3, 64, 64)), 2, name="resnet18", weights=path, freeze=["conv1", "stage1"])


def test_other_columns_are_refused() -> None:
    message = "resnet18 supports only images, but there are numbers, texts and images: use model=fusion,"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        TorchvisionClassifier(MIXED, 1, name="resnet18")
    message = "resnet18 supports one image column, but there are 2: use model=fusion."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TorchvisionClassifier(spec((3, 32, 32), (1, 32, 32)), 1, name="resnet18")
