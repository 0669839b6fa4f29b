"""Lightning's Trainer, with the choice of device, precision and threads made and said."""

import copy
import logging
import os
import time
from contextlib import nullcontext
from typing import Any, Literal

import pytorch_lightning
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, Checkpoint, ProgressBar
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import ModelParallelStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from common.distributed import ProcessGroup
from common.hardware import available_cores
from datamodules.loading.batch_loader import Batches
from models.training.lightning_module import Batch, SupervisedModule
from trainer.config.errors import ConfigError
from trainer.config.validate_processes import count_devices
from trainer.folders.signals import watch
from trainer.loop.checkpoint_io import AtomicCheckpointIO, LeaveValidation
from trainer.loop.fast_loop import FastEpochLoop, NoSignals, unsupported_reason

log = logging.getLogger(__name__)

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true", "64", "32", "16", "bf16", 64, 32, 16]
SMALL_STEP = 30_000_000
"""Multiplications of one step below which threads gain little, and lose much where another process is busy."""
WORTH = 1.15
"""How many times as fast a step must be for twice the threads to be taken."""
TRIALS, PATIENCE = 3, 0.5
"""How many steps are timed, and the seconds after which there are no more: threads that wait for others are slow."""
THREADS = torch.get_num_threads()
"""Of the process, as it was started."""


class NoProfiler(PassThroughProfiler):
    """In the place of Lightning's, which makes a generator for each hook of each callback."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self.nothing


class Trainer(pytorch_lightning.Trainer):
    """`accelerator` ("auto": CUDA where there is a device, else the CPU), `precision` and `threads` may be "auto".

    `fast`: whether batches go through `FastEpochLoop`; "auto": where nothing hinders. `compile`: a whole step as one
    graph, or the network alone where that cannot be; "auto": a whole step where the steps left repay it, or nothing.

    Every other setting is Lightning's own.
    """

    callbacks: list[Callback]  # which Lightning does not declare

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        precision: Precision = "auto",
        threads: int | Literal["auto"] = "auto",
        fast: Literal["auto", "on", "off"] = "auto",
        compile: bool | Literal["auto"] = False,
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
        self.fast = fast
        self.compile = compile
        # Lightning would put its own where none is given.
        given = settings.get("callbacks") or ()
        given = list(given) if isinstance(given, list | tuple) else [given]
        settings.setdefault("enable_checkpointing", any(isinstance(each, Checkpoint) for each in given))
        settings.setdefault("enable_progress_bar", any(isinstance(each, ProgressBar) for each in given))
        chosen, self.precision_reason = choose_precision(precision, accelerator)
        self.given = {**settings, "accelerator": accelerator, "precision": chosen, "threads": threads}
        plugins = settings.pop("plugins", None) or []
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
        if not any(isinstance(each, CheckpointIO) for each in plugins):
            plugins.append(AtomicCheckpointIO())
        if settings.get("strategy") == "fsdp":
            from trainer.loop.fsdp import Sharded  # which takes long to import

            world = count_devices(self.given) * settings.get("num_nodes", 1)
            settings["strategy"] = Sharded(world) if world > 1 else "auto"
        settings["profiler"] = settings.get("profiler") or NoProfiler()
        settings |= {"plugins": plugins, "callbacks": [*given, LeaveValidation()]}
        super().__init__(accelerator=accelerator, precision=chosen, **settings)
        self._signal_connector = NoSignals(self)
        if accelerator == "cpu" and not torch.cuda.is_available():
            # Every step of an optimizer asks anew; so told, torch need not load the driver to answer.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self.loop = FastEpochLoop(self, self.fit_loop.min_steps, self.fit_loop.max_steps)
        self.fit_loop.epoch_loop = self.loop
        self._refuse(unsupported_reason(self))  # before the data are read

    def fit(
        self, model: pytorch_lightning.LightningModule, *arguments: Any, ckpt_path: Any = None, **settings: Any
    ) -> None:
        """Lightning's `fit`, after which rank 0 has all weights in its module.

        Raises Interrupted if a signal ends training, and ConfigError if the checkpoint `ckpt_path` does not fit this
        network or the number of epochs.
        """
        whole = copy.deepcopy(model.network) if isinstance(self.strategy, ModelParallelStrategy) else None
        try:
            with watch.deferred():
                super().fit(model, *arguments, ckpt_path=ckpt_path, **settings)
        except (RuntimeError, MisconfigurationException) as error:
            if ckpt_path is not None and "Error(s) in loading state_dict" in str(error):
                raise ConfigError(
                    f"resume: {ckpt_path} holds a different network: keep the data and model settings of the run."
                ) from error
            if ckpt_path is not None and "restored a checkpoint with current_epoch" in str(error):
                raise ConfigError(
                    f"resume: the run has already trained for more epochs than trainer.max_epochs={self.max_epochs}:"
                    " keep the value of the run, or choose a larger one."
                ) from error
            raise
        if whole is not None:
            state = self.strategy.lightning_module_state_dict()  # of rank 0 alone, but all must send their parts
            model.network = whole
            if self.is_global_zero:
                model.load_state_dict(state)

    def alone(self) -> "Trainer":
        """Itself where it is one process; else one for this process, which has come as far."""
        if isinstance(self.strategy, SingleDeviceStrategy):
            return self
        device = self.strategy.root_device
        own = {"strategy": "auto", "num_nodes": 1, "devices": 1 if device.index is None else [device.index]}
        trainer = Trainer(**{**self.given, **own})
        trainer.fit_loop.load_state_dict(self.fit_loop.state_dict())
        return trainer

    def prepare(
        self, module: SupervisedModule, batch: Batch, datamodule: pytorch_lightning.LightningDataModule | None = None
    ) -> None:
        """Sets the threads and the loop, and says what was chosen and why; before `fit`.

        `batch` of training rows tells what a step costs, `datamodule` whether its hooks change batches. Raises
        ConfigError where the fast loop is asked for and cannot be.
        """
        device = self.strategy.root_device
        threads = "-"
        if device.type == "cpu":
            threads = self._set_threads(module, batch)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        why = "" if device.type == "cuda" or torch.cuda.is_available() else " (no CUDA device here)"
        loop = self._choose_loop(module, datamodule)
        if self.world_size > 1:
            log.info("processes: %d, each takes its part of the rows of a batch", self.world_size)
        log.info(
            "device: %s%s; precision: %s (%s); threads: %s; loop: %s",
            *(name, why, self.precision, self.precision_reason, threads, loop),
        )

    def _choose_loop(self, module: SupervisedModule, datamodule: pytorch_lightning.LightningDataModule | None) -> str:
        why = unsupported_reason(self, module, datamodule)
        self._refuse(why)
        self.loop.fast = self.fast != "off" and why is None
        self.loop.compile = self.compile
        self.loop.val_loop.inference_mode = self.loop.fast and self.validate_loop.inference_mode
        if self.loop.fast:
            return "fast"
        loop = f"Lightning's own ({'given' if self.fast == 'off' else f'the fast one does not serve {why}'})"
        if self.compile == "auto":
            loop += "; compile: no, only the fast loop takes auto"
        elif self.compile:
            module.network.compile()
            loop += "; compile: the network alone"
        return loop

    def _refuse(self, why: str | None) -> None:
        if self.fast == "on" and why is not None:
            raise ConfigError(f"trainer.fast=on: the fast loop does not serve {why}; take trainer.fast=auto.")

    def outputs(self, module: pytorch_lightning.LightningModule, loader: Batches) -> tuple[Tensor, Tensor]:
        """What the network gives for the rows of a loader, (rows, ...), and their encoded target, (rows,).

        A debug run looks at some batches alone.
        """
        batches: Any = self.predict(module, loader)
        output = torch.cat(batches)
        truth = torch.cat([batch["target"] for batch in loader]).to(output.device)
        return output, truth[: len(output)]

    def _set_threads(self, module: SupervisedModule, batch: Batch) -> str:
        if self.threads != "auto":
            torch.set_num_threads(self.threads)
            return f"{self.threads} (given)"
        cores = available_cores()
        processes = ProcessGroup().local
        most = max(min(cores // processes, THREADS), 1)
        threads, why = 1, f"torch was started with {most}" if processes == 1 else f"{processes} processes share them"
        if most > 1:
            cost = multiplications(module.network, batch)
            why = f"{cost / 1e6:,.1f} million multiplications a step: few"
            if cost >= SMALL_STEP:
                least = seconds(module, batch, 1)
                why = f"a step takes 1 of them {1000 * least:.3g} ms"
                while threads < most:
                    more = min(2 * threads, most)
                    took = seconds(module, batch, more)
                    why += f", {more} {1000 * took:.3g} ms"
                    if took * WORTH >= least:
                        break
                    threads, least = more, took
        torch.set_num_threads(threads)
        return f"{threads} of {cores} ({why})"


def seconds(module: SupervisedModule, batch: Batch, threads: int) -> float:
    """What a step takes without the optimizer's: the fastest of some, because other work may take the cores."""
    rehearsal = copy.deepcopy(module)
    torch.set_num_threads(threads)
    took = []
    with torch.random.fork_rng([]):
        for _ in range(1 + TRIALS):
            started = time.perf_counter()
            torch.autograd.backward(rehearsal.objective(rehearsal.augment_batch(batch))[1])
            took.append(time.perf_counter() - started)
            if len(took) > 1 and sum(took) > PATIENCE:
                break
    return min(took[1:])


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
