"""The audit's checks of the columns: leaks, levels, drift, spellings, and columns that say nothing."""

import json
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from datamodules.audit.contingency import SPLITS, linear_parts
from datamodules.audit.row_checks import Finding, Rows
from datamodules.schema import OWN, SEPARATING, as_key, drop_setting

LEAK, NEAR_LEAK = 0.99, 0.95
"""R2 of a single column from which on it gives a number away, or nearly."""
LEAK_SKILL, NEAR_LEAK_SKILL, NEAR_LEAK_AUROC = 0.95, 0.8, 0.99
"""The share of a constant answer's errors that a single column must remove to give classes away; either of the others
is nearly that, where ENOUGH rows are judged: honest columns of few rows may reach it."""
ENOUGH = 100
FEW_NUMBERS = 1000
"""Rows below which whole numbers may all differ by chance."""
ALMOST_ALL = 0.999
"""Share of rows with one value from which on a column is almost constant."""
UNSEEN = 0.005
"""Share of validation and test rows above which levels that training lacks are worth a line."""
DRIFT, RISK = 0.1, 0.001
"""Distance between two splits' distributions that is worth a line, and the probability that chance brings any."""
NUMBERS = 4_000_000
"""Cells at most in which a linear combination is looked for."""
TRAIN = OWN + "train"
NAMED = 5
"""Columns or levels that a line names."""


def leaks(rows: Rows) -> Iterator[Finding]:
    regression = rows.task == "regression"
    formula, parts = _formula(rows) if regression else ("", [])
    if parts:
        yield Finding(
            "leak",
            True,
            parts[0] if len(parts) == 1 else None,
            f"{rows.target} is {formula}",
            f"unless {'it is' if len(parts) == 1 else 'they are'} known beforehand, {drop_setting(parts)}",
        )
    for name, table in rows.tables.items():
        if name in parts:
            continue
        if regression:
            measure, found = "R2", table.explained()
            grave, near = found >= LEAK, found >= NEAR_LEAK
        else:
            measure, found, skill = "AUROC", table.auroc(), table.skill()
            grave = skill >= LEAK_SKILL
            near = (skill >= NEAR_LEAK_SKILL or found >= NEAR_LEAK_AUROC) and rows.judged >= ENOUGH
        if grave or near:
            yield Finding(
                "leak",
                grave,
                name,
                f"{name} alone gives {rows.target} away{'' if grave else ', or nearly'} ({measure} {found:.3f})",
                f"unless it is known beforehand, {drop_setting([name])}",
            )


def _formula(rows: Rows) -> tuple[str, list[str]]:
    """What the target is exactly, such as "casual + registered", and of which columns."""
    names = [name for name in rows.of_kind("number", "date") if rows.frame[name].null_count() < 0.1 * len(rows.split)]
    if not names:
        return "", []
    known = rows.frame.select(*names, rows.target).with_columns(pl.Series(TRAIN, rows.train)).drop_nulls()
    known = known.gather_every(len(known) * len(names) // NUMBERS + 1)
    chosen, slopes = linear_parts(
        known.select(names).to_numpy(), known[rows.target].to_numpy(), known[TRAIN].to_numpy()
    )
    parts = [names[index] for index in chosen]
    if np.allclose(slopes, [1.0] * len(parts) + [0.0] * (len(slopes) - len(parts)), atol=1e-3):
        return " + ".join(parts), parts
    return f"a linear function of {_listed(parts)}", parts


def unseen(rows: Rows) -> Iterator[Finding]:
    train = pl.Series(rows.train)
    found: list[tuple[int, str, str]] = []
    for name in rows.of_kind("category"):
        levels = rows.frame[name]
        rest = levels.filter(~train).drop_nulls()
        new = rest.filter(~rest.is_in(levels.filter(train).unique().implode()))
        if len(new) > UNSEEN * rows.judged:
            found.append((len(new), name, str(new.mode().min())))
    if found:
        parts = [f"{name} in {count:,} (such as {level!r})" for count, name, level in sorted(found, reverse=True)]
        yield Finding(
            "unseen",
            False,
            found[0][1] if len(found) == 1 else None,
            f"levels that training lacks, in {rows.judged:,} validation and test rows: {_listed(parts)}",
            "they count as unknown; data.columns='{NAME: drop}' leaves out a column that only names rows",
        )


def drift(rows: Rows) -> Iterator[Finding]:
    """The target first, then the columns that differ most."""
    timed = rows.split_by == "time"
    tables = {name: rows.tables[name] for name in rows.of_kind("number", "category", *(() if timed else ("date",)))}
    tables.pop(rows.split_column or "", None)
    tables = {rows.target: rows.table(rows.target, rows.task == "regression"), **tables}
    found: list[tuple[bool, float, str, str]] = []
    for name, table in tables.items():
        apart, other = max((table.distance(split), split) for split in (1, 2))
        if apart >= max(DRIFT, table.chance_distance(other, RISK / 2 / len(tables))):
            found.append((name == rows.target, apart, name, SPLITS[other]))
    if found:
        parts = [f"{name} {apart:.2f} ({split})" for _, apart, name, split in sorted(found, reverse=True)]
        yield Finding(
            "drift",
            False,
            found[0][2] if len(found) == 1 else None,
            f"training is unlike the other splits{', as is to be expected over time' if timed else ''}, by a distance"
            f" from 0 to 1: {_listed(parts)}",
            "figures will be below those of a random split, and nearer to those of later rows"
            if timed
            else "test figures hold for rows like those of the test split",
        )


def spellings(rows: Rows) -> Iterator[Finding]:
    for name in rows.of_kind("category"):
        counts = (
            rows.frame[name]
            .alias("level")
            .drop_nulls()
            .value_counts()
            .sort(["count", "level"], descending=[True, False])
        )
        letters = pl.col("level").str.replace_all(SEPARATING, "").str.to_lowercase()
        same = counts.filter(letters.str.contains(r"\p{L}")).with_columns(
            pl.col("level").first().over(letters).alias("kept"), pl.col("count").first().over(letters).alias("rows")
        )
        same = same.filter(pl.col("level") != pl.col("kept"))
        if len(same):
            parts = [
                f"{kept!r} ({most:,} rows) and {level!r} ({count:,})"
                for level, count, kept, most in same.select("level", "count", "kept", "rows").iter_rows()
            ]
            rules = json.dumps(same.select("level", "kept").rows(), ensure_ascii=False)
            yield Finding(
                "spelling",
                False,
                name,
                f"{name} has levels that differ only by blanks, case or punctuation: {_listed(parts)}",
                f"where they are the same, data.replace='{{{as_key(name)}: {rules}}}'",
            )


def left_out(rows: Rows) -> Iterator[Finding]:
    inferred = [column for column in rows.columns if column.reason != "given" and column.name != rows.target]
    identifiers = [column.name for column in inferred if column.kind == "identifier"]
    constants = [column.name for column in inferred if column.kind == "constant"]
    counting = [name for name in rows.of_kind("number") if _counts(rows.frame[name])]
    almost = [name for name in rows.of_kind("number", "category") if _commonest(rows.frame[name]) >= ALMOST_ALL]
    for check, names, message, advice in (
        (
            "identifier",
            identifiers,
            "left out as identifiers: ",
            "data.columns='{NAME: category}' or text takes one in",
        ),
        (
            "identifier",
            counting,
            "a whole number that no other row has, as identifiers and times are: ",
            f"{drop_setting(counting)}, or date where it tells the time",
        ),
        ("constant", constants, "left out, as they have one value: ", "nothing can be learnt from them"),
        ("constant", almost, f"one value, or none, in {ALMOST_ALL:.1%} of the rows or more: ", drop_setting(almost)),
    ):
        if names:
            yield Finding(check, False, names[0] if len(names) == 1 else None, message + _listed(names), advice)


def _counts(values: pl.Series) -> bool:
    """Whether the values are whole numbers, all different, in enough rows to be no chance."""
    whole = len(values) >= FEW_NUMBERS and (values == values.round()).all()
    return bool(whole) and values.null_count() == 0 and values.n_unique() == len(values)


def _commonest(values: pl.Series) -> float:
    """The share of the commonest value, which may be missing, where it is most of them."""
    if values.dtype == pl.String:
        return float(values.unique_counts().sort()[-1:].sum()) / len(values)
    filled = values.fill_null(float("inf"))
    return float((filled == filled.median()).sum()) / len(values)


def _listed(parts: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(parts) - NAMED
    return ", ".join(parts[:NAMED]) + (f" and {more:,} more" if more > 0 else "")
