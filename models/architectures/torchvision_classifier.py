"""Classification networks of torchvision, trained from scratch or fine-tuned from pretrained weights."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from datamodules.schema import ImageSpec, InputSpec
from models.layers.column_support import refuse_columns
from models.layers.common import Dropout
from models.layers.pretrained_weights import copy_weights, differences, read_weights
from models.layers.tabular_embedding import Pixels

log = logging.getLogger(__name__)

Stem = Literal["auto", "small", "standard"]

MIN_STANDARD_SIZE = 64
"""Minimum pixels on the shorter side for the standard stem, with which a resnet halves an image five times."""
UNSUPPORTED = {
    "googlenet": "it has several outputs in training",
    "inception_v3": "it has several outputs in training",
    "squeezenet1_0": "its outputs cannot be negative",
    "squeezenet1_1": "its outputs cannot be negative",
}
OLD_NAMES = {
    r"(denselayer\d+\.(norm|conv))\.(\d)\.": r"\1\3.",
    r"(\.mlp)\.linear_1\.": r"\1.0.",
    r"(\.mlp)\.linear_2\.": r"\1.3.",
}
"""Parameter names in files of older torchvision versions, and their replacements."""


class TorchvisionClassifier(nn.Module):
    """The torchvision network `name` with a new last layer for this target.

    `weights`: null (random initialization), a file or run folder (see `read_weights`), or `default` (torchvision's
    weights, downloaded if necessary). Pixels are standardized as in the training of the weights; gray images are
    repeated to three channels. A head with another number of outputs is initialized randomly.

    `freeze`: names of submodules without gradients and with fixed norm statistics. Parameter names start with `head` or
    `body`. `stem` of a resnet: the `standard` one reduces height and width to a quarter, the `small` one (a 3 x 3
    convolution, as for CIFAR in arXiv 1512.03385) keeps them; `auto` depends on the weights, or on the image size.

    Returns (rows, outputs) logits or standardized values. Raises ValueError unless there is exactly one column, an
    image, and for unknown names and submodules, unsupported image sizes and weights of another network.
    """

    frozen: list[str]

    def __init__(
        self,
        spec: InputSpec,
        outputs: int,
        *,
        name: str,
        weights: str | None = None,
        freeze: Sequence[str] = (),
        stem: Stem = "auto",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_name(name)
        refuse_columns(spec, name, ["image"])
        if len(spec.images) > 1:
            raise ValueError(f"{name} supports one image column, but there are {len(spec.images)}: use model=fusion.")
        if freeze and weights is None:
            raise ValueError("freeze: without weights it would freeze random layers; set model.weights.")
        check_name(name)
        (image,) = spec.images
        given = {} if weights is None else _read(name, weights)
        body = _build(name, outputs, image.shape, stem, given)
        head = head_of(body)
        if weights is not None:
            _load(body, name, given, f"weights={weights}")
        mean, deviation = _normalization(name, image, given)
        self.pixels = Pixels(replace(image, mean=mean, deviation=deviation))
        for buffer in ("mean", "deviation"):  # persistent, so that weights of a run keep their standardization
            self.pixels.register_buffer(buffer, getattr(self.pixels, buffer))
        self.head = body.get_submodule(head)
        body.set_submodule(head, nn.Identity())
        self.body = body.to(memory_format=torch.channels_last)
        self.dropout = Dropout(dropout)
        for part in freeze:
            _part(body, part, name).requires_grad_(False)
        self.frozen = list(freeze)
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.frozen:
            self.body.get_submodule(part).eval()
        return self

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        pixels = self.pixels(batch).contiguous(memory_format=torch.channels_last)
        single = self.training and len(pixels) == 1
        if single:  # a batch norm cannot train on one value
            pixels = torch.cat([pixels, pixels])
        output: Tensor = self.head(self.dropout(self.body(pixels)))
        return output[:1] if single else output


def networks() -> list[str]:
    """Returns the names of the networks that TorchvisionClassifier supports."""
    from torchvision import models  # here, because it is slow to import

    return [name for name in models.list_models(module=models) if name not in UNSUPPORTED]


def check_name(name: str) -> None:
    """Raises ValueError if `name` is not one of `networks`."""
    if name in UNSUPPORTED:
        raise ValueError(f"name={name} is not supported: {UNSUPPORTED[name]}. Use another network, such as resnet18.")
    if name not in (known := networks()):
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}."
        raise ValueError(f"name={name!r} is not a classification network of torchvision: {hint}")


def head_of(network: nn.Module) -> str:
    """Returns the name of the output layer, which is the last linear layer in all `networks`."""
    names: list[str] = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return names[-1]


def _build(name: str, outputs: int, shape: tuple[int, int, int], stem: Stem, given: Mapping[str, Tensor]) -> nn.Module:
    """Returns the network after checking that it supports images of this shape."""
    _, height, width = shape
    try:
        network: nn.Module = _make(name, outputs, shape, stem, given)
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, height, width))
    except (RuntimeError, AssertionError) as error:
        (size,) = _default_weights(name).transforms().crop_size
        raise ValueError(
            f"{name} does not support images of {height} x {width} pixels: set data.image_size={size}. ({error})"
        ) from error
    return network


def _make(name: str, outputs: int, shape: tuple[int, int, int], stem: Stem, given: Mapping[str, Tensor]) -> Any:
    """Returns a randomly initialized network; a resnet has the given stem, or the one of the weights or image size."""
    from torchvision import models  # here, because it is slow to import

    _, height, width = shape
    sized = {"image_size": height} if name.startswith("vit_") else {}
    network = models.get_model(name, num_classes=outputs, **sized)
    if isinstance(network, models.ResNet):
        first = given.get("conv1.weight", given.get("body.conv1.weight"))
        small = min(height, width) < MIN_STANDARD_SIZE if first is None else first.shape[-1] == 3
        if stem == "small" or (stem == "auto" and small):
            channels = network.conv1.out_channels
            network.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
    elif stem == "small":
        raise ValueError(f"stem=small is only for resnets, not for {name}: set model.stem=auto.")
    return network


def _default_weights(name: str) -> Any:
    """Returns torchvision's description of its weights for this network."""
    from torchvision import models  # here, because it is slow to import

    return models.get_model_weights(name).DEFAULT


def _read(name: str, weights: str) -> dict[str, Tensor]:
    """Returns the weights by their present names."""
    given = read_weights(_downloaded(name) if weights == "default" else weights)
    for old, new in OLD_NAMES.items():
        given = {re.sub(old, new, key): each for key, each in given.items()}
    return given


def _downloaded(name: str) -> Path:
    """Returns the file of torchvision's weights in the cache of torch.hub; downloads it if it is missing."""
    url = _default_weights(name).url
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"weights=default: cannot download {url} ({error}). Download it elsewhere and copy it to {path}, or use"
                " a file with model.weights=FILE."
            ) from error
    return path


def _normalization(
    name: str, image: ImageSpec, given: Mapping[str, Tensor]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of three channels: of the weights' training, else of the images."""
    if "pixels.mean" in given:
        mean, deviation = (given[f"pixels.{key}"].flatten() / 255 for key in ("mean", "deviation"))
        return tuple(mean.tolist()), tuple(deviation.tolist())
    if given:
        transforms = _default_weights(name).transforms()
        return tuple(transforms.mean), tuple(transforms.std)
    repeats = 3 // len(image.mean)
    return image.mean * repeats, image.deviation * repeats


def _load(network: nn.Module, name: str, given: Mapping[str, Tensor], source: str) -> None:
    head = head_of(network)
    renamed = _renamed(given, head)
    if lines := differences(network, renamed, head):
        match = next((other for other in networks() if other != name and _fits(other, given)), None)
        advice = f"They fit model.name={match}." if match else "They belong to another network."
        raise ValueError("\n  ".join([f"{source} do not fit {name}. {advice}", *lines]))
    if not copy_weights(network, renamed, head):
        log.info("%s: its head has another number of outputs, so a new head is trained", source)


def _fits(name: str, given: Mapping[str, Tensor]) -> bool:
    try:
        with torch.device("meta"):
            network = _make(name, 1, (3, 224, 224), "auto", given)
    except NotImplementedError:  # a regnet computes its widths with tensors, which have no values on the meta device
        return False
    head = head_of(network)
    return not differences(network, _renamed(given, head), head)


def _renamed(given: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """Converts parameter names of a TorchvisionClassifier to those of torchvision; keeps others."""
    names = {name: re.sub(r"^body\.", "", re.sub(r"^head\.", f"{head}.", name)) for name in given}
    return {names[name]: values for name, values in given.items() if not name.startswith("pixels.")}


def _part(body: nn.Module, part: str, name: str) -> nn.Module:
    try:
        return body.get_submodule(part)
    except AttributeError:
        parts = ", ".join(child for child, _ in body.named_children())
        raise ValueError(
            f"freeze: {name} has no submodule {part!r}; it has {parts}, and their submodules, such as layer1.0."
        ) from None
