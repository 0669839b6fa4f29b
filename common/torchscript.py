"""TorchScript without its deprecation warnings: torch.export does not support strings, which raw rows contain."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch.jit import is_scripting as is_scripting  # type: ignore[attr-defined]


@contextmanager
def quiet() -> Iterator[None]:
    """Context manager that suppresses the deprecation warnings of TorchScript."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*deprecated")
        yield
