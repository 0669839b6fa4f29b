"""Lightning's Trainer, with the choice of device, precision and threads made and said."""

import logging
import os
from typing import Any, Literal

import pytorch_lightning
import torch
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from datamodules.loader import Batches
from trainer.fast import FastEpochLoop, hindrance

log = logging.getLogger(__name__)

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true", "64", "32", "16", "bf16", 64, 32, 16]
SMALL_STEP = 100_000_000
"""Multiplications of one step below which threads gain little, and lose much where another process is busy."""


class Trainer(pytorch_lightning.Trainer):
    """`accelerator` ("auto": CUDA where there is a device, else the CPU), `precision` and `threads` may be "auto";
    `compile` runs the network through `torch.compile`, in place.

    Every other setting is Lightning's own.
    """

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        precision: Precision = "auto",
        threads: int | Literal["auto"] = "auto",
        compile: bool = False,
        fast: Literal["auto", "on", "off"] = "auto",
        **settings: Any,
    ) -> None:
        if accelerator == "auto":
            accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        elif accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            raise ValueError(
                f"trainer.accelerator={accelerator}: torch {torch.__version__} finds no CUDA device here; take"
                " trainer=cpu, or see to the driver and to a torch with CUDA"
            )
        if threads != "auto" and threads < 1:
            raise ValueError(f"trainer.threads={threads}: must be at least 1, or auto")
        self.threads = threads
        self.compile_network = compile
        # Lightning would put its own where none is given.
        given = settings.get("callbacks") or ()
        settings.setdefault("enable_checkpointing", any(isinstance(each, Checkpoint) for each in given))
        settings.setdefault("enable_progress_bar", any(isinstance(each, ProgressBar) for each in given))
        chosen, self.precision_reason = choose_precision(precision, accelerator)
        super().__init__(accelerator=accelerator, precision=chosen, **settings)
        if accelerator == "cpu" and not torch.cuda.is_available():
            # Every step of an optimizer asks anew; so told, torch need not load the driver to answer.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self.fast = fast
        self.fit_loop.epoch_loop = FastEpochLoop(self, self.fit_loop.min_steps, self.fit_loop.max_steps)

    def prepare(self, module: pytorch_lightning.LightningModule, rows: dict[str, Tensor], batch_size: int) -> None:
        """Sets the threads, compiles where wanted, and says what was chosen and why; before `fit`.

        `rows`: a few of the training rows, which tell what a batch costs.
        """
        device = self.strategy.root_device
        threads = "-"
        if device.type == "cpu":
            threads = self._set_threads(module.network, rows, batch_size)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        why = "" if device.type == "cuda" or torch.cuda.is_available() else " (no CUDA device here)"
        log.info(
            "device: %s%s; precision: %s (%s); threads: %s", name, why, self.precision, self.precision_reason, threads
        )
        if self.compile_network:
            module.network.compile()
        self.fit_loop.epoch_loop.fast = self.fast != "off" and hindrance(self, module) is None

    def outputs(self, module: pytorch_lightning.LightningModule, loader: Batches) -> tuple[Tensor, Tensor]:
        """What the network gives for the rows of a loader, (rows, ...), and their encoded target, (rows,).

        A debug run looks at some batches alone.
        """
        batches: Any = self.predict(module, loader)
        output = torch.cat(batches)
        truth = torch.cat([batch["target"] for batch in loader]).to(output.device)
        return output, truth[: len(output)]

    def _set_threads(self, network: nn.Module, rows: dict[str, Tensor], batch_size: int) -> str:
        if self.threads != "auto":
            torch.set_num_threads(self.threads)
            return f"{self.threads} (given)"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cost = multiplications(network, rows) * batch_size / len(rows["target"])
        threads = 1 if cost < SMALL_STEP else min(cores, torch.get_num_threads())
        torch.set_num_threads(threads)
        size = "small" if threads == 1 and cores > 1 else "large enough"
        return f"{threads} of {cores} ({cost / 1e6:,.1f} million multiplications a step: {size})"


def multiplications(network: nn.Module, rows: dict[str, Tensor]) -> int:
    """What products of matrices and convolutions take on the way forward; looking vectors up takes none."""
    # Nothing is left changed: neither the statistics of norms nor the random state.
    network.eval()
    with torch.no_grad(), torch.random.fork_rng([]), FlopCounterMode(display=False) as counter:
        network(rows)
    network.train()
    return int(counter.get_total_flops()) // 2


def choose_precision(precision: Precision, accelerator: str) -> tuple[Any, str]:
    """The precision for Lightning and the reason: bfloat16 where the GPU computes it fast, else float32."""
    if precision != "auto":
        return precision, "given"
    if accelerator not in ("gpu", "cuda"):
        return "32-true", "a CPU"
    if torch.cuda.get_device_capability()[0] >= 8:
        return "bf16-mixed", "the GPU computes bfloat16 fast"
    return "32-true", "the GPU has no fast bfloat16"
