"""The classification networks of torchvision on images: from scratch, or from weights that others have trained."""

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
from models.layers.pretrained_weights import differences, fill, read_weights
from models.layers.tabular_embedding import Pixels

log = logging.getLogger(__name__)

Stem = Literal["auto", "small", "standard"]

SMALL = 64
"""Images with fewer pixels on the shorter side have a small stem: five halvings would leave nothing of them."""
REFUSED = {
    "googlenet": "it gives several answers in training",
    "inception_v3": "it gives several answers in training",
    "squeezenet1_0": "its answers cannot be below 0",
    "squeezenet1_1": "its answers cannot be below 0",
}
OLD_NAMES = {
    r"(denselayer\d+\.(norm|conv))\.(\d)\.": r"\1\3.",
    r"(\.mlp)\.linear_1\.": r"\1.0.",
    r"(\.mlp)\.linear_2\.": r"\1.3.",
}
"""Names in files of torchvision that its networks no longer have."""


class TorchvisionClassifier(nn.Module):
    """The network of torchvision called `name`, whose last layer is one for this target.

    `weights`: null for a start from scratch; a file or a run folder (see `read_weights`); or `default`, torchvision's
    own, which are downloaded where they are not there. Pixels are scaled as those that the weights were trained on,
    grey ones repeated in three channels. A head for another number of outputs is drawn anew.

    `freeze` names parts of the network that stay as they are: no gradients, and norms with the statistics of their
    weights. The head is `head`, all else `body`, in names of parameters. The first layers of a resnet, its `stem`,
    leave a quarter of the rows and columns where it is `standard`, and all where it is `small` (a convolution of 3 x 3
    alone, as for CIFAR in arXiv 1512.03385); `auto` goes by the weights, or by the size of the images.

    Gives (rows, outputs) logits or standardised values. ValueError for other columns than one of images, a name or a
    part that there is not, images of a size that the network does not take, and weights of another network.
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
            raise ValueError(
                f"{name} takes one column of images, and there are {len(spec.images)}: choose model=fusion."
            )
        if freeze and weights is None:
            raise ValueError("freeze: without weights it would keep layers as they were drawn; set model.weights.")
        check_name(name)
        (image,) = spec.images
        given = {} if weights is None else _read(name, weights)
        body = _build(name, outputs, image.shape, stem, given)
        head = head_of(body)
        if weights is not None:
            _load(body, name, given, f"weights={weights}")
        mean, deviation = _colours(name, image, given)
        self.pixels = Pixels(replace(image, mean=mean, deviation=deviation))
        for buffer in ("mean", "deviation"):  # persistent: training goes on from a checkpoint with the same colours
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
        alone = self.training and len(pixels) == 1
        if alone:  # a batch norm cannot train on one value
            pixels = torch.cat([pixels, pixels])
        output: Tensor = self.head(self.dropout(self.body(pixels)))
        return output[:1] if alone else output


def networks() -> list[str]:
    """The names that TorchvisionClassifier takes."""
    from torchvision import models  # slow to import

    return [name for name in models.list_models(module=models) if name not in REFUSED]


def check_name(name: str) -> None:
    """Raises ValueError where `name` is none of `networks`."""
    if name in REFUSED:
        raise ValueError(f"name={name} does not fit: {REFUSED[name]}. Choose another network, such as resnet18.")
    if name not in (known := networks()):
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}."
        raise ValueError(f"name={name!r} is no classification network of torchvision: {hint}")


def head_of(network: nn.Module) -> str:
    """The name of the layer that gives the answers, the last one in all of `networks`."""
    names: list[str] = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return names[-1]


def _build(name: str, outputs: int, shape: tuple[int, int, int], stem: Stem, given: Mapping[str, Tensor]) -> nn.Module:
    """The network, which takes images of this shape."""
    _, height, width = shape
    try:
        network: nn.Module = _draw(name, outputs, shape, stem, given)
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, height, width))
    except (RuntimeError, AssertionError) as error:
        (size,) = _published(name).transforms().crop_size
        raise ValueError(
            f"{name} takes no images of {height} x {width} pixels: set data.image_size={size}. ({error})"
        ) from error
    return network


def _draw(name: str, outputs: int, shape: tuple[int, int, int], stem: Stem, given: Mapping[str, Tensor]) -> Any:
    """The network as torchvision draws it, with the stem that is wanted, else that of the weights or of the size."""
    from torchvision import models

    _, height, width = shape
    sized = {"image_size": height} if name.startswith("vit_") else {}
    network = models.get_model(name, num_classes=outputs, **sized)
    if isinstance(network, models.ResNet):
        first = given.get("conv1.weight", given.get("body.conv1.weight"))
        small = min(height, width) < SMALL if first is None else first.shape[-1] == 3
        if stem == "small" or (stem == "auto" and small):
            channels = network.conv1.out_channels
            network.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
    elif stem == "small":
        raise ValueError(f"stem=small is for resnets, and {name} is none: set model.stem=auto.")
    return network


def _published(name: str) -> Any:
    """What torchvision knows of its own weights for this network."""
    from torchvision import models

    return models.get_model_weights(name).DEFAULT


def _read(name: str, weights: str) -> dict[str, Tensor]:
    """The weights by the names that the network has today."""
    given = read_weights(_downloaded(name) if weights == "default" else weights)
    for old, new in OLD_NAMES.items():
        given = {re.sub(old, new, key): each for key, each in given.items()}
    return given


def _downloaded(name: str) -> Path:
    """The file of torchvision's own weights, where torch keeps such files; fetched if it is not there."""
    url = _published(name).url
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"weights=default: {url} could not be fetched ({error}). Fetch it elsewhere and put it at {path}, or"
                " give a file by model.weights=FILE."
            ) from error
    return path


def _colours(name: str, image: ImageSpec, given: Mapping[str, Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of three channels: those that the weights were trained with, else those of the images."""
    if "pixels.mean" in given:
        mean, deviation = (given[f"pixels.{key}"].flatten() / 255 for key in ("mean", "deviation"))
        return tuple(mean.tolist()), tuple(deviation.tolist())
    if given:
        transforms = _published(name).transforms()
        return tuple(transforms.mean), tuple(transforms.std)
    repeats = 3 // len(image.mean)
    return image.mean * repeats, image.deviation * repeats


def _load(network: nn.Module, name: str, given: Mapping[str, Tensor], source: str) -> None:
    head = head_of(network)
    renamed = _renamed(given, head)
    if lines := differences(network, renamed, head):
        fitting = next((other for other in networks() if other != name and _fits(other, given)), None)
        advice = f"They fit model.name={fitting}." if fitting else "They are of another network."
        raise ValueError("\n  ".join([f"{source} do not fit {name}. {advice}", *lines]))
    if not fill(network, renamed, head):
        log.info("%s: their head is for another number of answers than this target, so a new one is trained", source)


def _fits(name: str, given: Mapping[str, Tensor]) -> bool:
    try:
        with torch.device("meta"):
            network = _draw(name, 1, (3, 224, 224), "auto", given)
    except NotImplementedError:  # a regnet computes its widths with tensors, which have no values there
        return False
    head = head_of(network)
    return not differences(network, _renamed(given, head), head)


def _renamed(given: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """Weights of a TorchvisionClassifier by the names that they have in torchvision; others as they are."""
    names = {name: re.sub(r"^body\.", "", re.sub(r"^head\.", f"{head}.", name)) for name in given}
    return {names[name]: values for name, values in given.items() if not name.startswith("pixels.")}


def _part(body: nn.Module, part: str, name: str) -> nn.Module:
    try:
        return body.get_submodule(part)
    except AttributeError:
        parts = ", ".join(child for child, _ in body.named_children())
        raise ValueError(
            f"freeze: {name} has no part {part!r}; it has {parts}, and parts of those, such as layer1.0."
        ) from None
