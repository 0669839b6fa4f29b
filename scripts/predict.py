"""Answers the raw rows of a file; what is unusual is flagged, rows that cannot be answered go to a rejects file.

python scripts/predict.py --artifact model.pt --input rows.csv --output answers.parquet
python scripts/predict.py --artifact model.pt --input - --output - --rejects rejects.csv < rows.csv > answers.csv

The input is CSV, TSV, Parquet or JSON lines, compressed or not; "-" is CSV on standard input or output. The output has
`line` of the input, `label` and `probability_<class>` (or `value`), and `flags`. The rejects file, by default
answers.rejects.parquet beside answers.parquet, is there only where rows were rejected; it has `file`, `line`, `column`,
`rule` and `value`. Text without a header needs the names that training had: --names label,message. Exits with 2 where
the input cannot be used, or where rejected rows had no file to go to.
"""

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.errors import EXIT_CODE, InputError
from datamodules.readers.read import FILE, LINE, Raw, read_chunks
from inference.artifact import ROW, Artifact
from inference.writers import SINKS, STANDARD, Append, writing


def predict(artifact: Artifact, source: str, output: str, rejects: str | None, batch: int, **settings: Any) -> str:
    """Answers the rows of `source` in chunks of `batch`; returns the line that says how many, and where they are.

    `settings`: of `datamodules.readers.read.read_chunks`.
    """
    rejects = rejects if output == STANDARD else rejects or beside(output)
    answered = flagged = rejected = 0
    said: set[str] = set()
    with ExitStack() as files:
        answer = files.enter_context(writing(output))
        reject: Append | None = None
        for raw in read_chunks(source, rows=batch, **settings):
            tell_columns(artifact, raw.frame, source, said)
            answers, bad = score(artifact, raw)
            answer(answers)
            if len(bad) and rejects is not None:
                reject = reject or files.enter_context(writing(rejects))
                reject(bad)
            answered += len(answers)
            flagged += len(answers.filter(pl.col("flags") != ""))
            rejected += bad.n_unique(["file", "line"])
    if rejects is not None and reject is None:
        Path(rejects).unlink(missing_ok=True)  # of an earlier run: it would be taken for this one's
    told = (
        f"{answered + rejected:,} rows read, {answered:,} answered ({flagged:,} of them flagged), {rejected:,} rejected"
    )
    if rejected and rejects is None:
        raise InputError(f"{told} and not kept: give --rejects FILE.")
    return f"{told}: {rejects}" if rejected else told


def score(artifact: Artifact, raw: Raw) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The answers with their lines, and the rejects, bad rows of the file included, laid out as a run's quarantine."""
    scored = artifact.score(raw.frame, raw.root)
    place = raw.frame.select(file=FILE, line=LINE)
    bad = pl.concat([place[scored.rejects[ROW]], scored.rejects.drop(ROW)], how="horizontal")
    answers = pl.concat([place[scored.answers[ROW]].select("line"), scored.answers.drop(ROW)], how="horizontal")
    return answers, pl.concat([bad, raw.bad]).sort("line", maintain_order=True)


def tell_columns(artifact: Artifact, frame: pl.DataFrame, source: str, said: set[str]) -> None:
    """Says on standard error, once a column, which are absent and which are not looked at."""
    columns = [name for name in frame.columns if name not in (FILE, LINE)]
    absent, ignored = ([name for name in names if name not in said] for names in artifact.compare_columns(columns))
    if len(absent) == len(artifact.columns):
        raise InputError(
            f"{source}: none of the columns that {artifact.path} takes is in it. It takes"
            f" {', '.join(artifact.columns)}; the file has {', '.join(columns)}."
        )
    said.update(absent, ignored)
    if absent:
        print(f"warning: not in {source}, answered as missing: {', '.join(absent)}", file=sys.stderr)
    if ignored:
        print(f"note: not in the model, ignored: {', '.join(ignored)}", file=sys.stderr)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """The options that say how the input is to be read; `reading` takes them."""
    parser.add_argument("--names", help="of the columns of text without a header: label,message")
    parser.add_argument("--separator", help="of the columns of text, where it is not found")
    parser.add_argument("--replace-invalid", action="store_true", help="take U+FFFD for bytes that are no UTF-8")


def reading(given: argparse.Namespace) -> dict[str, Any]:
    """The settings of `datamodules.readers.read.read_chunks`."""
    if given.separator is not None and len(given.separator.encode()) != 1:
        raise InputError(f"--separator {given.separator!r}: must be one character; a tab is found without it")
    return {
        "names": given.names and given.names.split(","),
        "separator": given.separator,
        "replace_invalid": given.replace_invalid,
    }


def beside(output: str) -> str:
    """answers.parquet -> answers.rejects.parquet"""
    path = Path(output)
    return str(path.with_suffix(f".rejects{path.suffix}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", required=True, help="the model.pt of a run folder")
    parser.add_argument("--input", required=True, help="the rows")
    parser.add_argument("--output", required=True, help=f"{', '.join(SINKS)}, or - for CSV on standard output")
    parser.add_argument("--rejects", help="where the rows go that cannot be answered")
    add_reading(parser)
    parser.add_argument("--batch", type=int, default=65_536, help="rows in memory at a time")
    given = parser.parse_args()
    if given.batch < 1:
        parser.error(f"--batch {given.batch}: must be at least 1")
    named = [given.artifact, given.input, given.output, given.rejects or beside(given.output)]
    files = [Path(name).resolve() for name in named if name != STANDARD]
    if len(set(files)) < len(files):
        parser.error(f"--artifact, --input, --output and --rejects must be different files: {', '.join(named)}")
    try:
        artifact = Artifact.load(given.artifact)
        artifact.check()
        told = predict(artifact, given.input, given.output, given.rejects, given.batch, **reading(given))
        print(told, file=sys.stderr)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_CODE)
    except BrokenPipeError:  # who reads has seen enough; what Python would still flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
