"""Computes the metrics of training for an artifact on labeled rows.

python scripts/evaluate.py --artifact model.pt --input labeled.csv [--output metrics.json]

Text without a header needs the column names of training: --names label,message.
Rejected rows and rows without a known class do not count in the metrics; their numbers are printed.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import polars as pl
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.cells import as_number, as_text, clean_text
from common.errors import EXIT_CODE, InputError
from datamodules.readers.read import read_chunks
from datamodules.schema import TargetSpec
from inference.artifact import ROW, Artifact
from inference.writers import as_input_error
from models.training import metrics
from scripts.predict import add_read_options, read_settings, report_columns


def evaluate(artifact: Artifact, source: str, **settings: Any) -> dict[str, float]:
    """Returns the metrics by name, and the number of `rows` measured, `rejected`, and `without_target`.

    `settings`: arguments of `datamodules.readers.read.read_chunks`.
    """
    described = artifact.spec["target"]
    target = TargetSpec(described["name"], described["task"], tuple(described["classes"]))
    measure = metrics.build(target)
    if isinstance(measure, metrics.ClassMetrics) and target.task == "binary":
        measure.threshold = artifact.spec["threshold"]
    answer_columns = [f"probability_{name}" for name in target.classes]
    measured = rejected = unknown = 0
    reported: set[str] = set()
    for raw in read_chunks(source, **settings):
        if target.name not in raw.frame.columns:
            raise InputError(
                f"{source}: has no column '{target.name}', the target of {artifact.path}. Give labeled rows, or use"
                " predict.py for rows without labels."
            )
        report_columns(artifact, raw.frame, source, reported)
        scored = artifact.score(raw.frame, raw.root)
        truth = true_values(artifact, raw.frame[target.name].gather(scored.answers[ROW]))
        known = truth.is_not_null()
        answers = scored.answers.filter(known)
        predicted = answers.select(answer_columns).to_numpy() if answer_columns else answers["value"].to_numpy()
        measure.update(torch.tensor(predicted), torch.tensor(truth.filter(known).to_numpy()))
        measured += len(answers)
        unknown += len(truth) - len(answers)
        rejected += len(raw.frame) + raw.bad.n_unique(["file", "line"]) - len(truth)
    if measured == 0:
        raise InputError(f"{source}: no row to measure: all rows are rejected, or have no known '{target.name}'.")
    values = {name: value.item() for name, value in measure.compute().items()}
    return values | {"rows": measured, "rejected": rejected, "without_target": unknown}


def heading(artifact: Artifact) -> str:
    """Returns the first printed line: the target, and the threshold of class 1 if there are two classes."""
    target, threshold = artifact.spec["target"], artifact.spec["threshold"]
    if threshold is None:
        return f"{target['name']}:"
    return f"{target['name']}: class 1 ({target['classes'][1]}) if its probability is at least {threshold:.4g}"


def true_values(artifact: Artifact, cells: pl.Series) -> pl.Series:
    """Reads the target as in training: class index or value, null if it is missing or not a class of the artifact."""
    target = artifact.spec["target"]
    names = clean_text(as_text(cells), artifact.missing).replace(target["replace"])
    if target["task"] == "regression":
        return as_number(names, artifact.missing)[0]
    classes = target["classes"]
    return names.replace_strict(classes, range(len(classes)), default=None, return_dtype=pl.Int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", required=True, help="model.pt of a run folder")
    parser.add_argument("--input", required=True, help="file of rows with the target, or - for CSV on standard input")
    add_read_options(parser)
    parser.add_argument("--output", type=Path, help="JSON file for the metrics")
    arguments = parser.parse_args()
    try:
        artifact = Artifact.load(arguments.artifact)
        artifact.check()
        values = evaluate(artifact, arguments.input, **read_settings(arguments))
        if arguments.output is not None:
            plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
            with as_input_error(str(arguments.output)):
                arguments.output.write_text(json.dumps(plain, indent=2))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_CODE)
    print(heading(artifact))
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:<{width}}  {value:,.6g}" if isinstance(value, float) else f"{name:<{width}}  {value:,}")


if __name__ == "__main__":
    main()
