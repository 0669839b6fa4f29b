"""The features: their output for raw cells, in Python and in TorchScript."""

import math
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common import cells
from datamodules.features import Categories, Dates, Features, Images, Numbers, Texts
from datamodules.features.categories import clean, fnv1a
from datamodules.features.numbers import quantiles

NAN = float("nan")
MISSING = ("", "?", "NA")


def column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def encode(numbers: Numbers, values: list[float]) -> torch.Tensor:
    return numbers({"x": torch.tensor(values, dtype=torch.float64)}, len(values))


def test_standard_scaling_has_mean_zero_and_standard_deviation_one_on_training_rows() -> None:
    values = [1.0, 2.0, 3.0, 10.0]
    encoded = encode(Numbers(["x"], column(values), "standard"), values)
    assert encoded.mean().item() == pytest.approx(0, abs=1e-6)
    assert encoded.std(correction=0).item() == pytest.approx(1)


def test_robust_scaling_bounds_outliers() -> None:
    numbers = Numbers(["x"], column([1.0, 2.0, 3.0, 4.0, 5.0]), "robust")
    assert encode(numbers, [3.0, 1e9, -1e9]).flatten().tolist() == pytest.approx([0, 3, -3], abs=1e-6)


def test_robust_scaling_uses_the_full_range_if_the_quartiles_are_equal() -> None:
    numbers = Numbers(["x"], column([0.0] * 99 + [4.0]), "robust")
    assert encode(numbers, [4.0]).item() == pytest.approx(2 / math.sqrt(1 + (2 / 3) ** 2))


def test_quantile_scaling_agrees_with_scikit_learn() -> None:
    from sklearn.preprocessing import QuantileTransformer

    values = torch.randn(3000, 1, dtype=torch.float64).exp()
    theirs = QuantileTransformer(n_quantiles=100, output_distribution="normal", subsample=None).fit_transform(values)
    ours = Numbers(["x"], values, "quantile")({"x": values[:, 0]}, 3000)
    inside = abs(theirs) < 2.5
    torch.testing.assert_close(ours[inside], torch.from_numpy(theirs)[inside].float(), atol=2e-3, rtol=0)


def test_a_constant_column_becomes_zero() -> None:
    for scaling in ("standard", "robust"):
        numbers = Numbers(["x"], column([7.0, 7.0, 7.0]), scaling)
        assert encode(numbers, [7.0, 8.0]).tolist() == [[0.0], [0.0]]


def test_missing_becomes_the_median_with_an_indicator_only_if_training_had_missing_values() -> None:
    numbers = Numbers(
        ["x", "y"], torch.tensor([[1.0, 1.0], [NAN, 2.0], [3.0, 3.0]], dtype=torch.float64), "standard", indicated=["x"]
    )
    assert numbers.indicated.tolist() == [0]
    encoded = numbers({"x": torch.tensor([NAN, 1.0]), "y": torch.tensor([NAN, 2.0])}, 2)
    assert encoded[:, 2].tolist() == [1.0, 0.0]
    assert encoded[0, 0] == encoded[1, 0]  # the lower median of 1 and 3 is 1
    assert encoded[0, 1] == encoded[1, 1] == 0.0


def test_infinity_and_replaced_values_are_missing() -> None:
    numbers = Numbers(["x"], column([0.0, 1.0, 2.0, 3.0, 5.0]), "standard", {"x": {0.0: None, 5.0: 4.0}}, ["x"])
    encoded = encode(numbers, [0.0, math.inf, -math.inf, 5.0, 4.0])
    assert encoded[:, 1].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert encoded[3, 0] == encoded[4, 0]


def test_a_replaced_value_is_not_replaced_again() -> None:
    numbers = Numbers(["x"], column([1.0, 2.0, 3.0, 4.0]), "standard", {"x": {1.0: 2.0, 2.0: 3.0}})
    encoded = encode(numbers, [1.0, 2.0, 3.0])
    assert encoded[1] == encoded[2] > encoded[0]


def test_integers_and_an_absent_column_are_accepted() -> None:
    numbers = Numbers(["x", "y"], torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64), "standard")
    encoded = numbers({"x": torch.tensor([1, 3])}, 2)
    assert encoded[:, 0].tolist() == [-1.0, 1.0]
    assert encoded[:, 1].tolist() == [-1.0, -1.0]  # the lower median of 2 and 4


def test_levels_are_ordered_by_count_and_zero_is_unknown() -> None:
    features = Categories(["c"], [{"a": 1, "b": 5, "": 2}], MISSING)
    codes = features({"c": ["b", " b ", "", "?", " NA\u00a0", "a", "never seen"]}, 7)
    assert codes.flatten().tolist() == [1, 1, 2, 2, 2, 3, 0]
    assert features.sizes == [4]


def test_missing_is_unknown_if_training_had_no_missing_values() -> None:
    assert Categories(["c"], [{"a": 1}], MISSING)({"c": ["", "?"]}, 2).flatten().tolist() == [0, 0]


def test_replaced_levels_have_the_code_of_the_new_level() -> None:
    features = Categories(["c"], [{"new": 3, "": 1}], MISSING, {"c": {"old": "new", "bad": None}})
    assert features({"c": ["old", " old", "bad", "new"]}, 4).flatten().tolist() == [1, 1, 2, 1]


def test_only_the_most_frequent_levels_are_kept() -> None:
    features = Categories(["c"], [{"a": 3, "b": 2, "c": 1}], MISSING, max_levels=2)
    assert features({"c": ["a", "b", "c"]}, 3).flatten().tolist() == [1, 2, 0]


def test_rare_and_unseen_levels_of_a_wide_column_share_buckets_by_hash() -> None:
    counts = [{str(level): 100 - level for level in range(100)} | {"": 1}, {"a": 1, "b": 1}]
    features = Categories(["wide", "narrow"], counts, MISSING, {"wide": {"old": "99", "no": None}}, 10, 8)
    assert features.sizes == [1 + 10 + 8, 3]
    cells = ["0", "9", "99", " 99.0", "old", "never seen", "?", "no"]
    wide, narrow = features({"wide": cells, "narrow": ["c"] * len(cells)}, len(cells)).unbind(1)
    assert wide[:2].tolist() == [1, 10]
    assert wide[2] == wide[3] == wide[4] == 11 + fnv1a("99") % 8
    assert wide[5] == 11 + fnv1a("never seen") % 8
    assert wide[6:].tolist() == [0, 0]  # missing is not one of the ten levels, so it is unknown
    assert not narrow.any()
    buckets = features({"wide": [f"level {index}" for index in range(4000)]}, 4000)[:, 0].bincount()[11:]
    assert len(buckets) == 8
    assert int(buckets.min()) > 400


def test_the_hash_is_fnv_1a() -> None:
    assert [fnv1a(text) for text in ("", "a", "foobar")] == [0x811C9DC5, 0xE40C292C, 0xBF9CF968]


_SCRIPTED_CLEAN = torch.jit.script(clean)
cell_text = st.one_of(
    st.text(max_size=8),
    st.from_regex(r"\A[ \t\u00a0]?[+-]?[0-9]{0,3}\.?0{0,2}[ \n]?\Z"),
    st.sampled_from(["?", " NA ", "12.0", "-3.00", "+.0", ".0", "0.", "٣.0", "²"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(cell_text, min_size=1, max_size=20))
def test_the_artifact_and_the_reader_clean_cells_equally(texts: list[str]) -> None:
    ours = [clean(text, cells.BLANKS) for text in texts]
    scripted = _SCRIPTED_CLEAN
    assert [scripted(text, cells.BLANKS) for text in texts] == ours
    theirs = cells.clean_text(pl.Series(texts, dtype=pl.String), MISSING).fill_null("")
    assert ["" if text in MISSING else text for text in ours] == theirs.to_list()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | cell_text | st.text(), max_size=20))
def test_a_column_gets_the_codes_of_the_scripted_features(cells: list[str | None]) -> None:
    features = Categories(["c"], [{"a": 5, "12": 3, "é": 2, "b": 1}], MISSING, {"c": {"old": "b"}}, 2, 5)
    encoded = features.encode("c", pl.Series(cells, dtype=pl.String))
    assert encoded.dtype == torch.int32
    strings = {"c": ["" if cell is None else cell for cell in cells]}
    assert encoded.tolist() == torch.jit.script(features)(strings, len(cells)).flatten().tolist()


@pytest.fixture(scope="module")
def fitted() -> tuple[Features, torch.jit.ScriptModule]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(500, 4, dtype=torch.float64, generator=generator)
    values[::5, 1] = NAN
    names = ["x", "y", "when days", "when month (sin)"]
    features = Features(
        Dates(["when"], [["days", "month"]]),
        Numbers([*names, "when month (cos)"], torch.cat([values, values[:, 3:]], 1), "quantile", {"x": {-999.0: None}}),
        Categories(["c", "d"], [{"a": 3, "é": 2, "": 1}, {"12": 1, "7": 1}], MISSING, {"d": {"seven": "7"}}),
        Texts(["t"], [["a", "é", "12", "seven"]]),
        Images(["i"], [(3, 4, 6)]),
    )
    return features, torch.jit.script(features)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(allow_infinity=False) | st.just(-999.0),
            st.floats(),
            st.floats(-6e10, 2e11) | st.just(NAN),
            st.none() | cell_text | st.just("é"),
            st.none() | cell_text | st.just("seven"),
            st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 2**32),
)
def test_features_are_equal_in_training_eager_and_scripted_for_any_row(
    fitted: tuple[Features, torch.jit.ScriptModule], rows: list[tuple[Any, ...]], seed: int
) -> None:
    schema = {"x": pl.Float64, "y": pl.Float64, "when": pl.Float64, "c": pl.String, "d": pl.String, "t": pl.String}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    pixels = torch.randint(256, (len(rows), 1, 9, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    numbers = {name: torch.tensor(frame[name].to_list(), dtype=torch.float64) for name in ("x", "y", "when")}
    strings = {name: frame[name].fill_null("").to_list() for name in ("c", "d", "t")}
    encoded = fitted[0].encode(frame, {"i": pixels})
    for answers in (fitted[0](numbers, strings, {"i": pixels}), fitted[1](numbers, strings, {"i": pixels})):
        assert answers.keys() == encoded.keys()
        for name, values in encoded.items():
            torch.testing.assert_close(answers[name], values, atol=1e-6, rtol=0)
    assert encoded["numbers"].isfinite().all()


def test_quantiles_are_linear_between_order_statistics() -> None:
    values = torch.randn(1001, 3, dtype=torch.float64)
    probabilities = torch.tensor([0.0, 0.123, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(quantiles(values, probabilities), torch.quantile(values, probabilities, dim=0).t())
