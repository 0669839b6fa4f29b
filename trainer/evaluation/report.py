"""What a run says at its start and at its end."""

import logging
from collections.abc import Mapping
from pathlib import Path

from datamodules.audit import audit
from datamodules.schema import FEATURE_KINDS, count
from datamodules.split import SPLITS
from datamodules.tabular import TableDataModule
from trainer.folders.tables import render, short, table

log = logging.getLogger(__name__)

COLUMNS = {"val": "val", "test": "test", "linear": "baseline/linear", "constant": "baseline/constant"}
"""Of the table of results: their names, and where their metrics are. The baselines are measured on the test rows."""
FLATTERING = "calibrated_log_loss"
"""On test rows its temperature is fitted on these very rows: it is shown where it is the monitor alone."""


def say_data(datamodule: TableDataModule) -> None:
    """Logged under this module's name, by which a fold in a process of its own has it on the console."""
    log.info("%s\n", describe_data(datamodule))


def describe_data(datamodule: TableDataModule) -> str:
    """The columns with their kinds and reasons, the splits, and what was set aside, as text."""
    columns = table("Columns", "column", "kind", "used", "why")
    for column in datamodule.columns:
        used = "yes" if column.kind in FEATURE_KINDS else "no"
        if column.name == datamodule.target.name:
            used = "target"
        columns.add_row(column.name, column.kind, used, column.reason)
    splits = table("Splits", "split", "rows", datamodule.target.name, numeric=("rows",))
    for split in SPLITS:
        splits.add_row(split, f"{datamodule.splits[split]['rows']:,}", _distribution(datamodule, split))
    text = f"{render(columns)}\n\n{render(splits)}\n\n{audit.report(datamodule.findings or ())}"
    aside = 0 if datamodule.quarantine is None else len(datamodule.quarantine)
    return text + (
        f"\n\n{count(aside, 'cell')} set aside with the row and the reason: quarantine.parquet" if aside else ""
    )


def closing(
    folder: Path,
    metrics: Mapping[str, float],
    artifact: Path | None,
    seconds: float,
    verdict: str = "",
    monitor: str = "",
) -> str:
    """The last lines: what came out, how it does beside the baselines (`verdict`), where it is, and how to use it."""
    columns = {name: prefix for name, prefix in COLUMNS.items() if f"{prefix}/loss" in metrics}
    results = table("Result", "metric", *columns, numeric=columns)
    names = dict.fromkeys(name.split("/", 1)[1] for name in metrics if name.split("/", 1)[0] in columns)
    if not monitor.endswith(FLATTERING):
        names.pop(FLATTERING, None)
    for name in names:
        cells = [metrics.get(f"{prefix}/{name}") for prefix in columns.values()]
        results.add_row(name, *("" if value is None else f"{value:,.5g}" for value in cells))
    folder = short(folder)
    ending = _members(metrics) if "member/fit/seconds" in metrics else trained(metrics)
    lines = [
        render(results),
        "",
        *([verdict, ""] if verdict else []),
        f"{ending}; {seconds:.1f} s in all.",
        f"run folder  {folder}",
    ]
    if artifact is not None:
        lines += _artifact(artifact)
    return "\n".join(lines)


def _artifact(path: Path) -> list[str]:
    size = path.stat().st_size / 1e6
    return [
        f"artefact    {short(path)} ({size:.2f} MB)",
        f"use it      python scripts/predict.py --artifact {short(path)} --input rows.csv --output answers.csv",
    ]


def trained(metrics: Mapping[str, float]) -> str:
    best = f", the best was epoch {metrics['fit/best_epoch']:.0f}" if "fit/best_epoch" in metrics else ""
    return f"{count(round(metrics['fit/epochs']), 'epoch')} in {metrics['fit/seconds']:.1f} s{best}"


def reached(metrics: Mapping[str, float], monitor: str) -> str:
    """A run in a line."""
    return f"{monitor} {metrics[monitor]:.5g}; {trained(metrics)}"


def _members(metrics: Mapping[str, float]) -> str:
    """How the members of an ensemble do alone."""
    split = "test" if "member/test/loss" in metrics else "val"
    names = [name for name in metrics if name.startswith(f"member/{split}/") and not name.endswith("/std")]
    shown = [
        f"{name.rsplit('/', 1)[1]} {metrics[name]:,.5g} ± {metrics[f'{name}/std']:.2g}"
        for name in names
        if name.rsplit("/", 1)[1] in ("accuracy", "auroc", "log_loss", "rmse", "r2")
    ]
    return f"Its members alone, on {split}: {', '.join(shown)}"


def cross_validation(folder: Path, metrics: Mapping[str, float], folds: int, seconds: float) -> str:
    """The last lines of a cross-validation: mean and deviation of each metric, and where the rest is."""
    columns = {name: prefix for name, prefix in COLUMNS.items() if f"{prefix}/loss" in metrics}
    results = table(f"Result of {folds} folds, mean ± deviation", "metric", *columns, numeric=columns)
    names = [name.removeprefix("test/") for name in metrics if name.startswith("test/") and not name.endswith("/std")]
    for name in names:
        cells = [(metrics[f"{prefix}/{name}"], metrics[f"{prefix}/{name}/std"]) for prefix in columns.values()]
        results.add_row(name, *(f"{mean:,.5g} ± {deviation:.2g}" for mean, deviation in cells))
    lines = [
        render(results),
        "",
        f"{seconds:.1f} s in all.",
        f"run folder  {short(folder)}, with a run for each fold",
    ]
    if (answers := folder / "out_of_fold.parquet").exists():
        lines.append(f"answers     {short(answers)}: each row as it was when tested")
    if (artifact := folder / "model.pt").exists():
        lines += _artifact(artifact)
    return "\n".join(lines)


def _distribution(datamodule: TableDataModule, split: str) -> str:
    facts = datamodule.splits[split]
    if datamodule.target.task == "regression":
        return f"mean {facts['mean']:,.6g}, deviation {facts['deviation']:,.6g}"
    shares = [f"{name} {facts['classes'].get(name, 0) / facts['rows']:.1%}" for name in datamodule.target.classes]
    return ", ".join(shares[:8]) + (f" and {len(shares) - 8} more" if len(shares) > 8 else "")
