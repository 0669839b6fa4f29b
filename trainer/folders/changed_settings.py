"""Settings that have changed since a run was started, and those of them that must not change."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trainer.config.renamed import load_config
from trainer.config.settings import leaves
from trainer.config.signatures import show

_BEST = "the best epoch so far was chosen by it"
_STORED = "the checkpoint contains it, so a change would have no effect"

FIXED = {
    "callbacks.average": "the checkpoint contains its weights",
    "callbacks.early_stopping.patience": f"{_STORED} (callbacks.early_stopping=null continues the training)",
    "param_groups": _STORED,
    "loss": _BEST,
    "mode": _BEST,
    "model._target_": "the checkpoint contains that network",
    "monitor": _BEST,
    "optimizer": _STORED,
    "scheduler._target_": _STORED,
    "scheduler.factor": _STORED,
    "scheduler.patience": _STORED,
    "seed": "the order of the rows depends on it",
}
"""Settings that must stay the same when a run is resumed, and why. Data and sizes are compared when they are read."""


def reason_fixed(key: str) -> str | None:
    """The reason why a resumed run must not change this setting; None if it may."""
    return next((reason for above, reason in FIXED.items() if f"{key}.".startswith(f"{above}.")), None)


def changes(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the keys whose values differ between a resolved config and the run in `folder`, and "OLD -> NEW".

    Old names in the folder's config.yaml count as the new ones.
    """
    if not (folder / "config.yaml").exists():  # killed before it was written
        return
    before = dict(leaves(OmegaConf.to_container(load_config(folder / "config.yaml"))))
    now = dict(leaves(config))
    for key in sorted(before.keys() | now.keys()):
        if key != "resume" and before.get(key) != now.get(key):
            old, new = (show(values[key]) if key in values else "nothing" for values in (before, now))
            yield key, f"{old} -> {new}"
