"""Checks of settings whose types are right: values out of range, and settings that contradict each other."""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from models.training.metric_names import HIGHER_IS_BETTER, NAMES, THRESHOLD_FOR
from trainer.config.errors import did_you_mean
from trainer.config.signatures import Arguments, show
from trainer.config.validate_processes import validate_processes


def validate_values(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Finds numbers and names that no run can use; yields the full key of each, and what is wrong."""
    for key, highest, words in (
        ("seed", 2**32 - 1, "from 0 to 4294967295"),
        ("l1", sys.float_info.max, "finite, 0 or more"),
    ):
        value = config.get(key)
        if isinstance(value, int | float) and not 0 <= value <= highest:
            yield key, f"must be {words}; it is {show(value)}."
    for key in ("cross_validate", "ensemble"):
        runs = config.get(key)
        if isinstance(runs, int) and runs < 2:
            yield key, f"must be 2 or more; it is {runs}."
    trainer = _mapping(config, "trainer")
    for key, count in (("n_jobs", config.get("n_jobs")), ("trainer.threads", trainer.get("threads"))):
        if isinstance(count, int) and count < 1:
            yield key, f"must be 1 or more, or auto; it is {count}."
    yield from _validate_search(config)
    yield from _validate_threshold(config.get("threshold"))


def _validate_search(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    search = _mapping(config, "search")
    for key in ("n_trials", "n_jobs"):
        number = search.get(key)
        if isinstance(number, int) and number < 1:
            yield f"search.{key}", f"must be 1 or more; it is {number}."
    objectives = search.get("objectives")
    if isinstance(objectives, dict) and (monitor := config.get("monitor")) in objectives:
        yield "search.objectives", f"{monitor} is the monitor, which is always an objective: leave it out."
    storage = search.get("storage")
    if isinstance(storage, str) and re.search("://[^/]*:[^/]*@", storage):
        yield (
            "search.storage",
            "the password in it would be written into the folder of every trial: leave it out. The database driver"
            " reads PGPASSWORD or ~/.pgpass for PostgreSQL.",
        )


def _validate_threshold(threshold: Any) -> Iterator[tuple[str, str]]:
    if isinstance(threshold, int | float) and not 0 <= threshold <= 1:
        yield "threshold", f"must be from 0 to 1; it is {show(threshold)}."
    if isinstance(threshold, str) and threshold not in THRESHOLD_FOR and not threshold.startswith("f1/"):
        near = did_you_mean(threshold, THRESHOLD_FOR)
        choices = ", ".join(THRESHOLD_FOR)
        yield "threshold", f"cannot be chosen for {threshold}.{near} It may be a number, {choices} or f1/CLASS."


def validate_combinations(config: Mapping[str, Any], signatures: Mapping[str, Arguments]) -> Iterator[tuple[str, str]]:
    """Finds settings that are valid alone, but not together. `signatures`: of the targets, by the key of their node."""
    yield from _validate_child_runs(config, signatures)
    yield from validate_processes(config, signatures)
    if config.get("lr_find") is True and "optimizer" in signatures and "lr" not in signatures["optimizer"].hints:
        yield "lr_find", f"{config['optimizer']['_target_']} has no argument lr: use lr_find=false."
    nodes = {"": config} | {f"callbacks.{name}.": node for name, node in _mapping(config, "callbacks").items()}
    for prefix, node in nodes.items():
        if isinstance(node, Mapping):
            yield from _validate_monitor(prefix, node.get("monitor"), node.get("mode"))
    trainer = _mapping(config, "trainer")
    if trainer.get("accelerator") == "cpu" and trainer.get("precision") in ("16-mixed", "16", 16):
        yield "trainer.precision", "16-mixed needs a GPU, but trainer.accelerator=cpu: use bf16-mixed or 32-true."
    if trainer.get("limit_val_batches") == 0 and str(config.get("monitor")).startswith("val/"):
        yield (
            "trainer.limit_val_batches",
            f"0 leaves no rows to measure monitor={config['monitor']} on: use 1 or more, or monitor=train/loss.",
        )
    endless = trainer.get("max_epochs") == -1 and trainer.get("max_steps", -1) == -1
    needs_length = "scheduler" in signatures and "total_steps" in signatures["scheduler"].required
    if endless and needs_length and "total_steps" not in config["scheduler"]:
        yield (
            "scheduler",
            f"{config['scheduler']['_target_']} needs the length of the run, but trainer.max_epochs and"
            " trainer.max_steps are both -1: set one, or use scheduler=none.",
        )


def _validate_child_runs(config: Mapping[str, Any], signatures: Mapping[str, Arguments]) -> Iterator[tuple[str, str]]:
    """Checks the settings of a cross-validation or an ensemble."""
    if config.get("cross_validate") is not None:
        yield from _validate_cross_validation(config)
    model = signatures.get("model", Arguments())
    if config.get("ensemble") is not None and (reason := model.unsupported.get("ensemble")) is not None:
        yield "ensemble", f"{reason}: leave it out."
    for key in ("cross_validate", "ensemble"):
        if config.get(key) is not None and config.get("resume") is not None:
            yield (
                "resume",
                f"resumes a single run, not {key}: give the same command again with hydra.run.dir=FOLDER. Runs that are"
                " done are skipped.",
            )


def _validate_cross_validation(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    split = _mapping(config, "data").get("split")
    if not isinstance(split, dict):
        yield "cross_validate", "needs data.split, which this data does not have."
    elif split.get("fold") is not None:
        yield "data.split.fold", f"is set by cross_validate={config['cross_validate']} for each run: leave it out."
    if config.get("test") is False:
        yield "test", "cross_validate measures on the test rows of each fold: use test=true."
    if config.get("ensemble") is not None:
        yield "ensemble", "cannot be combined with cross_validate, whose artifact averages its folds: leave one out."


def _validate_monitor(prefix: str, monitor: Any, mode: Any) -> Iterator[tuple[str, str]]:
    """Checks `monitor` and `mode` of the config or of a callback, whose full key with a dot is `prefix`."""
    if not isinstance(monitor, str):
        return
    metrics = {name for names in NAMES.values() for name in names}
    logged = ["train/loss", "val/loss", *(f"val/{name}" for name in sorted(metrics))]
    if monitor not in logged and not monitor.startswith("val/f1/"):
        near = did_you_mean(monitor, logged)
        yield f"{prefix}monitor", f"no model logs {monitor}.{near} It may be {', '.join(logged)} or val/f1/CLASS."
        return
    better = "max" if monitor.split("/")[1] in HIGHER_IS_BETTER else "min"
    if mode in ("min", "max") and mode != better:
        quality = "higher" if better == "max" else "lower"
        yield f"{prefix}mode", f"{mode} contradicts monitor={monitor}, of which {quality} is better: use mode={better}."


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping at a key; empty where the value is none."""
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}
