"""Splits: partitions with the given fractions, by classes, groups, times, copies, files and folds."""

import hashlib

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from datamodules.schema import DataError
from datamodules.split import Split, SplitBy

FRACTIONS = (0.64, 0.16, 0.20)
SEEDS = st.integers(0, 1000)


def classes(rows: int) -> pl.Series:
    """Three classes, one of them rare."""
    row = np.arange(rows)
    return pl.Series("class", np.where(row % 7 == 0, "rare", np.where(row % 3 == 0, "some", "most")))


def sizes(split: np.ndarray) -> list[int]:
    """Rows of train, val and test."""
    return [int((split == side).sum()) for side in range(3)]


@pytest.mark.parametrize(
    ("by", "digests"),
    [
        ("stratified", ["715266645db8f055", "e50eb40e32d938f0", "7a7b2ea8602cfde3"]),
        ("random", ["b83c9b4cf214d0ce", "c9b5b3a6dae241af", "7c6c0450e01409eb"]),
    ],
)
def test_the_splits_of_published_results_are_unchanged(by: SplitBy, digests: list[str]) -> None:
    copy = np.where(np.arange(1000) % 10 == 9, np.arange(1000) - 8, np.arange(1000))
    for target in (classes(1000), classes(1000).cast(pl.Categorical)):
        splits = [Split(by, seed=seed).assign(target, "multiclass", first_copy=copy) for seed in range(3)]
        assert [hashlib.sha256(split.tobytes()).hexdigest()[:16] for split in splits] == digests


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.integers(30, 400), st.floats(0.1, 0.9), st.none() | st.integers(0, 4))
def test_stratified_keeps_each_class_within_a_row_of_its_share(
    seed: int, rows: int, share: float, fold: int | None
) -> None:
    positive = max(int(rows * share), 10)
    target = pl.Series(["yes"] * positive + ["no"] * max(rows - positive, 10))
    split = Split(seed=seed, fold=fold).assign(target, "binary")
    for name in ("yes", "no"):
        members = split[(target == name).to_numpy()]
        train, val, test = sizes(members)
        assert train + val + test == len(members)
        assert abs(test - 0.2 * len(members)) < 1 + 1e-9
        assert abs(val - 0.2 * (train + val)) < 1 + 1e-9  # of the other rows, 0.16 / (0.64 + 0.16)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.none() | st.integers(0, 4))
def test_a_regression_target_is_stratified_by_its_tenths(seed: int, fold: int | None) -> None:
    values = np.random.default_rng(seed).permutation(np.linspace(0, 1, 1000) ** 3)
    split = Split(seed=seed, fold=fold).assign(pl.Series(values), "regression")
    tenth = np.argsort(np.argsort(values)) // 100
    for part in range(10):
        np.testing.assert_allclose(sizes(split[tenth == part]), [64, 16, 20], atol=1)


def test_a_regression_target_with_few_rows_or_values_is_split() -> None:
    assert sizes(Split().assign(pl.Series([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10]), "regression")) in ([6, 2, 2], [7, 1, 2])
    np.testing.assert_allclose(
        sizes(Split().assign(pl.Series([0.0] * 900 + [5.0] * 100), "regression")), [640, 160, 200], atol=2
    )


@pytest.mark.parametrize("by", ["stratified", "random", "group"])
@pytest.mark.parametrize("fold", [None, 1])
def test_the_split_depends_on_the_seed(by: SplitBy, fold: int | None) -> None:
    column = pl.Series("who", np.arange(1000) // 7) if by == "group" else None
    first, again, other = (
        Split(by, column="who" if by == "group" else None, seed=seed, fold=fold).assign(
            classes(1000), "multiclass", column=column
        )
        for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()
    np.testing.assert_allclose(sizes(first), [640, 160, 200], atol=0 if by == "random" else 7)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["stratified", "random", "group"]), SEEDS, st.integers(2, 7), st.booleans())
def test_each_row_is_tested_in_one_fold(by: SplitBy, seed: int, folds: int, copies: bool) -> None:
    rows = np.arange(300)
    who = pl.Series("who", rows * rows % 67)
    first_copy = np.where(rows % 11 == 10, rows - 5, rows) if copies else None
    tested = np.zeros(300, dtype=int)
    for fold in range(folds):
        split = Split(by, column="who" if by == "group" else None, seed=seed, folds=folds, fold=fold).assign(
            classes(300), "multiclass", column=who if by == "group" else None, first_copy=first_copy
        )
        assert set(split.tolist()) == {0, 1, 2}
        tested += split == 2
        if by == "group":
            assert who.to_frame().with_columns(split=split).unique()["who"].is_unique().all()
        elif first_copy is not None:
            assert (split == split[first_copy]).all()
    assert (tested == 1).all()


def test_copies_stay_with_the_first_copy_and_are_not_counted() -> None:
    first_copy = np.concatenate([np.arange(100), np.zeros(900, dtype=int)])
    for seed in range(5):
        split = Split("random", seed=seed).assign(classes(1000), "multiclass", first_copy=first_copy)
        assert (split[100:] == split[0]).all()
        assert sizes(split[:100]) == [64, 16, 20]


GROUPS = st.lists(st.integers(1, 40), min_size=3, max_size=60)


@settings(max_examples=50, deadline=None)
@given(GROUPS, SEEDS)
@example([1] * 3, 0)
@example([16, 24, 25], 0)
@example([1000, 1, 1], 0)
def test_groups_stay_together_and_the_largest_bounds_the_error_of_the_fractions(group: list[int], seed: int) -> None:
    who = pl.Series("who", np.random.default_rng(seed).permutation(np.repeat(np.arange(len(group)), group)))
    split = Split("group", column="who", seed=seed).assign(pl.Series(["a"] * len(who)), "binary", column=who)
    assert who.to_frame().with_columns(split=split).unique()["who"].is_unique().all()
    assert min(sizes(split)) > 0
    wanted = np.array(FRACTIONS) * len(who)
    assert abs(np.array(sizes(split)) - wanted).max() <= max(group)


def test_groups_are_stratified() -> None:
    """10 of 50 groups contain only the rare class; a random draw would often leave none of them for the test."""
    who = pl.Series("who", np.repeat(np.arange(50), 4))
    target = pl.Series(np.where(np.repeat(np.arange(50), 4) < 10, "rare", "most"))
    for seed in range(20):
        split = Split("group", column="who", seed=seed).assign(target, "binary", column=who)
        assert sizes(split[(target == "rare").to_numpy()]) in ([24, 8, 8], [28, 4, 8])


def test_large_groups_reach_the_small_splits() -> None:
    """If all large groups were for training, the model would be evaluated on small groups only."""
    who = pl.Series("who", np.concatenate([np.repeat(np.arange(50), 100), np.arange(50, 5050)]))
    split = Split("group", column="who").assign(pl.Series(np.ones(len(who))), "regression", column=who)
    np.testing.assert_allclose(sizes(split[:5000]), [3200, 800, 1000], atol=100)
    np.testing.assert_allclose(sizes(split), [6400, 1600, 2000], atol=1)


@pytest.mark.parametrize("fold", [None, 3])
def test_tens_of_thousands_of_groups_are_split(fold: int | None) -> None:
    generator = np.random.default_rng(0)
    who = generator.integers(0, 40_000, 200_000)
    target = pl.Series(np.where((who % 10 == 0) ^ (generator.random(200_000) < 0.1), "rare", "most"))
    split = Split("group", column="who", fold=fold).assign(target, "binary", column=pl.Series("who", who))
    sides = pl.DataFrame({"who": who, "split": split}).unique()
    assert sides["who"].is_unique().all()
    np.testing.assert_allclose(sizes(split), [128_000, 32_000, 40_000], atol=30)
    rare = split[(target == "rare").to_numpy()]
    np.testing.assert_allclose(np.array(sizes(rare)) / len(rare), FRACTIONS, atol=0.01)


def test_a_row_without_a_group_forms_one_with_its_copies() -> None:
    who = pl.Series("who", ["a", " a", "NA", None] * 30 + ["b", "b", "c", "c"])
    first_copy = np.arange(124)
    first_copy[np.arange(2, 120, 8)] = 2
    split = Split("group", column="who").assign(classes(124), "multiclass", column=who, first_copy=first_copy)
    cells = who.str.strip_chars()
    assert len(set(split[(cells == "a").fill_null(False).to_numpy()])) == 1
    assert set(split[2:120:8]) == {split[2]}
    assert len(set(split[who.is_null().to_numpy()])) == 3
    known = Split("group", column="who").assign(classes(124), "multiclass", column=who, missing=[""])
    assert len(set(known[(cells == "NA").fill_null(False).to_numpy()])) == 1


def test_groups_take_precedence_over_copies() -> None:
    who = pl.Series("who", np.repeat(np.arange(20), 10))
    split = Split("group", column="who").assign(
        classes(200), "multiclass", column=who, first_copy=np.zeros(200, dtype=int)
    )
    np.testing.assert_allclose(sizes(split), [128, 32, 40], atol=10)


TIMES = st.lists(st.integers(-50, 50), min_size=30, max_size=200)


@settings(max_examples=50, deadline=None)
@given(TIMES, st.integers(0, 10), st.none() | st.integers(0, 4))
def test_gaps_separate_training_validation_and_test(times: list[int], gap: int, fold: int | None) -> None:
    when = np.array(times, dtype=float)
    try:
        split = Split("time", column="when", gap=gap, fold=fold).assign(
            classes(len(when)), "multiclass", column=pl.Series("when", times)
        )
    except DataError:
        assume(gap == 0)  # a gap may remove all rows of a small split
        raise
    train, val, test = (when[split == side] for side in range(3))
    starts = min(val.min(), test.min()), test.min()
    for before, start in zip((train, val), starts, strict=True):
        assert before.max() < start - gap if gap else before.max() <= start
    aside = when[split == -1]
    in_gap = np.any([(start - gap <= aside) & (aside <= start) for start in starts], axis=0)
    after = aside >= test.max()
    assert (in_gap if fold is None else in_gap | after).all()


def test_folds_by_time_test_each_later_part_once_and_train_on_all_earlier_rows() -> None:
    tested = np.zeros(600, dtype=int)
    for fold in range(5):
        split = Split("time", fold=fold).assign(classes(600), "multiclass")
        start = 100 * (fold + 1)
        assert np.flatnonzero(split == 2).tolist() == list(range(start, start + 100))
        assert np.flatnonzero(split == 1).tolist() == list(range(start - start // 5, start))
        assert (split[start + 100 :] == -1).all()
        tested += split == 2
    assert tested.tolist() == [0] * 100 + [1] * 500


@pytest.mark.parametrize(
    ("cells", "gap", "aside"),
    [
        (["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04", "2024-01-06", "2024-01-07", "2024-01-09"], 1.5, []),
        (["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04", "2024-01-06", "2024-01-07", "2024-01-09"], 2, [3]),
        (["10", "20", "30", "40", "45", "60", "70"], 5, [3]),
        (None, 1, [3]),
    ],
)
def test_a_gap_is_in_days_in_the_columns_own_unit_or_in_rows(
    cells: list[str] | None, gap: float, aside: list[int]
) -> None:
    column = None if cells is None else pl.Series("when", cells)
    split = Split("time", column=None if cells is None else "when", fractions=(4, 2, 1), gap=gap).assign(
        classes(7), "multiclass", column=column
    )
    inside = np.flatnonzero(split == -1)
    assert [row for row in inside.tolist() if row < 4] == aside


def test_the_latest_rows_are_the_test_and_numbers_are_ordered_as_numbers() -> None:
    column = pl.Series("when", ["10", "9", "1", "2", "3", "4", "5", "6", "7", "8"])
    split = Split("time", column="when", fractions=(0.6, 0.2, 0.2)).assign(classes(10), "multiclass", column=column)
    assert split.tolist() == [2, 2, 0, 0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("cells", [["31/01/2024", "01/02/2024", "02/02/2024", "01/01/2023", "30/12/2023"], None])
def test_dates_are_ordered_as_dates(cells: list[str] | None) -> None:
    text = cells or ["2024-01-31", "2024-02-01", "2024-02-02", "2023-01-01", "2023-12-30"]
    column = pl.Series("when", text)
    if cells is None:
        column = column.str.to_date()
    split = Split("time", column="when", fractions=(0.6, 0.2, 0.2)).assign(classes(5), "multiclass", column=column)
    assert split.tolist() == [0, 1, 2, 0, 0]


def test_rows_with_equal_times_keep_their_order() -> None:
    column = pl.Series("when", [1] * 600 + [0] * 400)
    split = Split("time", column="when").assign(classes(1000), "multiclass", column=column)
    assert np.flatnonzero(split == 2).tolist() == list(range(400, 600))


def test_a_column_gives_the_split() -> None:
    column = pl.Series("part", ["train", " Test", "validation", "VAL"])
    split = Split("column", column="part").assign(classes(4), "multiclass", column=column)
    assert split.tolist() == [0, 2, 1, 1]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["stratified", "random", "group", "time"]), SEEDS, st.sampled_from([(1,), (2,), (1, 2)]))
def test_given_files_keep_their_split_and_others_are_divided(by: SplitBy, seed: int, given: tuple[int, ...]) -> None:
    files = np.concatenate([np.zeros(400, np.int8), *(np.full(100, side, np.int8) for side in given)])
    rows = np.arange(len(files))
    column = pl.Series("when", rows % 100) if by in ("group", "time") else None
    split = Split(by, column=None if column is None else "when", seed=seed).assign(
        classes(len(files)), "multiclass", column=column, first_copy=np.where(rows < 420, rows, 7), files=files
    )
    assert (split[400:] == files[400:]).all()
    shares = [0.0 if side in given else share for side, share in enumerate(FRACTIONS)]
    np.testing.assert_allclose(sizes(split[:400]), np.array(shares) / sum(shares) * 400, atol=5)


def test_folds_with_given_validation_rows_divide_the_others() -> None:
    files = np.array([0] * 100 + [1] * 10, dtype=np.int8)
    splits = [Split(fold=fold).assign(classes(110), "multiclass", files=files) for fold in range(5)]
    assert (np.sum([split == 2 for split in splits], axis=0)[:100] == 1).all()
    assert all((split == 1).tolist() == [False] * 100 + [True] * 10 for split in splits)
