"""How long the answer for one row takes: what a search may weigh against the monitor."""

import time

import torch

from datamodules.tabular import TableDataModule
from models.training.lightning_module import SupervisedModule
from trainer.loop.trainer import Trainer

LATENCY = "latency_ms"
"""Its name among the metrics."""
CALLS = 200


def latency(trainer: Trainer, module: SupervisedModule, datamodule: TableDataModule) -> float:
    """Milliseconds of the network for one encoded row on the trainer's device: the median of some calls, the first ones
    left out."""
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
