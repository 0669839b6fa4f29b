"""TorchScript, without torch's pointer to torch.export: that takes no strings, and a row has some."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch.jit import is_scripting as is_scripting  # type: ignore[attr-defined]


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings that TorchScript is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*deprecated")
        yield
