"""What a step costs, by which the threads are chosen."""

import torch
from torch import Tensor, nn

from models.layers import BatchNorm
from trainer.loop import multiplications


class Network(nn.Module):
    """Layers of every kind that matters, and noise, as Word2Vec draws it."""

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


def test_convolutions_count_by_their_pixels_and_vectors_looked_up_count_nothing() -> None:
    network = Network()
    rows = {"words": torch.zeros(4, 7, dtype=torch.int32), "images.photo": torch.ones(4, 2, 6, 8).byte()}
    state, before = torch.get_rng_state(), {name: value.clone() for name, value in network.state_dict().items()}
    assert multiplications(network, rows) == 4 * (6 * 8 * 5 * 2 * 3 * 3 + 10 * 3)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert torch.equal(torch.get_rng_state(), state)
