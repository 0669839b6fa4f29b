"""Reading pretrained weights, comparing their names and shapes with a network, and copying them."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

MAX_NAMES = 10
"""Maximum number of names that a message lists of each kind."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a state dict file or of the network in a Lathe checkpoint, by name.

    `path` may be a run folder, whose best checkpoint is read. No code in the file is run. Raises ValueError if the
    file is missing, damaged or not a state dict.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "checkpoints" / "best.ckpt"
    if not file.is_file():
        raise ValueError(f"weights={path}: no such file: {file}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a model.pt, which is rejected below
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged and other files
        raise ValueError(
            f"weights={path}: cannot be read. The file is damaged or has contents other than tensors, like a model.pt."
            " Use a file written by torch.save(network.state_dict(), FILE), or a run folder."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not content or not isinstance(content, dict) or not all(isinstance(each, Tensor) for each in content.values()):
        raise ValueError(
            f"weights={path}: is not a state dict, which maps names to tensors."
            " Use a file written by torch.save(network.state_dict(), FILE)."
        )
    prefix = "network."
    network = {name.removeprefix(prefix): each for name, each in content.items() if name.startswith(prefix)}
    return network or dict(content)


def differences(network: nn.Module, weights: Mapping[str, Tensor], head: str) -> list[str]:
    """Returns lines with the names and shapes in which `weights` differ from the network; empty if they fit.

    The linear layer called `head` may be missing or have another number of outputs.
    """
    own, given = _without_batch_counts(network.state_dict()), _without_batch_counts(weights)
    shapes = []
    for name in own.keys() & given.keys():
        here, there = tuple(own[name].shape), tuple(given[name].shape)
        if here != there and not (_is_in(head, name) and here[1:] == there[1:]):
            shapes.append(f"{name} {there} instead of {here}")
    kinds = {
        "missing": [name for name in own.keys() - given.keys() if not _is_in(head, name)],
        "unexpected": list(given.keys() - own.keys()),
        "with other shapes": shapes,
    }
    return [f"{len(names)} {kind}: {_list(sorted(names))}" for kind, names in kinds.items() if names]


@torch.no_grad()
def copy_weights(network: nn.Module, weights: Mapping[str, Tensor], head: str) -> bool:
    """Copies weights without `differences` to the network; returns whether the head fits and was copied."""
    own, given = _without_batch_counts(network.state_dict()), _without_batch_counts(weights)
    same_head = all(name in given and given[name].shape == own[name].shape for name in own if _is_in(head, name))
    for name, values in own.items():
        if same_head or not _is_in(head, name):
            values.copy_(given[name])
    return same_head


def _without_batch_counts(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the batch counts of norms, which are not used and which older files do not have."""
    return {name: values for name, values in weights.items() if not name.endswith(".num_batches_tracked")}


def _is_in(layer: str, name: str) -> bool:
    return name.startswith(f"{layer}.")


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
