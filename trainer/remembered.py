"""What targets take, remembered between processes: the packages that say it take seconds to import."""

import importlib.util
import os
import pickle
import sys
import typing
from collections.abc import Mapping, Sequence, Set
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

from trainer.signatures import Arguments

ROOT = Path(__file__).parents[1]
PLACE = Path(importlib.util.cache_from_source(__file__)).with_suffix(".arguments")
"""Beside the byte code: made of the same files, trusted as much, and not written where Python is told to write none."""
OWN = ("datamodules", "models", "serving", "trainer")
OTHERS = ("torch", "torchmetrics", "torchvision", "pytorch-lightning")
KINDS = (os.PathLike, Mapping, Sequence, Set)
"""Of classes the checks ask no more than their names and which of these they are."""


class Remembered:
    """Arguments by the full name of what takes them; all are forgotten when a file of Lathe or a version changes."""

    def __init__(self) -> None:
        files = [path for package in OWN for path in sorted((ROOT / package).rglob("*.py"))]
        changed = [(str(path), path.stat().st_mtime_ns) for path in files]
        self.stamp = (sys.version, [version(name) for name in OTHERS], changed)
        self.found: dict[str, bytes] = {}
        self.new = False
        try:
            stamp, found = pickle.loads(PLACE.read_bytes())
        except OSError:
            return
        if stamp == self.stamp:
            self.found = found

    def get(self, path: str) -> Arguments | None:
        return pickle.loads(self.found[path]) if path in self.found else None

    def add(self, path: str, arguments: Arguments) -> None:
        """Leaves out what cannot be written."""
        buffer = BytesIO()
        try:
            _Pickler(buffer).dump(arguments)
        except (pickle.PicklingError, AttributeError, TypeError):
            return
        self.found[path] = buffer.getvalue()
        self.new = True

    def keep(self) -> None:
        """Writes what is new, for the next process."""
        if not self.new or sys.dont_write_bytecode:
            return
        temporary = PLACE.with_name(f"{PLACE.name}.{os.getpid()}")
        try:
            PLACE.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(pickle.dumps((self.stamp, self.found)))
            temporary.replace(PLACE)
        except OSError:  # Where the folder cannot be written to, all is imported each time.
            pass


class _Pickler(pickle.Pickler):
    """Writes classes so that to read them imports none but Python's own packages."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, typing.TypeVar):
            return _anything, ()
        if isinstance(value, type) and value.__module__.partition(".")[0] not in sys.stdlib_module_names:
            if value is Arguments:
                return NotImplemented
            return _stand_in, (value.__name__, tuple(kind for kind in KINDS if issubclass(value, kind)))
        return NotImplemented


def _stand_in(name: str, kinds: tuple[type, ...]) -> type:
    return type(name, kinds, {})


def _anything() -> Any:
    return Any
