"""The audit's checks of columns: leaks, unseen levels, drift, spellings, and uninformative columns."""

import json
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from datamodules.audit.contingency import SPLITS, linear_parts
from datamodules.audit.row_checks import Finding, Rows
from datamodules.schema import OWN, SEPARATING, as_key, drop_setting

LEAK, NEAR_LEAK = 0.99, 0.95
"""R2 of a single column from which it reveals a regression target, or nearly does."""
LEAK_SKILL, NEAR_LEAK_SKILL, NEAR_LEAK_AUROC = 0.95, 0.8, 0.99
"""Share of the errors of a constant prediction that a single column removes if it reveals the classes. The other two
thresholds mean that it nearly does; they need MIN_EVALUATED rows, since legitimate columns may reach them by chance."""
MIN_EVALUATED = 100
MIN_ROWS_OF_COUNTER = 1000
"""Minimum number of rows; with fewer, whole numbers may all differ by chance."""
ALMOST_ALL = 0.999
"""Share of rows with the same value from which a column is almost constant."""
UNSEEN = 0.005
"""Share of validation and test rows above which levels unknown in training are reported."""
DRIFT, RISK = 0.1, 0.001
"""Minimum reported distance between the distributions of two splits, and the probability of any false report."""
NUMBERS = 4_000_000
"""Maximum number of cells in the search for a linear combination."""
TRAIN = OWN + "train"
NAMED = 5
"""Maximum number of columns or levels named in a line."""


def leaks(rows: Rows) -> Iterator[Finding]:
    """Columns, or a linear combination of columns, that reveal the target."""
    regression = rows.task == "regression"
    formula, parts = _formula(rows) if regression else ("", [])
    if parts:
        yield Finding(
            "leak",
            True,
            parts[0] if len(parts) == 1 else None,
            f"{rows.target} is {formula}",
            f"unless {'it is' if len(parts) == 1 else 'they are'} known at prediction time, {drop_setting(parts)}",
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
            near = (skill >= NEAR_LEAK_SKILL or found >= NEAR_LEAK_AUROC) and rows.evaluated >= MIN_EVALUATED
        if grave or near:
            yield Finding(
                "leak",
                grave,
                name,
                f"{name} alone{'' if grave else ' nearly'} reveals {rows.target} ({measure} {found:.3f})",
                f"unless it is known at prediction time, {drop_setting([name])}",
            )


def _formula(rows: Rows) -> tuple[str, list[str]]:
    """The formula of a target that is a linear function of columns, such as "casual + registered", and the columns."""
    names = [name for name in rows.of_kind("number", "date") if rows.frame[name].null_count() < 0.1 * len(rows.split)]
    if not names:
        return "", []
    present = rows.frame.select(*names, rows.target).with_columns(pl.Series(TRAIN, rows.train)).drop_nulls()
    present = present.gather_every(len(present) * len(names) // NUMBERS + 1)
    chosen, slopes = linear_parts(
        present.select(names).to_numpy(), present[rows.target].to_numpy(), present[TRAIN].to_numpy()
    )
    parts = [names[index] for index in chosen]
    if np.allclose(slopes, [1.0] * len(parts) + [0.0] * (len(slopes) - len(parts)), atol=1e-3):
        return " + ".join(parts), parts
    return f"a linear function of {_listed(parts)}", parts


def unseen(rows: Rows) -> Iterator[Finding]:
    """Levels of validation and test rows that do not occur in training."""
    train = pl.Series(rows.train)
    found: list[tuple[int, str, str]] = []
    for name in rows.of_kind("category"):
        levels = rows.frame[name]
        rest = levels.filter(~train).drop_nulls()
        new = rest.filter(~rest.is_in(levels.filter(train).unique().implode()))
        if len(new) > UNSEEN * rows.evaluated:
            found.append((len(new), name, str(new.mode().min())))
    if found:
        parts = [f"{name} in {count:,} (such as {level!r})" for count, name, level in sorted(found, reverse=True)]
        yield Finding(
            "unseen",
            False,
            found[0][1] if len(found) == 1 else None,
            f"levels that do not occur in training, in {rows.evaluated:,} validation and test rows: {_listed(parts)}",
            "they count as unknown; data.columns='{NAME: drop}' leaves out columns that only identify rows",
        )


def drift(rows: Rows) -> Iterator[Finding]:
    """Columns whose distributions differ between splits, the target first, then by distance."""
    timed = rows.split_by == "time"
    tables = {name: rows.tables[name] for name in rows.of_kind("number", "category", *(() if timed else ("date",)))}
    tables.pop(rows.split_column or "", None)
    tables = {rows.target: rows.table(rows.target, rows.task == "regression"), **tables}
    found: list[tuple[bool, float, str, str]] = []
    for name, table in tables.items():
        distance, other = max((table.distance(split), split) for split in (1, 2))
        if distance >= max(DRIFT, table.chance_distance(other, RISK / 2 / len(tables))):
            found.append((name == rows.target, distance, name, SPLITS[other]))
    if found:
        parts = [f"{name} {distance:.2f} ({split})" for _, distance, name, split in sorted(found, reverse=True)]
        yield Finding(
            "drift",
            False,
            found[0][2] if len(found) == 1 else None,
            f"training rows differ from the other splits{', as expected over time' if timed else ''}; distances, 0"
            f" to 1: {_listed(parts)}",
            "metrics will be lower than with a random split, but closer to those on future rows"
            if timed
            else "test metrics are valid for rows like those of the test split",
        )


def spellings(rows: Rows) -> Iterator[Finding]:
    """Levels that differ only by blanks, case or punctuation."""
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
                f"if they are the same, data.replace='{{{as_key(name)}: {rules}}}'",
            )


def left_out(rows: Rows) -> Iterator[Finding]:
    """Columns that are left out or hold little information: identifiers and constants."""
    inferred = [column for column in rows.columns if column.reason != "given" and column.name != rows.target]
    identifiers = [column.name for column in inferred if column.kind == "identifier"]
    constants = [column.name for column in inferred if column.kind == "constant"]
    counting = [name for name in rows.of_kind("number") if _counts(rows.frame[name])]
    almost = [name for name in rows.of_kind("number", "category") if _largest_share(rows.frame[name]) >= ALMOST_ALL]
    for check, names, message, advice in (
        (
            "identifier",
            identifiers,
            "left out as identifiers: ",
            "data.columns='{NAME: category}' or text uses one",
        ),
        (
            "identifier",
            counting,
            "whole numbers that are unique in each row, such as identifiers and times: ",
            f"{drop_setting(counting)}, or date if it is a time",
        ),
        ("constant", constants, "left out, with a single value: ", "nothing can be learned from them"),
        (
            "constant",
            almost,
            f"one value or missing in at least {ALMOST_ALL:.1%} of rows: ",
            drop_setting(almost),
        ),
    ):
        if names:
            yield Finding(check, False, names[0] if len(names) == 1 else None, message + _listed(names), advice)


def _counts(values: pl.Series) -> bool:
    """Returns whether the values are distinct whole numbers, in enough rows to exclude chance."""
    whole = len(values) >= MIN_ROWS_OF_COUNTER and (values == values.round()).all()
    return bool(whole) and values.null_count() == 0 and values.n_unique() == len(values)


def _largest_share(values: pl.Series) -> float:
    """The share of the most frequent value, which may be missing; exact only if it is above 0.5."""
    if values.dtype == pl.String:
        return float(values.unique_counts().sort()[-1:].sum()) / len(values)
    filled = values.fill_null(float("inf"))
    return float((filled == filled.median()).sum()) / len(values)


def _listed(parts: Sequence[str]) -> str:
    """Lists the first NAMED parts, and the number of further ones."""
    more = len(parts) - NAMED
    return ", ".join(parts[:NAMED]) + (f" and {more:,} more" if more > 0 else "")
