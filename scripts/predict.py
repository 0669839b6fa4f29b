"""Predicts for the raw rows of a file. Unusual values are flagged, invalid rows are written to a file of rejected rows.

python scripts/predict.py --artifact model.pt --input rows.csv --output predictions.parquet
python scripts/predict.py --artifact model.pt --input - --output - --rejects rejects.csv < rows.csv > predictions.csv

The input is CSV, TSV, Parquet or JSON lines, compressed or not; "-" is CSV on standard input or output. The output has
the `line` of the input, `label` and `probability_<class>` (or `value`), and `flags`. The file of rejected rows, by
default predictions.rejects.parquet next to predictions.parquet, is written only if rows were rejected. It has `file`,
`line`, `column`, `rule` and `value`. Text without a header needs the column names of training: --names label,message.
The exit code is 2 if the input cannot be used, or if rows were rejected without a file to write them to.
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
    """Predicts for the rows of `source` in chunks of `batch`. Returns a summary with the numbers of rows.

    `settings`: arguments of `datamodules.readers.read.read_chunks`.
    """
    rejects = rejects if output == STANDARD else rejects or rejects_path(output)
    predicted = flagged = rejected = 0
    reported: set[str] = set()
    with ExitStack() as files:
        write = files.enter_context(writing(output))
        write_rejects: Append | None = None
        for raw in read_chunks(source, rows=batch, **settings):
            report_columns(artifact, raw.frame, source, reported)
            predictions, bad = score(artifact, raw)
            write(predictions)
            if len(bad) and rejects is not None:
                write_rejects = write_rejects or files.enter_context(writing(rejects))
                write_rejects(bad)
            predicted += len(predictions)
            flagged += len(predictions.filter(pl.col("flags") != ""))
            rejected += bad.n_unique(["file", "line"])
    if rejects is not None and write_rejects is None:
        Path(rejects).unlink(missing_ok=True)  # a file of an earlier call would be misleading
    summary = (
        f"{predicted + rejected:,} rows read, {predicted:,} predicted ({flagged:,} of them flagged),"
        f" {rejected:,} rejected"
    )
    if rejected and rejects is None:
        raise InputError(f"{summary} and not saved. Give --rejects FILE.")
    return f"{summary}: {rejects}" if rejected else summary


def score(artifact: Artifact, raw: Raw) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns predictions with their lines, and rejected rows, including invalid lines, with the columns of
    quarantine.parquet."""
    scored = artifact.score(raw.frame, raw.root)
    location = raw.frame.select(file=FILE, line=LINE)
    bad = pl.concat([location[scored.rejects[ROW]], scored.rejects.drop(ROW)], how="horizontal")
    lines = location[scored.answers[ROW]].select("line")
    return pl.concat([lines, scored.answers.drop(ROW)], how="horizontal"), pl.concat([bad, raw.bad]).sort(
        "line", maintain_order=True
    )


def report_columns(artifact: Artifact, frame: pl.DataFrame, source: str, reported: set[str]) -> None:
    """Prints missing and ignored columns to standard error, each column once; `reported` are those printed before."""
    columns = [name for name in frame.columns if name not in (FILE, LINE)]
    absent, ignored = ([name for name in names if name not in reported] for names in artifact.compare_columns(columns))
    if len(absent) == len(artifact.columns):
        raise InputError(
            f"{source}: has no column of {artifact.path}. Expected {', '.join(artifact.columns)}; found"
            f" {', '.join(columns)}."
        )
    reported.update(absent, ignored)
    if absent:
        print(f"warning: {source} lacks columns, treated as missing values: {', '.join(absent)}", file=sys.stderr)
    if ignored:
        print(f"note: ignored columns that the model does not use: {', '.join(ignored)}", file=sys.stderr)


def add_read_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for reading the input; `read_settings` evaluates them."""
    parser.add_argument("--names", help="column names of a text file without a header, such as label,message")
    parser.add_argument("--separator", help="separator of a text file, if it is not detected")
    parser.add_argument("--replace-invalid", action="store_true", help="replace bytes that are not UTF-8 by U+FFFD")


def read_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings of `datamodules.readers.read.read_chunks`."""
    if arguments.separator is not None and len(arguments.separator.encode()) != 1:
        raise InputError(f"--separator {arguments.separator!r}: must be one character. A tab is detected without it.")
    return {
        "names": arguments.names and arguments.names.split(","),
        "separator": arguments.separator,
        "replace_invalid": arguments.replace_invalid,
    }


def rejects_path(output: str) -> str:
    """predictions.parquet -> predictions.rejects.parquet"""
    path = Path(output)
    return str(path.with_suffix(f".rejects{path.suffix}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", required=True, help="model.pt of a run folder")
    parser.add_argument("--input", required=True, help="file of rows, or - for CSV on standard input")
    parser.add_argument("--output", required=True, help=f"file ({', '.join(SINKS)}), or - for CSV on standard output")
    parser.add_argument("--rejects", help="file for rejected rows")
    add_read_options(parser)
    parser.add_argument("--batch", type=int, default=65_536, help="number of rows in memory at a time")
    arguments = parser.parse_args()
    if arguments.batch < 1:
        parser.error(f"--batch {arguments.batch}: must be at least 1")
    named = [arguments.artifact, arguments.input, arguments.output, arguments.rejects or rejects_path(arguments.output)]
    files = [Path(name).resolve() for name in named if name != STANDARD]
    if len(set(files)) < len(files):
        parser.error(f"--artifact, --input, --output and --rejects must be different files: {', '.join(named)}")
    try:
        artifact = Artifact.load(arguments.artifact)
        artifact.check()
        settings = read_settings(arguments)
        print(
            predict(artifact, arguments.input, arguments.output, arguments.rejects, arguments.batch, **settings),
            file=sys.stderr,
        )
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_CODE)
    except BrokenPipeError:  # the reader closed the pipe; discard what Python would still flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
