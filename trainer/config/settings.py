"""Settings of the command line: how they are read and written, and how nested settings are flattened."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

ROOT = Path(__file__).parents[2]


COMMAND = "command line"


@dataclass(frozen=True)
class Setting:
    """An override, such as `model.dropout=0.2`, and where it was given."""

    line: str
    where: str = COMMAND

    @property
    def key(self) -> str:
        return re.split("[=@]", self.line.lstrip("+~"), maxsplit=1)[0]

    @property
    def text(self) -> str:
        """The value as Hydra reads it, without its quotes; what is no text as it was given."""
        try:
            value = OverridesParser.create().parse_override(self.line).value()
        except HydraException:  # which composing reports
            value = None
        return value if isinstance(value, str) else self.line.partition("=")[2]


def quoted(path: Path | str) -> str:
    """As the value of an override, which is text: 2026, null and 1e5 would be something else without quotes."""
    plain = re.fullmatch(r"[\w.:-]*/[\w./:-]*", str(path))
    return str(path) if plain else "'" + str(path).replace("'", r"\'") + "'"


def argument(key: str, path: Path) -> str:
    """As a shell takes it."""
    return shlex.quote(f"{key}={quoted(path)}")


def leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Full keys and values of a plain config."""
    for name, value in tree.items():
        full = f"{key}.{name}" if key else str(name)
        if isinstance(value, dict) and value:
            yield from leaves(value, full)
        else:
            yield full, value
