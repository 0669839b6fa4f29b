"""The audit: finds properties of the rows that make a model look better than it is or that impair its training."""

import json
from collections.abc import Sequence
from dataclasses import asdict

import polars as pl

from common.cells import MISSING, clean_text
from datamodules.audit import column_checks, row_checks
from datamodules.audit.row_checks import Finding, Rows
from datamodules.schema import Column, DataError, Task

__all__ = ["Finding", "audit", "refuse", "report", "to_json"]

SHOWN = 10
"""Maximum number of findings in the report."""
CHECKS = (
    row_checks.duplicates,
    column_checks.leaks,
    row_checks.times,
    row_checks.groups,
    row_checks.conflicts,
    column_checks.spellings,
    row_checks.imbalance,
    column_checks.unseen,
    column_checks.drift,
    column_checks.left_out,
)
"""All checks, in the order of the report."""


def audit(
    frame: pl.DataFrame,
    split: pl.Series,
    columns: Sequence[Column],
    target: str,
    task: Task,
    *,
    split_by: str,
    split_column: pl.Series | None = None,
) -> list[Finding]:
    """Checks the rows and their split; returns the findings, grave ones first.

    Args:
        frame: Cleaned rows in order, or a uniform sample of them: numbers and dates (seconds since 1970) as Float64,
            the target as String or Float64, categories and text as String, other columns as they are, and COPY.
        split: 0 train, 1 validation, 2 test, -1 left out.
        columns: All columns of the table.
        target: Name of the target.
        task: The task.
        split_by: data.split.by.
        split_column: Cells of data.split.column.
    """
    text_kinds = ("category", "identifier", "drop")
    cells = [frame[column.name] for column in columns if column.kind in text_kinds and column.name != target]
    rows = Rows(
        frame.with_columns(clean_text(cell, MISSING) for cell in cells if cell.dtype == pl.String).filter(split >= 0),
        split.filter(split >= 0).cast(pl.Int64).to_numpy(),
        columns,
        target,
        task,
        split_by,
        None if split_column is None else split_column.name,
    )
    findings = [finding for check in CHECKS for finding in check(rows)]
    return sorted(findings, key=lambda finding: not finding.grave)


def report(findings: Sequence[Finding]) -> str:
    """One line per finding, up to SHOWN, and the number of further ones."""
    if not findings:
        return "audit: no findings"
    lines = [f"{'GRAVE ' if one.grave else ''}{one.check}: {one.message}; {one.advice}" for one in findings[:SHOWN]]
    more = [f"... and {len(findings) - SHOWN} more in audit.json"] if len(findings) > SHOWN else []
    return "\n".join(f"audit: {line}" for line in lines + more)


def to_json(findings: Sequence[Finding]) -> str:
    """The content of audit.json."""
    return json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False)


def refuse(findings: Sequence[Finding]) -> None:
    """Raises DataError if there are grave findings, for data.audit=strict."""
    grave = [f"{finding.message}; {finding.advice}" for finding in findings if finding.grave]
    if grave:
        what = "data.audit=strict: the audit found problems that invalidate the metrics (data.audit=on only warns):"
        raise DataError("\n".join([what, *grave]))
