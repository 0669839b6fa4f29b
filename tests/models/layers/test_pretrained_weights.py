"""Files of pretrained weights: reading, refused files, comparison of names and shapes, and copying."""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.layers.pretrained_weights import copy_weights, differences, read_weights


def network(width: int = 4, outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, outputs))


def saved(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def test_a_state_dict_and_a_checkpoint_and_a_run_folder_are_read(tmp_path: Path) -> None:
    state = network().state_dict()
    checkpoint = {
        "state_dict": {f"network.{name}": values for name, values in state.items()} | {"loss.x": state["0.bias"]}
    }
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for path in (
        saved(tmp_path / "plain.pth", state),
        saved(tmp_path / "some.ckpt", checkpoint),
        Path(saved(tmp_path / "run" / "checkpoints" / "best.ckpt", checkpoint)).parents[1],
    ):
        read = read_weights(path)
        assert list(read) == list(state)
        assert all(torch.equal(read[name], values) for name, values in state.items())


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    whole = Path(saved(tmp_path / "whole.pt", network().state_dict())).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("no tensors here")
    saved(tmp_path / "network.pt", network())  # reading it would run its class
    for name in ("cut.pt", "empty.pt", "text.pt", "network.pt"):
        path = tmp_path / name
        message = (
            f"weights={path}: cannot be read. The file is damaged or has contents other than tensors, like a model.pt."
            " Use a file written by torch.save(network.state_dict(), FILE), or a run folder."
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            read_weights(path)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    (tmp_path / "trap.pt").write_bytes(pickle.dumps({"0.weight": Trap()}))
    with pytest.raises(ValueError, match="cannot be read"):
        read_weights(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], {}, {"epoch": 3}, {"model": {"0.bias": torch.zeros(2)}}])
def test_a_file_with_other_contents_is_refused(tmp_path: Path, content: Any) -> None:
    path = saved(tmp_path / "other.pt", content)
    message = (
        f"weights={path}: is not a state dict, which maps names to tensors."
        " Use a file written by torch.save(network.state_dict(), FILE)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_weights(path)


@pytest.mark.parametrize("name", ["absent.pt", ""])
def test_a_missing_file_and_a_folder_without_a_checkpoint_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    expected = path if name else path / "checkpoints" / "best.ckpt"
    with pytest.raises(ValueError, match=f"^{re.escape(f'weights={path}: no such file: {expected}.')}$"):
        read_weights(path)


def test_different_names_and_shapes_are_listed() -> None:
    given = network(width=5).state_dict() | {"extra": torch.zeros(1)}
    del given["1.weight"]
    assert differences(network(), given, "2") == [
        "1 missing: 1.weight",
        "1 unexpected: extra",
        "6 with other shapes: 0.bias (5,) instead of (4,), 0.weight (5, 2) instead of (4, 2),"
        " 1.bias (5,) instead of (4,), 1.running_mean (5,) instead of (4,), 1.running_var (5,) instead of (4,),"
        " 2.weight (3, 5) instead of (3, 4)",
    ]


def test_at_most_ten_names_are_listed() -> None:
    wide = nn.Sequential(*[nn.Linear(1, 1) for _ in range(13)])
    (line,) = differences(wide, {}, "12")
    names = sorted(f"{layer}.{kind}" for layer in range(12) for kind in ("weight", "bias"))
    assert line == f"24 missing: {', '.join(names[:10])} and 14 more"


def test_weights_are_copied_except_a_head_with_another_shape() -> None:
    torch.manual_seed(0)
    source, same, other = network(), network(), network(outputs=7)
    source[1].running_mean.fill_(0.5)
    drawn = other[2].weight.clone()
    given = {name: values for name, values in source.state_dict().items() if "num_batches" not in name}
    assert differences(same, given, "2") == differences(other, given, "2") == []
    assert copy_weights(same, given, "2")
    assert not copy_weights(other, given, "2")
    for name, values in given.items():
        assert torch.equal(same.state_dict()[name], values), name
        assert name.startswith("2.") or torch.equal(other.state_dict()[name], values), name
    assert torch.equal(other[2].weight, drawn)
    body = {name: values for name, values in given.items() if not name.startswith("2.")}
    assert differences(other, body, "2") == []
    assert not copy_weights(other, body, "2")
