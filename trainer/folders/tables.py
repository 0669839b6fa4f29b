"""Tables as text, for the console and the log."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 110


def table(title: str, *headings: str, numeric: Collection[str] = ()) -> "Table":
    """Without rows yet; columns of `numeric` headings are set to the right."""
    from rich.table import Table

    made = Table(title=title, box=None, pad_edge=False)
    for heading in headings:
        made.add_column(heading, overflow="fold", justify="right" if heading in numeric else "left")
    return made


def render(table: "Table") -> str:
    from rich.console import Console

    title, table.title = str(table.title), None  # which rich would break at the width of the table
    console = Console(width=WIDTH, no_color=True)
    with console.capture() as captured:
        console.print(table, markup=False)
    return "\n".join(line.rstrip() for line in (title, *captured.get().rstrip().splitlines()))


def short(path: Path) -> Path:
    """The path from here, where it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
