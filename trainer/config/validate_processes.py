"""Checks of the settings for training one network in several processes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.distributed import launch
from trainer.config.signature_cache import SignatureCache
from trainer.config.signatures import Arguments

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "fsdp")
FSDP_PRECISIONS = ("auto", "32-true", "bf16-mixed", "bf16-true")
"""Precisions for sharded weights; the gradient scaler of float16 would need whole gradients."""


def count_devices(trainer: Mapping[str, Any]) -> int:
    """Number of processes on each machine, one per device."""
    devices = trainer.get("devices", 1)
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        import torch  # here, because the check of other settings does not wait for torch

        return 1 if trainer.get("accelerator") == "cpu" else max(torch.cuda.device_count(), 1)
    return int(devices)


def validate_processes(
    config: Mapping[str, Any], signatures: Mapping[str, Arguments] | None = None
) -> Iterator[tuple[str, str]]:
    """Finds settings that several processes do not support, or that do not match the processes that were started.

    `signatures`: of the targets, by the key of their node; looked up if None.
    """
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        return
    try:
        local, nodes = count_devices(trainer), int(trainer.get("num_nodes", 1))
    except (TypeError, ValueError):
        return  # the check of the types reports it
    here = launch()
    if here is not None and here.world != local * nodes:
        yield (
            "trainer.devices",
            f"{local} on {nodes} machine{'s' * (nodes > 1)}, but {here.by} started {here.world} processes: use"
            f" trainer=ddp trainer.devices={here.local} trainer.num_nodes={here.world // here.local}.",
        )
        return
    if local * nodes == 1:
        return
    several = f"{local * nodes} processes train"
    strategy = trainer.get("strategy", "auto")
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        yield "trainer.strategy", f"{strategy} is not supported: use ddp or fsdp."
    if strategy == "fsdp":
        yield from _validate_fsdp(config, signatures)
    for key in ("cross_validate", "ensemble"):
        if config.get(key) is not None:
            yield key, f"trains small runs, each in one process, but {several}: use trainer.devices=1."
    if config.get("lr_find") is True:
        yield "lr_find", f"works in one process, but {several}: set optimizer.lr, or use trainer.devices=1."
    for key, reason in _unsupported(config, "several_processes", signatures):
        yield key, f"{reason}, but {several}: use trainer.devices=1."
    data = config.get("data")
    if isinstance(data, dict) and "cache" in data and data["cache"] is None:
        yield "data.cache", f"null is for one process, but {several}: give a folder that all of them can read."


def _validate_fsdp(config: Mapping[str, Any], signatures: Mapping[str, Arguments] | None) -> Iterator[tuple[str, str]]:
    """Finds settings that need all weights in one process; with FSDP each process has only a shard."""
    if config.get("l1"):
        yield "l1", "needs all weights in each process, but trainer=fsdp shards them: use 0, or trainer=ddp."
    precision = str(config["trainer"].get("precision", "auto"))
    if precision not in FSDP_PRECISIONS:
        choices = ", ".join(FSDP_PRECISIONS)
        yield "trainer.precision", f"{precision} is not supported by trainer=fsdp: use {choices}."
    for key, reason in _unsupported(config, "fsdp", signatures):
        remedy = "trainer=ddp" if key == "model" else "callbacks=default, or trainer=ddp"
        yield key, f"{reason}: use {remedy}."


def _unsupported(
    config: Mapping[str, Any], feature: str, signatures: Mapping[str, Arguments] | None
) -> Iterator[tuple[str, str]]:
    """The model and callbacks that do not support a feature, by full key, with their reason."""
    nodes = {"model": config.get("model")}
    nodes |= {f"callbacks.{name}": node for name, node in (config.get("callbacks") or {}).items()}
    cache = SignatureCache() if signatures is None else None
    for key, node in nodes.items():
        if cache is not None and isinstance(node, dict) and "_target_" in node:
            found = cache.arguments(node["_target_"])
        else:
            found = (signatures or {}).get(key, Arguments())
        if feature in found.unsupported:
            yield key, found.unsupported[feature]


def validate_launch(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Reports several machines whose processes were not started."""
    nodes = config["trainer"].get("num_nodes", 1)
    if nodes > 1 and launch() is None:
        yield (
            "trainer.num_nodes",
            f"the processes of {nodes} machines are started by torchrun or srun, on each of them (docs/processes.md).",
        )
