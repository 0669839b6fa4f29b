"""What targets take, remembered between processes: the packages that say it take seconds to import."""

import functools
import importlib
import importlib.util
import json
import operator
import os
import sys
import types
import typing
from collections.abc import Mapping, Sequence, Set
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.config.signatures import Arguments

ROOT = Path(__file__).parents[2]
PLACE = Path(importlib.util.cache_from_source(__file__)).with_suffix(".json")
"""Beside the byte code: made of the same files, and not written where Python is told to write none."""
OWN = ("datamodules", "models", "inference", "common", "trainer")
OTHERS = ("torch", "torchmetrics", "torchvision", "pytorch-lightning")
KINDS = (os.PathLike, Mapping, Sequence, Set)
"""Of classes the checks ask no more than their names and which of these they are."""
READ = {*sys.stdlib_module_names, "trainer"}
"""Packages whose classes are themselves again; another's is a class of its name."""


class SignatureCache:
    """Arguments by the full name of what takes them; all are forgotten when a file of Lathe or a version changes."""

    def __init__(self) -> None:
        files = [path for package in OWN for path in sorted((ROOT / package).rglob("*.py"))]
        changed = [[str(path), path.stat().st_mtime_ns] for path in files]
        self.stamp = [sys.version, [version(name) for name in OTHERS], changed]
        self.found: dict[str, Any] = {}
        self.new = False
        try:
            kept = json.loads(PLACE.read_text())
        except (OSError, ValueError):
            return
        if kept.get("stamp") == self.stamp:
            self.found = kept["found"]

    def get(self, path: str) -> Arguments | None:
        if path not in self.found:
            return None
        hints, required, more = self.found[path]
        return Arguments({name: _read(hint) for name, hint in hints.items()}, set(required), more)

    def add(self, path: str, arguments: Arguments) -> None:
        hints = {name: _write(hint) for name, hint in arguments.hints.items()}
        self.found[path] = [hints, sorted(arguments.required), arguments.open]
        self.new = True

    def keep(self) -> None:
        """Writes what is new, for the next process."""
        if not self.new or sys.dont_write_bytecode:
            return
        temporary = PLACE.with_name(f"{PLACE.name}.{os.getpid()}")
        try:
            PLACE.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"stamp": self.stamp, "found": self.found}))
            temporary.replace(PLACE)
        except OSError:  # Where the folder cannot be written to, all is imported each time.
            pass


def _write(hint: Any) -> Any:
    """A hint as plain values, as far as the checks look at it."""
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return ["union", *map(_write, arguments)]
    if kind is typing.Annotated:
        return _write(arguments[0])
    if kind is typing.Literal and all(isinstance(each, str | int | None) for each in arguments):
        return ["literal", *arguments]
    if hint is Any or not isinstance(kind, type):
        return ["any"]
    if kind.__module__.partition(".")[0] not in READ:
        return ["other", kind.__name__, *(place for place, base in enumerate(KINDS) if issubclass(kind, base))]
    if not issubclass(kind, typing.Iterable):  # what a callable takes is not asked for
        arguments = ()
    return [
        "class",
        kind.__module__,
        kind.__qualname__,
        *("..." if each is ... else _write(each) for each in arguments),
    ]


def _read(plain: Any) -> Any:
    if plain == "...":
        return ...
    form, *rest = plain
    if form == "union":
        return functools.reduce(operator.or_, map(_read, rest))
    if form == "literal":
        return typing.Literal[tuple(rest)]
    if form == "any":
        return Any
    if form == "other":
        name, *kinds = rest
        return type(name, tuple(KINDS[place] for place in kinds), {})
    module, name, *arguments = rest
    kind: Any = types.NoneType if name == "NoneType" else getattr(importlib.import_module(module), name)
    return kind[tuple(map(_read, arguments))] if arguments else kind
