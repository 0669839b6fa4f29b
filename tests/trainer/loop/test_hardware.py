"""The cost of a step, and the number of threads chosen for it."""

import pytest
import torch
from torch import Tensor, nn

from models.layers.common import BatchNorm
from tests.models.problems import build, rows
from trainer.loop.hardware import multiplications
from trainer.loop.trainer import Trainer


class Network(nn.Module):
    """Layers of every kind that matters, and random noise, as in Word2Vec."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(10_000, 5)
        self.convolution = nn.Conv2d(2, 5, 3, padding=1)
        self.norm = BatchNorm(5)
        self.head = nn.Sequential(nn.Dropout(), nn.Linear(10, 3))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        image = self.norm(self.convolution(batch["images.photo"].float())).mean((2, 3)) + torch.rand(5)
        output: Tensor = self.head(torch.cat([self.words(batch["words"]), image], 1))
        return output


def test_convolutions_count_per_pixel_and_embedding_lookups_count_nothing() -> None:
    network = Network()
    rows = {"words": torch.zeros(4, 7, dtype=torch.int32), "images.photo": torch.ones(4, 2, 6, 8).byte()}
    state, before = torch.get_rng_state(), {name: value.clone() for name, value in network.state_dict().items()}
    assert multiplications(network, rows) == 4 * (6 * 8 * 5 * 2 * 3 * 3 + 10 * 3)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("cost", "took", "chosen"),
    [
        (19_900_000, {}, "1 of 12 (19.9 million multiplications a step: few)"),
        (30_000_000, {1: 4, 2: 3.6}, "1 of 12 (a step takes 4 ms with 1, 3.6 ms with 2)"),
        (
            1e9,
            {1: 4, 2: 3, 4: 2, 8: 1.9},
            "4 of 12 (a step takes 4 ms with 1, 3 ms with 2, 2 ms with 4, 1.9 ms with 8)",
        ),
        (
            1e9,
            {1: 9, 2: 5, 4: 3, 8: 2, 12: 1},
            "12 of 12 (a step takes 9 ms with 1, 5 ms with 2, 3 ms with 4, 2 ms with 8, 1 ms with 12)",
        ),
    ],
)
def test_threads_are_doubled_while_a_step_gets_faster(
    cost: float, took: dict[int, float], chosen: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_to: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", set_to.append)
    monkeypatch.setattr("trainer.loop.hardware.available_cores", lambda: 12)
    monkeypatch.setattr("trainer.loop.hardware.THREADS", 5 if 5 in took else 12)
    monkeypatch.setattr("trainer.loop.hardware.multiplications", lambda network, rows: cost)
    monkeypatch.setattr("trainer.loop.hardware.seconds_per_step", lambda module, batch, threads: took[threads] / 1000)
    caplog.set_level("INFO", logger="trainer.loop.trainer")
    Trainer(accelerator="cpu", logger=False).prepare(build("binary"), rows("binary", 8))
    assert f"; threads: {chosen}; loop: fast" in caplog.messages[-1]
    assert set_to == [int(chosen.split()[0])]
