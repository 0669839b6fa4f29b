"""Training: settings, the run, sweeps and searches. From Python: `from trainer import compose, load, train`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.api import Result, compose, load
    from trainer.main import train

__all__ = ["Result", "compose", "load", "train"]


def __getattr__(name: str) -> Any:
    """Imports the Python API on first use: the modules of this package do not need it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trainer import api, main

    return getattr(api if hasattr(api, name) else main, name)
