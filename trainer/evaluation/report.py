"""Text that a run prints at its start and at its end."""

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
"""Columns of the table of results and the prefixes of their metrics. Baselines are measured on the test rows."""
FLATTERING = "calibrated_log_loss"
"""Its temperature is fitted on the measured rows themselves, so it is shown only if it is the monitor."""


def say_data(datamodule: TableDataModule) -> None:
    """Logs the description of the data under this module's name, which pool workers forward to the console."""
    log.info("%s\n", describe_data(datamodule))


def describe_data(datamodule: TableDataModule) -> str:
    """Returns tables of the columns and the splits, the audit, and the number of quarantined cells, as text."""
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
    quarantined = 0 if datamodule.quarantine is None else len(datamodule.quarantine)
    return text + (
        f"\n\n{count(quarantined, 'quarantined cell')}, with row and reason: quarantine.parquet" if quarantined else ""
    )


def closing(
    folder: Path,
    metrics: Mapping[str, float],
    artifact: Path | None,
    seconds: float,
    verdict: str = "",
    monitor: str = "",
) -> str:
    """Returns the last lines of a run: metrics, comparison with the baselines (`verdict`), files and their use."""
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
        f"{ending}; {seconds:.1f} s in total.",
        f"run folder  {folder}",
    ]
    if artifact is not None:
        lines += _artifact(artifact)
    return "\n".join(lines)


def _artifact(path: Path) -> list[str]:
    size = path.stat().st_size / 1e6
    return [
        f"artifact    {short(path)} ({size:.2f} MB)",
        f"use it      python scripts/predict.py --artifact {short(path)} --input rows.csv --output predictions.csv",
    ]


def trained(metrics: Mapping[str, float]) -> str:
    """Number of epochs, training time and best epoch, as text."""
    best = f", the best was epoch {metrics['fit/best_epoch']:.0f}" if "fit/best_epoch" in metrics else ""
    return f"{count(round(metrics['fit/epochs']), 'epoch')} in {metrics['fit/seconds']:.1f} s{best}"


def reached(metrics: Mapping[str, float], monitor: str) -> str:
    """Summary of a run in one line."""
    return f"{monitor} {metrics[monitor]:.5g}; {trained(metrics)}"


def _members(metrics: Mapping[str, float]) -> str:
    """Mean and standard deviation of the metrics of single ensemble members."""
    split = "test" if "member/test/loss" in metrics else "val"
    names = [name for name in metrics if name.startswith(f"member/{split}/") and not name.endswith("/std")]
    shown = [
        f"{name.rsplit('/', 1)[1]} {metrics[name]:,.5g} ± {metrics[f'{name}/std']:.2g}"
        for name in names
        if name.rsplit("/", 1)[1] in ("accuracy", "auroc", "log_loss", "rmse", "r2")
    ]
    return f"Single members on {split}: {', '.join(shown)}"


def cross_validation(folder: Path, metrics: Mapping[str, float], folds: int, seconds: float) -> str:
    """Returns the last lines of a cross-validation: mean and standard deviation of each metric, and files."""
    columns = {name: prefix for name, prefix in COLUMNS.items() if f"{prefix}/loss" in metrics}
    results = table(f"Result of {folds} folds, mean ± standard deviation", "metric", *columns, numeric=columns)
    names = [name.removeprefix("test/") for name in metrics if name.startswith("test/") and not name.endswith("/std")]
    for name in names:
        cells = [(metrics[f"{prefix}/{name}"], metrics[f"{prefix}/{name}/std"]) for prefix in columns.values()]
        results.add_row(name, *(f"{mean:,.5g} ± {deviation:.2g}" for mean, deviation in cells))
    lines = [
        render(results),
        "",
        f"{seconds:.1f} s in total.",
        f"run folder  {short(folder)}, with a run for each fold",
    ]
    if (predictions := folder / "out_of_fold.parquet").exists():
        lines.append(f"predictions {short(predictions)}: each row, predicted by the fold that tested it")
    if (artifact := folder / "model.pt").exists():
        lines += _artifact(artifact)
    return "\n".join(lines)


def _distribution(datamodule: TableDataModule, split: str) -> str:
    facts = datamodule.splits[split]
    if datamodule.target.task == "regression":
        return f"mean {facts['mean']:,.6g}, standard deviation {facts['deviation']:,.6g}"
    shares = [f"{name} {facts['classes'].get(name, 0) / facts['rows']:.1%}" for name in datamodule.target.classes]
    return ", ".join(shares[:8]) + (f" and {len(shares) - 8} more" if len(shares) > 8 else "")
