"""Cleaning: which cells become missing, which rows are rejected and why, and which targets are refused."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import polars as pl
from torch import Tensor

from common.cells import as_date, as_number, as_text, between, clean_text, factorize, is_low_cardinality
from datamodules.readers.read import BAD, FILE, LINE
from datamodules.schema import COPY, SEPARATING, Column, DataError, Task

MAX_SPELLINGS = 1000
"""Maximum number of classes that are checked for similar spellings."""


@dataclass(frozen=True)
class DecodedImages:
    """The images of a column: `pixels`, uint8 (rows, C, H, W), and `digests`, which are equal for equal pixels.

    `reasons` says why a cell has no image; null if it has one.
    """

    pixels: Tensor
    reasons: pl.Series
    digests: pl.Series


Rules = Mapping[str | float, str | float | None]
"""Replacement of each value; None is missing."""


@dataclass(frozen=True)
class Cleaned:
    """Cleaned rows.

    `frame` has numbers and dates (seconds since 1970) as Float64; other columns as raw String, or Categorical if they
    are Categorical and not text; the target as String (classes) or Float64; and FILE, LINE and COPY. Missing is null.

    `quarantine` has the file, line, column, rule and raw value of each bad cell; `kept` says for each row that could
    be read whether it has no bad cell and is in the frame.
    """

    frame: pl.DataFrame
    quarantine: pl.DataFrame
    kept: pl.Series


def clean(
    frame: pl.DataFrame,
    columns: Sequence[Column],
    labels: pl.Series,
    task: Task,
    *,
    bad: pl.DataFrame,
    missing: Sequence[str],
    replace: Mapping[str, Rules],
    ranges: Mapping[str, Sequence[float | None]],
    images: Mapping[str, DecodedImages] | None = None,
) -> Cleaned:
    """Cleans all columns; `labels` is the clean target, `bad` has rows that could not be read, as in the quarantine.

    The frame keeps values that have a replacement; the features replace them, in training and in the artifact.
    """
    target = labels.name
    cleaned: dict[str, pl.Series] = {}
    violations: list[tuple[str, str, pl.Series]] = []  # column, violated rule, mask of the rows
    for column in columns:
        name = column.name
        if name == target:
            continue
        if column.kind == "number":
            cleaned[name], invalid = as_number(frame[name], missing)
            violations.append((name, "not a number", invalid))
            if name in ranges:
                violations.append(
                    (name, "outside range", _outside(cleaned[name], replace.get(name, {}), *ranges[name]))
                )
        elif column.kind == "date":
            cleaned[name], invalid = as_date(frame[name], missing, column.day_first)
            violations.append((name, "not a date", invalid))
        else:
            coded = isinstance(frame.schema[name], pl.Categorical) and column.kind != "text"
            cleaned[name] = frame[name] if coded else as_text(frame[name])
    for name, image in (images or {}).items():
        violations += [
            (name, rule, image.reasons == rule) for rule in image.reasons.drop_nulls().unique(maintain_order=True)
        ]
    if task == "regression":
        labels, invalid = as_number(labels, missing)
        violations += [(target, "not a number", invalid), (target, "no target", labels.is_null() & ~invalid)]
    else:
        violations += [(target, "no target", labels.is_null())]
    cleaned[target] = labels
    quarantine = pl.concat([bad, *(_cells(frame, *rule) for rule in violations if rule[2].any())])
    kept = ~pl.select(pl.any_horizontal([rows.fill_null(False) for _, _, rows in violations])).to_series()
    cells = cleaned | {name: image.digests for name, image in (images or {}).items()}
    result = frame.select(FILE, LINE).with_columns(
        *(series.alias(name) for name, series in cleaned.items()),
        _copies(
            [cells[column.name] for column in columns if column.kind != "identifier" or column.name == target], missing
        ),
    )
    return Cleaned(result.filter(kept), quarantine, kept)


def as_rules(
    column: str, pairs: Sequence[Sequence[str | float | None]], missing: Sequence[str]
) -> dict[str | float, str | float | None]:
    """Rules from pairs of a value and its replacement. Raises DataError for anything else."""
    rules: dict[str | float, str | float | None] = {}
    for pair in pairs:
        if len(pair) != 2 or pair[0] is None:
            raise DataError(
                f"data.replace: {column} has {json.dumps(pair)}; each rule is a pair [value, replacement]; null as"
                " the replacement means missing"
            )
        if _as_cell(pair[0]) in missing:
            raise DataError(
                f"data.replace: {column} has {json.dumps(pair)}, but {json.dumps(pair[0])} counts as missing; remove it"
                " from data.missing to replace it"
            )
        rules[pair[0]] = pair[1]
    return rules


def text_rules(rules: Rules) -> dict[str, str | None]:
    """The rules of a text column, for cleaned cells."""
    return {_as_cell(old): None if new is None else _as_cell(new) for old, new in rules.items()}


def as_range(column: str, bounds: Sequence[float | None]) -> tuple[float | None, float | None]:
    """The lowest and highest value. Raises DataError if they are not two numbers in order, or null."""
    known = [bound for bound in bounds if bound is not None]
    if len(bounds) != 2 or any(isinstance(bound, str) for bound in known) or known != sorted(known):
        raise DataError(f"data.ranges: {column} has {json.dumps(bounds)}; give [lowest, highest], null for no bound")
    return bounds[0], bounds[1]


def number_rules(column: str, rules: Rules) -> dict[float, float | None]:
    """The rules of a number column. Raises DataError if they contain text."""
    try:
        return {float(old): None if new is None else float(new) for old, new in rules.items()}
    except ValueError as error:
        raise DataError(
            f"data.replace: {column} holds numbers, but its rules {list(rules.items())} contain text; list text"
            " that stands for missing in data.missing"
        ) from error


def clean_target(series: pl.Series, missing: Sequence[str], rules: Rules) -> pl.Series:
    """The target as clean text with values replaced; null if missing."""
    if is_low_cardinality(series):
        distinct, codes = factorize(series)
        return clean_target(distinct, missing, rules).gather(codes).alias(series.name)
    return clean_text(series, missing).replace(text_rules(rules))


def check_target(target: pl.Series, task: Task, rules: Rules) -> None:
    """Raises DataError if nothing can be learned, or if classes look like spellings of one class without a rule for
    them in `rules`."""
    counts = sorted(target.value_counts().rows(), key=lambda row: (-row[1], row[0]))
    if len(counts) == 1:
        raise DataError(f"data.target={target.name}: every row has {counts[0][0]!r}; there is nothing to learn.")
    if task == "regression":
        return
    if len(counts) <= MAX_SPELLINGS:
        named = text_rules(rules)
        _check_spellings(target.name, [(name, rows) for name, rows in counts if named.get(name) != name])
    if task == "binary" and len(counts) > 2:
        raise DataError(
            f"data.task=binary, but data.target={target.name} has {len(counts):,} classes, such as"
            f" {', '.join(repr(name) for name, _ in counts[:3])}: set data.task=multiclass, or merge some with"
            " data.replace"
        )
    single = sorted(name for name, rows in counts if rows == 1)
    if single:
        raise DataError(
            f"data.target={target.name}: {len(single):,} of {len(counts):,} classes have a single row, such as"
            f" {single[0]!r}; it cannot be in both training and test. Give more rows, merge it with another"
            f" class, or leave it out: data.replace='{{{target.name}: [[{json.dumps(single[0])}, null]]}}'"
        )


def refuse_if_too_many(quarantine: pl.DataFrame, kept: int, rows: int, most: float) -> None:
    """Raises DataError if more than the share `most` of the rows, or all of them, are rejected."""
    if rows - kept > most * rows or kept == 0:
        limit = f"more than data.max_bad_fraction={most:g}" if kept else "and none is left"
        raise DataError(
            f"{rows - kept:,} of {rows:,} rows would be rejected, {limit}:"
            f" {_most_frequent(quarantine)}. All are in quarantine.parquet; fix the rows, or change data.columns,"
            " data.missing, data.ranges or data.max_bad_fraction."
        )


@lru_cache(typed=True)
def _as_cell(value: str | float) -> str:
    text: str = clean_text(pl.Series([value]), ())[0]
    return text


def _outside(values: pl.Series, rules: Rules, low: float | None, high: float | None) -> pl.Series:
    return ~between(values.replace(number_rules(values.name, rules)), low, high)


def _cells(frame: pl.DataFrame, column: str, rule: str, rows: pl.Series) -> pl.DataFrame:
    """The rows of the quarantine for the cells of a column that violate a rule."""
    bad = frame.filter(rows)
    return pl.DataFrame(
        [
            bad[FILE].alias("file"),
            bad[LINE].alias("line"),
            pl.repeat(column, len(bad), dtype=pl.String, eager=True).alias("column"),
            pl.repeat(rule, len(bad), dtype=pl.String, eager=True).alias("rule"),
            as_text(bad[column]).alias("value"),
        ],
        schema=BAD,
    )


def _copies(cells: Sequence[pl.Series], missing: Sequence[str]) -> pl.Series:
    """Hashes of the rows, which are equal if all cells are equal."""
    clean = [values if values.dtype == pl.Float64 else clean_text(values, missing) for values in cells]
    return pl.DataFrame([values.alias(str(index)) for index, values in enumerate(clean)]).hash_rows().alias(COPY)


def _most_frequent(quarantine: pl.DataFrame) -> str:
    """The most frequent violations, with an example of each."""
    rules = quarantine.group_by("column", "rule", maintain_order=True).agg(pl.len(), pl.first("file", "line", "value"))
    rules = rules.sort("len", descending=True, maintain_order=True)
    texts = [
        f"{row['column'] + ': ' if row['column'] else ''}{row['rule']} in {row['len']:,} rows, as in {row['file']},"
        f" line {row['line']}: {row['value']!r}"
        for row in rules.head(3).iter_rows(named=True)
    ]
    return "; ".join(texts)


def _check_spellings(target: str, counts: Sequence[tuple[str, int]]) -> None:
    """`counts` holds each class and its number of rows, the most frequent first."""
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
        f"data.target={target}: classes that differ only by blanks, case or punctuation: {'; '.join(found)}. If they"
        f" are the same, use data.replace='{{{target}: {rules}}}'; if they are not, use"
        f" data.replace='{{{target}: {kept}}}'"
    )


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
