"""What a run writes down beside its metrics, and what it says at the start and at the end."""

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from datamodules.schema import FEATURE_KINDS
from datamodules.split import SPLITS
from datamodules.table import TableDataModule

PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "hydra-core", "polars", "scikit-learn", "numpy")


def write_config(folder: Path, config: DictConfig) -> None:
    """The config with every reference resolved, as it was carried out."""
    OmegaConf.save(config, folder / "config.yaml", resolve=True)


def write_environment(folder: Path) -> None:
    """Versions, machine and the state of the code: what is needed to repeat the run."""
    facts = {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "git": {"commit": _git("rev-parse", "HEAD"), "changed": _git("status", "--porcelain").splitlines()},
    }
    (folder / "environment.json").write_text(json.dumps(facts, indent=2))


def _git(*arguments: str) -> str:
    root = Path(__file__).parents[1]
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def describe_data(datamodule: TableDataModule) -> str:
    """The columns with their kinds and reasons, the rows set aside, and the splits, as text."""
    columns = Table(title="Columns", title_justify="left", box=None, pad_edge=False)
    for heading in ("column", "kind", "used", "why"):
        columns.add_column(heading, overflow="fold")
    for column in datamodule.columns:
        if column.name == datamodule.target.name:
            used = "target"
        else:
            used = "yes" if column.kind in FEATURE_KINDS else "no"
        columns.add_row(column.name, column.kind, used, column.reason)

    splits = Table(title="\nSplits", title_justify="left", box=None, pad_edge=False)
    for heading in ("split", "rows", datamodule.target.name):
        splits.add_column(heading, justify="right" if heading == "rows" else "left")
    for split in SPLITS:
        splits.add_row(split, f"{len(datamodule.frames[split]):,}", _distribution(datamodule, split))
    console = Console(width=110, no_color=True)
    with console.capture() as captured:
        console.print(columns, splits, markup=False)
    lines = captured.get().rstrip()
    lines = "\n".join(line.rstrip() for line in lines.splitlines())
    aside = len(datamodule.quarantine)
    return lines + (f"\n\n{aside} rows set aside with their reasons: quarantine.parquet" if aside else "")


def _distribution(datamodule: TableDataModule, split: str) -> str:
    values = datamodule.frames[split][datamodule.target.name]
    if datamodule.target.task == "regression":
        mean, deviation = values.to_numpy().mean(), values.to_numpy().std()
        return f"mean {mean:,.6g}, deviation {deviation:,.6g}"
    counts = dict(values.value_counts().iter_rows())
    shares = [f"{name} {counts.get(name, 0) / len(values):.1%}" for name in datamodule.target.classes]
    return ", ".join(shares[:8]) + (f" and {len(shares) - 8} more" if len(shares) > 8 else "")


def closing(folder: Path, metrics: dict[str, float], artifact: Path | None, seconds: float) -> str:
    """The last lines: what came out, where it is, and how to use it."""
    table = Table(title="Result", title_justify="left", box=None, pad_edge=False)
    table.add_column("metric")
    kinds = [kind for kind in ("val", "test") if any(name.startswith(f"{kind}/") for name in metrics)]
    for kind in kinds:
        table.add_column(kind, justify="right")
    names = dict.fromkeys(name.split("/", 1)[1] for name in metrics if name.split("/")[0] in kinds)
    for name in names:
        cells = [metrics.get(f"{kind}/{name}") for kind in kinds]
        table.add_row(name, *("" if value is None else f"{value:,.5g}" for value in cells))
    console = Console(width=110, no_color=True)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().rstrip().splitlines()]
    epochs = f"{metrics['fit/epochs']:.0f} epochs in {metrics['fit/seconds']:.1f} s, {seconds:.1f} s in all"
    lines += ["", f"{epochs}. Run folder: {folder}"]
    if artifact is not None:
        size = artifact.stat().st_size / 1e6
        lines.append(f"Artefact ({size:.2f} MB): {artifact}")
        lines.append(f"Use it: python scripts/predict.py --artifact {artifact} --input rows.csv --output answers.csv")
    return "\n".join(lines)
