"""Imports of Lightning in half the time, without the optional packages that torchmetrics would import too."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

from lightning_utilities.core import imports

SKIPPED = ("matplotlib", "scipy", "torchvision", "transformers")
"""Used by torchmetrics for plots and for metrics of audio, images and language models, which Lathe does not use."""


@contextmanager
def fast_imports() -> Iterator[None]:
    """Inside this context, Lightning and torchmetrics find these packages not installed."""

    def find(name: str) -> ModuleSpec | None:
        return None if name in SKIPPED else find_spec(name)

    def version_of(name: str) -> str:
        if name in SKIPPED:
            raise PackageNotFoundError(name)
        return version(name)

    patches: dict[str, Any] = {"find_spec": find, "_version": version_of}
    if not all(hasattr(imports, name) for name in patches):  # an unknown version: import everything
        yield
        return
    was_enabled = gc.isenabled()
    gc.disable()  # imports leave no garbage, and searching for it takes a fifth of the time
    try:
        with patch.multiple(imports, **patches):
            yield
    finally:
        if was_enabled:
            gc.enable()
        imports.package_available.cache_clear()
