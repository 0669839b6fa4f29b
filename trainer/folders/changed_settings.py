"""Settings that differ from those a run was started with, and which of them may not differ."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trainer.config.settings import leaves
from trainer.config.signatures import show

_BEST = "the best epoch so far was chosen by it"


_HELD = "the checkpoint holds it, so that a change would not count"


FIXED = {
    "callbacks.average": "the weights in the checkpoint are those of it",
    "callbacks.early_stopping.patience": f"{_HELD} (callbacks.early_stopping=null trains on)",
    "param_groups": _HELD,
    "loss": _BEST,
    "mode": _BEST,
    "model._target_": "the checkpoint holds that network",
    "monitor": _BEST,
    "optimizer": _HELD,
    "scheduler._target_": _HELD,
    "scheduler.factor": _HELD,
    "scheduler.patience": _HELD,
    "seed": "the order of the rows goes on from it",
}
"""Settings that a run goes on with as they were, and why. Data and sizes are looked at when they are read."""


def fixed(key: str) -> str | None:
    """Why a run must go on with this setting as it was; None where it may be another."""
    return next((why for above, why in FIXED.items() if f"{key}.".startswith(f"{above}.")), None)


def changes(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The keys of a resolved config that are not as they were when the run in `folder` began, and what they were and
    are."""
    if not (folder / "config.yaml").exists():  # killed before it had begun
        return
    before = dict(leaves(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))))
    now = dict(leaves(config))
    for key in sorted(before.keys() | now.keys()):
        if key != "resume" and before.get(key) != now.get(key):
            old, new = (show(values[key]) if key in values else "nothing" for values in (before, now))
            yield key, f"{old} -> {new}"
