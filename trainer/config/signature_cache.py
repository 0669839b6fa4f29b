"""The signatures of targets, kept in a file between processes: importing what defines them takes seconds."""

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

from trainer.config.settings import ROOT
from trainer.config.signatures import Arguments, locate

CACHE_FILE = Path(importlib.util.cache_from_source(__file__)).with_suffix(".json")
"""Next to the byte code: both are derived from the source, and neither is written if Python is told not to."""
OWN_PACKAGES = ("datamodules", "models", "inference", "common", "trainer")
LIBRARIES = ("torch", "torchmetrics", "torchvision", "pytorch-lightning")
CACHED = (*OWN_PACKAGES, "torch", "torchmetrics", "torchvision", "pytorch_lightning")
"""Packages whose signatures are kept; there is no stamp that shows a change in others."""
ABSTRACT_TYPES = (os.PathLike, Mapping, Sequence, Set)
"""Of a class of another package, the checks use only its name and which of these it implements."""
IMPORTED = {*sys.stdlib_module_names, "trainer"}
"""Packages whose classes are imported when a hint is read; for others a stand-in of the same name is made."""


class SignatureCache:
    """Arguments by the dotted name of their target; discarded when a file of Lathe or a library version changes."""

    def __init__(self) -> None:
        files = [path for package in OWN_PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
        times = [[str(path), path.stat().st_mtime_ns] for path in files]
        self.stamp = [sys.version, [version(name) for name in LIBRARIES], times]
        self.signatures: dict[str, list[Any]] = {}
        self.changed = False
        try:
            saved = json.loads(CACHE_FILE.read_text())
        except (OSError, ValueError):
            return
        if saved.get("stamp") == self.stamp:
            self.signatures = saved["signatures"]

    def arguments(self, path: str) -> Arguments:
        """The arguments of a target, imported if they are not cached. Raises ImportError if there is no such target."""
        found = self.get(path)
        if found is None:
            found = Arguments.of(locate(path))
            if path.partition(".")[0] in CACHED:
                self.add(path, found)
        return found

    def get(self, path: str) -> Arguments | None:
        if path not in self.signatures:
            return None
        hints, required, is_open, unsupported = self.signatures[path]
        return Arguments({name: _decode(hint) for name, hint in hints.items()}, set(required), is_open, unsupported)

    def add(self, path: str, arguments: Arguments) -> None:
        hints = {name: _encode(hint) for name, hint in arguments.hints.items()}
        self.signatures[path] = [hints, sorted(arguments.required), arguments.open, arguments.unsupported]
        self.changed = True

    def save(self) -> None:
        """Writes the file if signatures were added."""
        if not self.changed or sys.dont_write_bytecode:
            return
        temporary = CACHE_FILE.with_name(f"{CACHE_FILE.name}.{os.getpid()}")
        try:
            CACHE_FILE.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"stamp": self.stamp, "signatures": self.signatures}))
            temporary.replace(CACHE_FILE)
        except OSError:  # in a read-only folder every process imports the targets
            pass


def _encode(hint: Any) -> Any:
    """A hint as plain JSON values, with the detail that the checks use."""
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return ["union", *map(_encode, arguments)]
    if kind is typing.Annotated:
        return _encode(arguments[0])
    if kind is typing.Literal and all(isinstance(each, str | int | None) for each in arguments):
        return ["literal", *arguments]
    if hint is Any or not isinstance(kind, type):
        return ["any"]
    if kind.__module__.partition(".")[0] not in IMPORTED:
        bases = [place for place, base in enumerate(ABSTRACT_TYPES) if issubclass(kind, base)]
        return ["stand-in", kind.__name__, *bases]
    if not issubclass(kind, typing.Iterable):  # the checks do not use the parameters of other generic types
        arguments = ()
    items = ("..." if each is ... else _encode(each) for each in arguments)
    return ["class", kind.__module__, kind.__qualname__, *items]


def _decode(plain: Any) -> Any:
    if plain == "...":
        return ...
    form, *rest = plain
    if form == "union":
        return functools.reduce(operator.or_, map(_decode, rest))
    if form == "literal":
        return typing.Literal[tuple(rest)]
    if form == "any":
        return Any
    if form == "stand-in":
        name, *bases = rest
        return type(name, tuple(ABSTRACT_TYPES[place] for place in bases), {})
    module, name, *arguments = rest
    kind: Any = types.NoneType if name == "NoneType" else getattr(importlib.import_module(module), name)
    return kind[tuple(map(_decode, arguments))] if arguments else kind
