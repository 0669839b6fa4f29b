"""Stores: batches do not depend on the kind of store; samples and sizes."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.loading import batch_loader
from datamodules.loading.batch_loader import Batches
from datamodules.loading.store import (
    CPU,
    DiskStore,
    MemoryStore,
    Rows,
    as_bytes,
    choose,
    draw,
    join,
    save_part,
    size_of,
    take,
)
from datamodules.preparation.statistics import Sample
from datamodules.schema import DataError


def ragged(texts: list[list[int]]) -> Rows:
    lengths = torch.tensor([len(text) for text in texts], dtype=torch.int64)
    return {
        "numbers": torch.arange(len(texts)).float().unsqueeze(1),
        "tokens.t": torch.tensor([token for text in texts for token in text], dtype=torch.int32),
        "offsets.t": torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        "target": torch.arange(len(texts)),
    }


def texts_of(rows: Rows) -> list[list[int]]:
    offsets = rows["offsets.t"].tolist()
    return [rows["tokens.t"][start:end].tolist() for start, end in pairwise(offsets)]


texts = st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=12)


@given(texts, st.data())
def test_rows_are_taken_with_all_their_tokens(given_texts: list[list[int]], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(given_texts) - 1), max_size=20))
    taken = take(ragged(given_texts), torch.tensor(index, dtype=torch.int64))
    assert texts_of(taken) == [given_texts[row] for row in index]
    assert taken["target"].tolist() == index


@given(st.lists(texts, min_size=1, max_size=4))
def test_parts_are_joined_in_order(parts: list[list[list[int]]]) -> None:
    joined = join([ragged(part) for part in parts])
    assert texts_of(joined) == [text for part in parts for text in part]


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=9),
    st.integers(1, 40),
    st.integers(50, 4000),
    st.booleans(),
    st.integers(0, 3),
)
def test_batches_from_disk_are_those_from_memory(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], size: int, window: int, balanced: bool, epoch: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    parts = [ragged([[part, row] for row in range(length)]) for part, length in enumerate(lengths)]
    for part in parts:
        part["target"] = part["target"] % 3
    files = [folder / f"{number}.pt" for number in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        save_part(file, part)
    disk = DiskStore(files, lengths, sum(map(size_of, parts)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_loader, "WINDOW", window)
        loaders = [Batches(store, size, shuffle=True, balanced=balanced, seed=1) for store in (disk, disk.read(CPU))]
        for each in loaders:
            each.set_epoch(epoch)
        epochs = [list(each) for each in loaders]
        assert [len(batch["target"]) for batch in epochs[0]] == [len(batch["target"]) for batch in epochs[1]]
        assert len(epochs[0]) == len(loaders[0])
        for ours, theirs in zip(*epochs, strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        if not balanced:
            seen = sorted(tuple(text) for batch in epochs[0] for text in texts_of(batch))
            assert seen == sorted((part, row) for part, length in enumerate(lengths) for row in range(length))
        if len(epochs[0]) > 1:
            loaders[0].load_state_dict({"position": 1})
            assert texts_of(next(iter(loaders[0]))) == texts_of(epochs[0][1])


def test_balanced_sampling_draws_all_classes_equally_often() -> None:
    target = torch.tensor([0] * 950 + [1] * 50)
    batches = Batches(MemoryStore({"target": target}), 100, shuffle=True, balanced=True)
    seen = torch.cat([batch["target"] for batch in batches])
    assert len(seen) == 1000
    assert 430 < int(seen.sum()) < 570


@given(st.integers(1, 400), st.lists(st.integers(1, 60), min_size=1, max_size=12), st.randoms())
def test_a_sample_is_the_same_in_any_pieces_and_order(size: int, lengths: list[int], random: Any) -> None:
    frames, first = [], 0
    for length in lengths:
        frames.append((pl.DataFrame({"x": range(first, first + length)}), first))
        first += length
    whole = Sample(size)
    whole.add(pl.concat([frame for frame, _ in frames]), 0)
    one, other = Sample(size), Sample(size)
    random.shuffle(frames)
    for number, (frame, start) in enumerate(frames):
        (one if number % 2 else other).add(frame, start)
    if one._parts and other._parts:
        one.merge(other.ranked)
    merged = one if one._parts else other
    assert merged.frame.equals(whole.frame)
    assert len(whole.frame) == min(size, first)


@pytest.mark.parametrize(("text", "size"), [("2GB", 2 * 10**9), ("500 mb", 5 * 10**8), (1000, 1000), ("1.5KB", 1500)])
def test_sizes(text: str | int, size: int) -> None:
    assert as_bytes("data.memory_limit", text) == size


@pytest.mark.parametrize("text", ["much", "-1GB", "0", "1 GiB"])
def test_invalid_sizes_are_refused(text: str) -> None:
    with pytest.raises(DataError) as error:
        as_bytes("data.memory_limit", text)
    assert str(error.value) == f"data.memory_limit={text}: give a size such as 2GB or 500MB"


def test_the_store_is_chosen_by_the_limit() -> None:
    assert choose("auto", 40 * 10**6, 10**8, CPU) == ("memory", "40 MB of rows, less than half of 100 MB")
    assert choose("auto", 60 * 10**6, 10**8, CPU) == ("disk", "60 MB of rows, more than half of 100 MB")
    assert choose("disk", 10**6, 10**8, CPU) == ("disk", "1.0 MB of rows, given")
    with pytest.raises(DataError) as error:
        choose("device", 10**6, 10**8, CPU)
    assert str(error.value) == "data.store=device: the network is not on a CUDA device; use data.store=auto"


def test_a_uniform_sample_in_order_is_drawn_from_memory_and_disk(tmp_path: Path) -> None:
    parts = []
    for part in range(5):
        values = torch.arange(part * 1000, (part + 1) * 1000)
        offsets = torch.arange(1001) * 2
        parts.append({"target": values, "tokens.t": values.repeat_interleave(2).int(), "offsets.t": offsets})
        save_part(tmp_path / f"{part}.pt", parts[-1])
    whole = {
        "target": torch.arange(5000),
        "tokens.t": torch.arange(5000).repeat_interleave(2).int(),
        "offsets.t": torch.arange(5001) * 2,
    }
    memory = draw(MemoryStore(whole, [1000] * 5), 500)
    disk = draw(DiskStore([tmp_path / f"{part}.pt" for part in range(5)], [1000] * 5, 1), 500)
    for name, values in memory.items():
        torch.testing.assert_close(disk[name], values)
    chosen = memory["target"]
    assert len(chosen) == 500
    assert (chosen.diff() > 0).all()
    assert torch.histc(chosen.float(), 5, 0, 5000).min() > 70
    assert memory["tokens.t"].tolist() == chosen.repeat_interleave(2).tolist()
    assert draw(MemoryStore(whole), 5000)["target"].tolist() == list(range(5000))
