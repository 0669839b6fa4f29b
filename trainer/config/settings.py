"""Settings of the command line: how they are read and quoted, and how nested settings are flattened."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

ROOT = Path(__file__).parents[2]
"""The folder of the project."""
COMMAND = "command line"


@dataclass(frozen=True)
class Setting:
    """An override, such as `model.dropout=0.2`, and where it was given: "command line" or a file."""

    line: str
    where: str = COMMAND

    @property
    def key(self) -> str:
        return re.split("[=@]", self.line.lstrip("+~"), maxsplit=1)[0]

    @property
    def text(self) -> str:
        """The value without its quotes if it is text, else as it was given."""
        try:
            value = OverridesParser.create().parse_override(self.line).value()
        except HydraException:  # composing reports it
            value = None
        return value if isinstance(value, str) else self.line.partition("=")[2]


def quoted(path: Path | str) -> str:
    """The text as the value of an override. Without quotes Hydra would not read 2026, null or 1e5 as text."""
    plain = re.fullmatch(r"[\w.:-]*/[\w./:-]*", str(path))
    return str(path) if plain else "'" + str(path).replace("'", r"\'") + "'"


def argument(key: str, path: Path) -> str:
    """The override KEY=PATH, quoted for a shell."""
    return shlex.quote(f"{key}={quoted(path)}")


def leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the full keys and values of a plain config."""
    for name, value in tree.items():
        full = f"{key}.{name}" if key else str(name)
        if isinstance(value, dict) and value:
            yield from leaves(value, full)
        else:
            yield full, value


def relative_to_root(path: str) -> str:
    """A path in the project relative to it; other paths as they are."""
    return str(Path(path).relative_to(ROOT)) if Path(path).is_relative_to(ROOT) else path
