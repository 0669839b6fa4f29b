"""Files of weights: what is in them, and how it goes into a network, each name and shape compared."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

SHOWN = 10
"""Names that a message lists of each kind."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a state dict that torch wrote, by name; of a checkpoint of Lathe those of its network.

    A run folder stands for its best checkpoint. Nothing in the file is run. ValueError where it is absent or damaged,
    or holds other things.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "checkpoints" / "best.ckpt"
    if not file.is_file():
        raise ValueError(f"weights={path}: there is no file {file}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a model.pt, which is refused below
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for what is damaged or no file of tensors
        raise ValueError(
            f"weights={path}: cannot be read. It is damaged, or holds other things than tensors, as a model.pt does."
            " Give a file written by torch.save(network.state_dict(), FILE), or a run folder."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not content or not isinstance(content, dict) or not all(isinstance(each, Tensor) for each in content.values()):
        raise ValueError(
            f"weights={path}: holds no state dict, which is a name and a tensor for each weight."
            " torch.save(network.state_dict(), FILE) writes one."
        )
    prefix = "network."
    network = {name.removeprefix(prefix): each for name, each in content.items() if name.startswith(prefix)}
    return network or dict(content)


def differences(network: nn.Module, weights: Mapping[str, Tensor], head: str) -> list[str]:
    """Lines that say which names and shapes of `weights` are not the network's; none where they fit.

    The linear layer called `head` may be absent from them or have another number of outputs.
    """
    own, given = _counted_out(network.state_dict()), _counted_out(weights)
    shapes = []
    for name in own.keys() & given.keys():
        here, there = tuple(own[name].shape), tuple(given[name].shape)
        if here != there and not (_of(head, name) and here[1:] == there[1:]):
            shapes.append(f"{name} {there} instead of {here}")
    kinds = {
        "missing": [name for name in own.keys() - given.keys() if not _of(head, name)],
        "unexpected": list(given.keys() - own.keys()),
        "of other shapes": shapes,
    }
    return [f"{len(names)} {kind}: {_first(sorted(names))}" for kind, names in kinds.items() if names]


@torch.no_grad()
def fill(network: nn.Module, weights: Mapping[str, Tensor], head: str) -> bool:
    """Copies weights that have no `differences`; the head only where it has the network's shape, which is returned."""
    own, given = _counted_out(network.state_dict()), _counted_out(weights)
    same_head = all(name in given and given[name].shape == own[name].shape for name in own if _of(head, name))
    for name, values in own.items():
        if same_head or not _of(head, name):
            values.copy_(given[name])
    return same_head


def _counted_out(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the batches that a norm has seen, which play no part and which older files do not have."""
    return {name: values for name, values in weights.items() if not name.endswith(".num_batches_tracked")}


def _of(layer: str, name: str) -> bool:
    return name.startswith(f"{layer}.")


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
