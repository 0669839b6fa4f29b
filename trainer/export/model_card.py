"""Model card of an artifact: the model, its metrics, its inputs and its limits."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def model_card(spec: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Returns a model card (Mitchell et al. 2019, arXiv 1810.03993) as Markdown.

    `spec`: description of the artifact; `config`: resolved config.
    """
    target = spec["target"]
    what = "a number" if target["task"] == "regression" else f"one of {len(target['classes'])} classes"
    if target["task"] != "regression":
        what += f": {', '.join(target['classes'])}"
    lines = [
        f"# {config['model']['_target_']} for {target['name']}",
        "",
        f"Predicts `{target['name']}`, {what}. Created on {spec['created']} with seed {config['seed']} from"
        f" `{config['data'].get('path', config['data'].get('dataset'))}`.",
        "",
        "## Metrics",
        "",
        "The epoch was chosen on validation rows. Test rows were used once, at the end."
        if config["cross_validate"] is None
        else "Means over the folds, each measured on rows that it was not trained on. The model averages the folds.",
        "",
        "| metric | value |",
        "| --- | --- |",
        *(f"| {name} | {value:.5g} |" for name, value in spec["metrics"].items() if value is not None),
        "",
        *_answers(spec),
        "",
        "## Inputs",
        "",
        "| column | kind | training values |",
        "| --- | --- | --- |",
        *(f"| {column['name']} | {column['kind']} | {_seen(column)} |" for column in spec["columns"]),
        "",
        f"A missing value is an empty cell or one of: {', '.join(f'`{text}`' for text in spec['missing'] if text)}.",
        "",
        "## Limits",
        "",
        "The model also predicts for rows that differ from the training rows. Check the flags, and compare new data"
        " with `reference.json` in this file.",
        "",
    ]
    return "\n".join(lines)


def _answers(spec: Mapping[str, Any]) -> list[str]:
    """Sentences on clipping, threshold, temperature and calibration."""
    if spec["clamp"] is not None:
        low, high = spec["clamp"]
        return [f"Values are clipped to {low:.6g} ... {high:.6g}: the training range, widened by at most a tenth."]
    lines = []
    if spec["threshold"] is not None:
        lines.append(
            f"The label is {spec['target']['classes'][1]} if its probability is at least {spec['threshold']:.4g}."
        )
    if spec["temperature"] not in (None, 1.0):
        lines.append(f"Probabilities are scaled with temperature {spec['temperature']:.4g}, fitted on validation rows.")
    if (calibration := spec["calibration"]) is not None:
        before, after = (calibration[when]["error"] for when in ("before", "after"))
        lines.append(
            f"The expected calibration error of {calibration['of']} on {calibration['split']} rows is {after:.3g}"
            f" ({before:.3g} without temperature), in bins of equal width."
        )
    return [" ".join(lines)]


def _seen(column: Mapping[str, Any]) -> str:
    if column["kind"] == "text":
        return "words"
    if column["kind"] == "image":
        return "{} channels, {} x {} pixels".format(*column["shape"])
    if column["kind"] == "category":
        seen = f"{len(column['levels'])} levels"
    elif column["kind"] == "date":
        seen = " to ".join(str(datetime.fromtimestamp(column[end], UTC).date()) for end in ("min", "max"))
    else:
        seen = f"{column['min']:g} to {column['max']:g}"
    return seen + (", sometimes missing" if column["missing"] else "")
