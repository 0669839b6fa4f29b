"""Measures an artefact on labelled rows, by the metrics of training.

python scripts/evaluate.py --artifact model.pt --input labelled.csv [--output metrics.json]

Text without a header needs the names that training had: --names label,message.
Rows that cannot be answered and rows without a known class are left out of the metrics and counted.
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
from scripts.predict import add_reading, reading, tell_columns


def evaluate(artifact: Artifact, source: str, **settings: Any) -> dict[str, float]:
    """The metrics by name, and how many `rows` were measured, `rejected`, or were `without_target`.

    `settings`: of `datamodules.readers.read.read_chunks`.
    """
    facts = artifact.spec["target"]
    target = TargetSpec(facts["name"], facts["task"], tuple(facts["classes"]))
    measure = metrics.build(target)
    if isinstance(measure, metrics.ClassMetrics) and target.task == "binary":
        measure.threshold = artifact.spec["threshold"]
    answer_columns = [f"probability_{name}" for name in target.classes]
    measured = rejected = unknown = 0
    said: set[str] = set()
    for raw in read_chunks(source, **settings):
        if target.name not in raw.frame.columns:
            raise InputError(
                f"{source}: no column '{target.name}', the target of {artifact.path}. Give rows with"
                " their true answers; predict.py takes rows without."
            )
        tell_columns(artifact, raw.frame, source, said)
        scored = artifact.score(raw.frame, raw.root)
        truth = true_answers(artifact, raw.frame[target.name].gather(scored.answers[ROW]))
        known = truth.is_not_null()
        answers = scored.answers.filter(known)
        predicted = answers.select(answer_columns).to_numpy() if answer_columns else answers["value"].to_numpy()
        measure.update(torch.tensor(predicted), torch.tensor(truth.filter(known).to_numpy()))
        measured += len(answers)
        unknown += len(truth) - len(answers)
        rejected += len(raw.frame) + raw.bad.n_unique(["file", "line"]) - len(truth)
    if measured == 0:
        raise InputError(f"{source}: no row could be answered and has a known '{target.name}'. Nothing is measured.")
    values = {name: value.item() for name, value in measure.compute().items()}
    return values | {"rows": measured, "rejected": rejected, "without_target": unknown}


def heading(artifact: Artifact) -> str:
    """What is measured: the target, and of two classes from which probability on the second is the answer."""
    target, threshold = artifact.spec["target"], artifact.spec["threshold"]
    if threshold is None:
        return f"{target['name']}:"
    return f"{target['name']}: class 1 ({target['classes'][1]}) from {threshold:.4g} on"


def true_answers(artifact: Artifact, cells: pl.Series) -> pl.Series:
    """The target read as in training: class index or value, null where it is missing or no class of the artefact."""
    facts = artifact.spec["target"]
    names = clean_text(as_text(cells), artifact.missing).replace(facts["replace"])
    if facts["task"] == "regression":
        return as_number(names, artifact.missing)[0]
    classes = facts["classes"]
    return names.replace_strict(classes, range(len(classes)), default=None, return_dtype=pl.Int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", required=True, help="the model.pt of a run folder")
    parser.add_argument("--input", required=True, help="rows with the target; - is CSV on standard input")
    add_reading(parser)
    parser.add_argument("--output", type=Path, help="JSON of the metrics")
    given = parser.parse_args()
    try:
        artifact = Artifact.load(given.artifact)
        artifact.check()
        values = evaluate(artifact, given.input, **reading(given))
        if given.output is not None:
            plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
            with as_input_error(str(given.output)):
                given.output.write_text(json.dumps(plain, indent=2))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_CODE)
    print(heading(artifact))
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:<{width}}  {value:,.6g}" if isinstance(value, float) else f"{name:<{width}}  {value:,}")


if __name__ == "__main__":
    main()
