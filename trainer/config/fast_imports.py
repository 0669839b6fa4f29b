"""Lightning, imported in half the time: torchmetrics takes what is installed and seldom used along with it."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

from lightning_utilities.core import imports

LEFT_OUT = ("matplotlib", "scipy", "torchvision", "transformers")
"""For torchmetrics' plots, and its metrics of sound, images and language models. Lathe asks it for none of these."""


@contextmanager
def fast_imports() -> Iterator[None]:
    """While it lasts Lightning and torchmetrics, which ask before they import, find these packages absent."""

    def find(name: str) -> ModuleSpec | None:
        return None if name in LEFT_OUT else find_spec(name)

    def version_of(name: str) -> str:
        if name in LEFT_OUT:
            raise PackageNotFoundError(name)
        return version(name)

    patches: dict[str, Any] = {"find_spec": find, "_version": version_of}
    if not all(hasattr(imports, name) for name in patches):  # another version of it: imported whole
        yield
        return
    collects = gc.isenabled()
    gc.disable()  # Of what is imported nothing is rubbish, and to look for it takes a fifth of the time.
    try:
        with patch.multiple(imports, **patches):
            yield
    finally:
        if collects:
            gc.enable()
        imports.package_available.cache_clear()
