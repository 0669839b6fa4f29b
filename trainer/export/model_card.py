"""The model card: what the model in the artefact is, what it was measured to do, and what it takes."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def model_card(spec: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Markdown, from the artefact's description and the resolved config (Mitchell et al. 2019, arXiv 1810.03993)."""
    target = spec["target"]
    what = "a number" if target["task"] == "regression" else f"one of {len(target['classes'])} classes"
    if target["task"] != "regression":
        what += f": {', '.join(target['classes'])}"
    lines = [
        f"# {config['model']['_target_']} for {target['name']}",
        "",
        f"Answers `{target['name']}`, {what}. Made on {spec['created']} with seed {config['seed']} from"
        f" `{config['data'].get('path', config['data'].get('dataset'))}`.",
        "",
        "## Measured",
        "",
        "Validation rows chose the epoch; test rows were looked at once, at the end."
        if config["cross_validate"] is None
        else "The mean of the folds, each measured on rows that it did not train on; their mean answer is this model.",
        "",
        "| metric | value |",
        "| --- | --- |",
        *(f"| {name} | {value:.5g} |" for name, value in spec["metrics"].items() if value is not None),
        "",
        *_answers(spec),
        "",
        "## Takes",
        "",
        "| column | kind | in training |",
        "| --- | --- | --- |",
        *(f"| {column['name']} | {column['kind']} | {_seen(column)} |" for column in spec["columns"]),
        "",
        f"Missing is an empty cell or one of: {', '.join(f'`{text}`' for text in spec['missing'] if text)}.",
        "",
        "## Limits",
        "",
        "Rows unlike those of training are answered all the same: look at the flags, and compare what comes in with"
        " `reference.json` in this file.",
        "",
    ]
    return "\n".join(lines)


def _answers(spec: Mapping[str, Any]) -> list[str]:
    """What was settled after training, and what it changed."""
    if spec["clamp"] is not None:
        low, high = spec["clamp"]
        return [f"Values are held from {low:.6g} to {high:.6g}: the range of training, widened by a tenth at most."]
    lines = []
    if spec["threshold"] is not None:
        lines.append(
            f"A row is {spec['target']['classes'][1]} where the probability of it is {spec['threshold']:.4g} or more."
        )
    if spec["temperature"] not in (None, 1.0):
        lines.append(f"Probabilities have temperature {spec['temperature']:.4g}, fitted on validation rows.")
    if (calibration := spec["calibration"]) is not None:
        before, after = (calibration[when]["error"] for when in ("before", "after"))
        lines.append(
            f"On {calibration['split']} rows the probability of {calibration['of']} is off by {after:.3g} on average"
            f" (without temperature by {before:.3g}), in bins of equal width."
        )
    return [" ".join(lines)]


def _seen(column: Mapping[str, Any]) -> str:
    if column["kind"] == "text":
        return "words"
    if column["kind"] == "image":
        return "{} channels of {} x {} pixels".format(*column["shape"])
    if column["kind"] == "category":
        seen = f"{len(column['levels'])} levels"
    elif column["kind"] == "date":
        seen = " to ".join(str(datetime.fromtimestamp(column[end], UTC).date()) for end in ("min", "max"))
    else:
        seen = f"{column['min']:g} to {column['max']:g}"
    return seen + (", sometimes missing" if column["missing"] else "")
