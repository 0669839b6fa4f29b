"""The rules of cleaning: what becomes missing, which rows are set aside and why, what stops the run."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from datamodules.infer import check_names
from datamodules.read import FILE, LINE
from datamodules.schema import Column, DataError, Task
from serving.cells import as_number, as_text, between, clean_text

log = logging.getLogger(__name__)

QUARANTINE = pl.Schema(
    {"file": pl.String, "line": pl.Int64, "column": pl.String, "rule": pl.String, "value": pl.String}
)
SEPARATING = r"[\s.,;:!?'\"`_-]+"
"""Blanks and punctuation that tell no classes apart, unlike the signs of "<=50K" and ">50K"."""
OWN = "lathe."
"""Begins the names of columns that are Lathe's own, not the table's."""
MAX_SPELLINGS = 1000
"""A target of more values is no set of classes."""
COPY = OWN + "copy"
"""Equal for rows that are exact copies of each other."""
Rules = Mapping[str | float, str | float | None]
"""Values and what they are replaced by; None is missing."""


@dataclass(frozen=True)
class Cleaned:
    """`frame`: numbers as Float64, categories as raw String, null where missing; the target as String (classes) or
    Float64; and what was in the raw frame for Lathe's own use (FILE, LINE, ...), with COPY.

    `quarantine`: file, line, column, rule and raw value of each bad cell; `set_aside` rows have one and were left out.
    """

    frame: pl.DataFrame
    quarantine: pl.DataFrame
    set_aside: int


def clean(
    frame: pl.DataFrame,
    columns: Sequence[Column],
    target: str,
    task: Task,
    *,
    bad: pl.DataFrame,
    missing: Sequence[str],
    replace: Mapping[str, Rules],
    ranges: Mapping[str, Sequence[float | None]],
    duplicates: Literal["keep", "drop"],
) -> Cleaned:
    """Cleans the columns that are used; `bad` are rows that could not be read, as in the quarantine.

    Replaced values stay as they are in the frame: the features replace them, in training and in the artefact. Raises
    DataError where the target cannot be learnt.
    """
    features = {column.name: column.kind for column in columns if column.name != target}
    numbers = [name for name, kind in features.items() if kind == "number"]
    check_names("data.ranges", ranges, numbers)
    check_names("data.replace", replace, [*features, target])

    cleaned: dict[str, pl.Series] = {}
    broken: list[tuple[str, str, pl.Series]] = []  # column, rule, the rows that break it
    for name, kind in features.items():
        if kind == "number":
            cleaned[name], wrong = as_number(frame[name], missing)
            outside = _outside(cleaned[name], replace.get(name, {}), *ranges.get(name, (None, None)))
            broken += [(name, "not a number", wrong), (name, "outside range", outside)]
        elif kind == "category":
            cleaned[name] = as_text(frame[name])
    labels = clean_target(frame[target], missing, replace.get(target, {}))
    if task == "regression":
        labels, wrong = as_number(labels, missing)
        broken += [(target, "not a number", wrong), (target, "no target", labels.is_null() & ~wrong)]
    else:
        broken += [(target, "no target", labels.is_null())]
    cleaned[target] = labels
    quarantine = pl.concat([_readable(bad), *(_cells(frame, *rule) for rule in broken)])
    kept = ~pl.select(pl.any_horizontal([rows for _, _, rows in broken])).to_series()

    own = [name for name in frame.columns if name.startswith(OWN)]
    result = frame.select(own).with_columns(
        *(cleaned[column.name].alias(column.name) for column in columns if column.name in cleaned),
        _copies(frame, columns, cleaned, missing),
    )
    result = result.filter(kept)
    if len(result) == 0:
        raise DataError(f"no row is left: {_commonest(quarantine)}")
    if task != "regression":
        _check_classes(result[target])
    copies = len(result) - result[COPY].n_unique()
    if copies and duplicates == "drop":
        result = result.unique(COPY, keep="first", maintain_order=True)
        log.info("%s were exact copies of others and are left out", count(copies, "row"))
    elif copies:
        log.info("%s with an exact copy before: kept, on one side of the split", count(copies, "row"))
    return Cleaned(result, quarantine, len(bad) + len(frame) - int(kept.sum()))


def as_rules(column: str, pairs: Sequence[Sequence[str | float | None]]) -> dict[str | float, str | float | None]:
    """Pairs of a value and its replacement. Raises DataError where something else is among them."""
    rules: dict[str | float, str | float | None] = {}
    for pair in pairs:
        if len(pair) != 2 or pair[0] is None:
            raise DataError(
                f"data.replace: {column} has {json.dumps(pair)}; each rule is a pair [value, replacement], where null"
                " as the replacement is missing"
            )
        rules[pair[0]] = pair[1]
    return rules


def number_rules(column: str, rules: Rules) -> dict[float, float | None]:
    """The rules of a column of numbers. Raises DataError for text among them."""
    try:
        return {float(old): None if new is None else float(new) for old, new in rules.items()}
    except ValueError as error:
        raise DataError(
            f"data.replace: {column} holds numbers, and one of {list(rules.items())} is none; text that stands for"
            " missing goes to data.missing"
        ) from error


def clean_target(series: pl.Series, missing: Sequence[str], rules: Rules) -> pl.Series:
    """The target as clean text, values replaced, null where missing.

    Raises DataError for values that look like one class in several spellings, unless `rules` names them.
    """
    text = clean_text(as_text(series), missing)
    named = {str(old): None if new is None else str(new) for old, new in rules.items()}
    text = text.replace(named)
    if text.null_count() == len(text):
        raise DataError(
            f"data.target={series.name}: no row has a value. Cells that count as missing are"
            f" {', '.join(repr(spelling) for spelling in missing)} (data.missing)."
        )
    counts = text.drop_nulls().value_counts(sort=True).rows()
    if len(counts) <= MAX_SPELLINGS:
        _check_spellings(series.name, [(name, rows) for name, rows in counts if named.get(name) != name])
    return text


def refuse_if_too_many(cleaned: Cleaned, most: float) -> None:
    """Raises DataError where more than the share `most` of the rows was set aside."""
    rows = cleaned.set_aside + len(cleaned.frame)
    if cleaned.set_aside > most * rows:
        raise DataError(
            f"{cleaned.set_aside:,} of {rows:,} rows would be set aside, more than data.max_bad_fraction={most:g}:"
            f" {_commonest(cleaned.quarantine)}. All are in quarantine.parquet; mend the rows, or change data.columns,"
            " data.missing, data.ranges or data.max_bad_fraction."
        )


def count(number: int, what: str) -> str:
    """ "1 row", "2,000 rows"."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _outside(values: pl.Series, rules: Rules, low: float | None, high: float | None) -> pl.Series:
    return ~between(values.replace(number_rules(values.name, rules)), low, high)


def _cells(frame: pl.DataFrame, column: str, rule: str, rows: pl.Series) -> pl.DataFrame:
    """The quarantine's rows for the cells of a column that break a rule."""
    wrong = frame.filter(rows)
    return pl.DataFrame(
        [
            wrong[FILE].alias("file"),
            wrong[LINE].alias("line"),
            pl.repeat(column, len(wrong), dtype=pl.String, eager=True).alias("column"),
            pl.repeat(rule, len(wrong), dtype=pl.String, eager=True).alias("rule"),
            as_text(wrong[column]).alias("value"),
        ],
        schema=QUARANTINE,
    )


def _readable(bad: pl.DataFrame) -> pl.DataFrame:
    return bad if len(bad) else pl.DataFrame(schema=QUARANTINE)


def _copies(
    frame: pl.DataFrame, columns: Sequence[Column], cleaned: Mapping[str, pl.Series], missing: Sequence[str]
) -> pl.Series:
    """Equal numbers for rows whose cells are all equal, once cleaned; identifiers do not count."""
    cells = []
    for column in columns:
        if column.kind != "identifier" or column.name in cleaned:
            values = cleaned.get(column.name, frame[column.name])
            cells.append(values if values.dtype == pl.Float64 else clean_text(as_text(values), missing))
    return pl.DataFrame([values.alias(str(index)) for index, values in enumerate(cells)]).hash_rows().alias(COPY)


def _commonest(quarantine: pl.DataFrame) -> str:
    """The rules that were broken most, with an example each."""
    rules = quarantine.group_by("column", "rule", maintain_order=True).agg(pl.len(), pl.first("file", "line", "value"))
    rules = rules.sort("len", descending=True, maintain_order=True)
    texts = [
        f"{row['column'] + ': ' if row['column'] else ''}{row['rule']} in {row['len']:,} rows, as in {row['file']},"
        f" line {row['line']}: {row['value']!r}"
        for row in rules.head(3).iter_rows(named=True)
    ]
    return "; ".join(texts)


def _check_classes(target: pl.Series) -> None:
    counts = target.value_counts(sort=True).rows()
    if len(counts) == 1:
        raise DataError(
            f"data.target={target.name}: every row is of the class {counts[0][0]!r}; there is nothing to tell apart."
        )
    single = sorted(name for name, rows in counts if rows == 1)
    if single:
        raise DataError(
            f"data.target={target.name}: {len(single):,} of {len(counts):,} classes have a single row, such as"
            f" {single[0]!r}; it cannot be both learnt and tested. Give more rows, join it with another class, or"
            f" leave it out: data.replace='{{{target.name}: [[{json.dumps(single[0])}, null]]}}'"
        )


def _check_spellings(target: str, counts: Sequence[tuple[str, int]]) -> None:
    """`counts`: each class and its rows, the commonest first."""
    first: dict[str, tuple[str, int]] = {}
    same: dict[str, str] = {}
    found: list[str] = []
    for name, rows in counts:
        letters = re.sub(SEPARATING, "", name).casefold()
        if letters in first and not _is_number(name):
            same[name] = first[letters][0]
            found.append(f"{first[letters][0]!r} ({first[letters][1]:,} rows) and {name!r} ({rows:,} rows)")
        elif letters:
            first[letters] = (name, rows)
    if not same:
        return
    rules = json.dumps(sorted(same.items()))
    kept = json.dumps([(name, name) for name in sorted(same)])
    raise DataError(
        f"data.target={target}: classes that differ only by blanks, case or punctuation: {'; '.join(found)}. Where they"
        f" are the same, write data.replace='{{{target}: {rules}}}'; where they are not,"
        f" data.replace='{{{target}: {kept}}}'"
    )


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
