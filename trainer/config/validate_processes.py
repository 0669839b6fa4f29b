"""Settings of several processes that train one network: what they cannot do, and what does not fit those started."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.distributed import launch

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "fsdp")


PRECISIONS_OF_PARTS = ("auto", "32-true", "bf16-mixed", "bf16-true")
"""That weights which are shared out may have; a scaler of float16 would look at whole gradients."""


def devices(trainer: Mapping[str, Any]) -> int:
    """Processes on each machine, one a device."""
    wanted = trainer.get("devices", 1)
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return len(wanted)
    if wanted in ("auto", -1, "-1"):
        import torch

        return 1 if trainer.get("accelerator") == "cpu" else max(torch.cuda.device_count(), 1)
    return int(wanted)


def problems(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What several processes cannot do, and what does not fit those that were started."""
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        return
    try:
        local, nodes = devices(trainer), int(trainer.get("num_nodes", 1))
    except (TypeError, ValueError):
        return  # said by the check of the types
    here = launch()
    if here is not None and here.world != local * nodes:
        yield (
            "trainer.devices",
            f"{local} on {nodes} machine{'s' * (nodes > 1)}, but {here.by} started {here.world} processes: take"
            f" trainer=ddp trainer.devices={here.local} trainer.num_nodes={here.world // here.local}.",
        )
        return
    if local * nodes == 1:
        return
    several = f"{local * nodes} processes train"
    strategy = trainer.get("strategy", "auto")
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        yield "trainer.strategy", f"{strategy} does not serve a run: take ddp or fsdp."
    if strategy == "fsdp":
        yield from _of_whole_weights(config)
    for key in ("cross_validate", "ensemble"):
        if config.get(key) is not None:
            yield key, f"trains small runs, each in one process, but {several}: take trainer.devices=1."
    if config.get("lr_find") is True:
        yield "lr_find", f"works in one process, but {several}: set optimizer.lr, or take trainer.devices=1."
    model, data = config.get("model"), config.get("data")
    if isinstance(model, dict) and model.get("_target_") == "models.architectures.word2vec.Word2Vec":
        yield "model", f"Word2Vec counts words in one process, but {several}: take trainer.devices=1."
    if isinstance(data, dict) and "cache" in data and data["cache"] is None:
        yield "data.cache", f"null is for one process, but {several}: give a folder that all of them see."


def _of_whole_weights(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What looks at all weights at once, of which each process has but a part."""
    if config.get("l1"):
        yield "l1", "needs all weights in each process, but trainer=fsdp shares them out: take 0, or trainer=ddp."
    precision = str(config["trainer"].get("precision", "auto"))
    if precision not in PRECISIONS_OF_PARTS:
        yield "trainer.precision", f"{precision} does not serve trainer=fsdp: take {', '.join(PRECISIONS_OF_PARTS)}."
    model = config.get("model")
    if isinstance(model, dict) and model.get("_target_") == "models.architectures.pretrained_text.PretrainedText":
        yield "model", "reads its rows in parts, of which each process may have another number: take trainer=ddp."
    for name, callback in (config.get("callbacks") or {}).items():
        if isinstance(callback, dict) and str(callback.get("_target_")).startswith("trainer.callbacks.averaging."):
            yield (
                f"callbacks.{name}",
                "averages all weights in each process, but trainer=fsdp shares them out: take callbacks=default, or"
                " trainer=ddp.",
            )


def missing(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """That nobody has started the processes on other machines."""
    nodes = config["trainer"].get("num_nodes", 1)
    if nodes > 1 and launch() is None:
        yield (
            "trainer.num_nodes",
            f"the processes of {nodes} machines are started by torchrun or srun, on each of them (docs/processes.md).",
        )
