"""Publishes the results of a benchmark: prints them, and writes them as JSON or to a section of docs/benchmarks.md."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"


def machine() -> str:
    """One line that describes the machine and the versions of a measurement."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pytorch-lightning", "polars"))
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {packages}, {date.today()}"
    )


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def publish(section: str, command: str, body: str, figures: Any, json_file: Path | None) -> None:
    """Prints the body, and writes the figures to `json_file`; without one, replaces the section on the page."""
    print(body)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2))
        return
    text = PAGE.read_text() if PAGE.exists() else "# Benchmarks\n"
    block = f"## {section}\n\n`{command}`\n{machine()}\n\n{body}\n"
    parts = text.split("\n## ")
    kept = [part for part in parts[1:] if not part.startswith(f"{section}\n")]
    PAGE.write_text("\n## ".join([parts[0], *kept]).rstrip() + f"\n\n{block}")
