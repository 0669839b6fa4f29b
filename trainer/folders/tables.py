"""Tables as text, for the console and the log."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 110
"""Width of a table in characters."""


def table(title: str, *headings: str, numeric: Collection[str] = ()) -> "Table":
    """A table without rows; columns whose heading is in `numeric` are aligned to the right."""
    from rich.table import Table

    empty = Table(title=title, box=None, pad_edge=False)
    for heading in headings:
        empty.add_column(heading, overflow="fold", justify="right" if heading in numeric else "left")
    return empty


def render(table: "Table") -> str:
    """The table as plain text, with its title as the first line."""
    from rich.console import Console

    title, table.title = str(table.title), None  # rich would wrap it at the width of the table
    console = Console(width=WIDTH, no_color=True)
    with console.capture() as captured:
        console.print(table, markup=False)
    return "\n".join(line.rstrip() for line in (title, *captured.get().rstrip().splitlines()))


def short(path: Path) -> Path:
    """The path relative to the current folder if it is below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
