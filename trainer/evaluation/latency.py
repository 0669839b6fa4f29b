"""Inference latency, a possible objective of a search."""

import time

import torch

from datamodules.tabular import TableDataModule
from models.training.lightning_module import SupervisedModule
from trainer.loop.trainer import Trainer

LATENCY = "latency_ms"
"""Name of the metric."""
CALLS = 200


def latency(trainer: Trainer, module: SupervisedModule, datamodule: TableDataModule) -> float:
    """Returns the median time of the network for one encoded row on the trainer's device, in milliseconds.

    The first calls are warm-up and do not count.
    """
    device = trainer.strategy.root_device
    batch = {name: values.to(device) for name, values in datamodule.head("val", 1).items()}
    module.to(device).eval()
    times = []
    with torch.inference_mode():
        for _ in range(CALLS):
            started = time.perf_counter()
            module.network(batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - started)
    return 1000 * float(torch.tensor(times[CALLS // 10 :]).median())
