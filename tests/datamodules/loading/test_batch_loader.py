"""Batches: every row once per epoch, a reproducible order, no batch of one row."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.loading.batch_loader import Batches
from datamodules.loading.store import MemoryStore


def batches(rows: int, size: int, **settings: Any) -> Batches:
    store = MemoryStore({"target": torch.arange(rows), "x": torch.arange(rows) * 2})
    return Batches(store, size, **settings)


def order(loader: Batches) -> list[int]:
    return [row for batch in loader for row in batch["target"].tolist()]


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 5))
def test_an_epoch_contains_every_row_once_in_len_batches(rows: int, size: int, epoch: int) -> None:
    loader = batches(rows, size, shuffle=True, seed=3)
    loader.set_epoch(epoch)
    seen = list(loader)
    assert len(seen) == len(loader)
    assert sorted(torch.cat([batch["target"] for batch in seen]).tolist()) == list(range(rows))
    assert all(torch.equal(batch["x"], batch["target"] * 2) for batch in seen)
    if size > 1 and rows > 1:
        assert min(len(batch["target"]) for batch in seen) > 1


def test_the_order_depends_only_on_seed_and_epoch() -> None:
    first, second = batches(50, 8, shuffle=True, seed=1), batches(50, 8, shuffle=True, seed=1)
    list(first)
    first.set_epoch(7)
    second.set_epoch(7)
    assert order(first) == order(second)
    second.set_epoch(8)
    assert order(first) != order(second)
    assert order(batches(50, 8, shuffle=True, seed=1)) != order(batches(50, 8, shuffle=True, seed=2))


def test_without_shuffling_rows_keep_their_order() -> None:
    assert torch.cat([batch["target"] for batch in batches(10, 4)]).tolist() == list(range(10))


def test_a_saved_position_resumes_with_the_next_batch_and_then_whole_epochs() -> None:
    loader = batches(10, 3, shuffle=True)
    whole = [batch["target"].tolist() for batch in loader]
    iterator = iter(loader)
    next(iterator)
    resumed = batches(10, 3, shuffle=True)
    resumed.load_state_dict(loader.state_dict())
    assert [batch["target"].tolist() for batch in resumed] == whole[1:]
    assert [batch["target"].tolist() for batch in resumed] == whole


def test_an_interrupted_iteration_starts_over() -> None:
    loader = batches(10, 3)
    next(iter(loader))
    assert [batch["target"].tolist() for batch in loader] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
