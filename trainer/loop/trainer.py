"""Lightning's Trainer, which also chooses the device, the precision, the threads and the loop, and logs them."""

import copy
import logging
import os
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, ProgressBar
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.strategies import ModelParallelStrategy, SingleDeviceStrategy
from torch import Tensor

from datamodules.loading.batch_loader import Batches
from models.training.lightning_module import Batch, SupervisedModule
from trainer.config.errors import ConfigError
from trainer.config.validate_processes import count_devices
from trainer.folders.signals import watch
from trainer.loop import lightning_internals
from trainer.loop.checkpoint_io import AtomicCheckpointIO, LeaveAfterStep, LeaveValidation, explained
from trainer.loop.fast_loop import FastEpochLoop, NoProfiler, unsupported_reason
from trainer.loop.hardware import Precision, choose_accelerator, choose_precision, set_threads

log = logging.getLogger(__name__)


class Trainer(pytorch_lightning.Trainer):
    """`accelerator` ("auto": CUDA if there is a device, else the CPU), `precision` and `threads` may be "auto".

    `fast`: whether to train with `FastEpochLoop`; "auto": if it supports everything in use. `compile`: compile a whole
    step into one graph, or only the network if that is impossible; "auto": a whole step if the remaining steps make up
    for the compilation, else nothing.

    All other settings are Lightning's. Without callbacks of their kind there are no checkpoints and no progress bar.
    """

    callbacks: list[Callback]  # Lightning does not declare it

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
        accelerator = choose_accelerator(accelerator)
        if threads != "auto" and threads < 1:
            raise ValueError(f"trainer.threads={threads}: must be at least 1, or auto")
        self.threads, self.fast, self.compile = threads, fast, compile
        callbacks = _as_list(settings.get("callbacks"))
        settings.setdefault("enable_checkpointing", any(isinstance(each, Checkpoint) for each in callbacks))
        settings.setdefault("enable_progress_bar", any(isinstance(each, ProgressBar) for each in callbacks))
        chosen, self.precision_reason = choose_precision(precision, accelerator)
        self.given = {**settings, "accelerator": accelerator, "precision": chosen, "threads": threads}
        plugins = _as_list(settings.pop("plugins", None))
        if not any(isinstance(each, CheckpointIO) for each in plugins):
            plugins.append(AtomicCheckpointIO())
        if settings.get("strategy") == "fsdp":
            from trainer.loop.fsdp import Sharded  # here, because it takes long to import

            world = count_devices(self.given) * settings.get("num_nodes", 1)
            settings["strategy"] = Sharded(world) if world > 1 else "auto"
        settings["profiler"] = settings.get("profiler") or NoProfiler()
        settings |= {"plugins": plugins, "callbacks": callbacks}
        super().__init__(accelerator=accelerator, precision=chosen, **settings)
        if accelerator == "cpu" and not torch.cuda.is_available():
            # Each optimizer step asks for CUDA devices; this answers without loading the driver.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self.loop: FastEpochLoop | None = None
        if lightning_internals.unsupported_reason(self) is None:
            self.loop = FastEpochLoop(self, self.fit_loop.min_steps, self.fit_loop.max_steps)
            lightning_internals.install(self, self.loop)
        self.callbacks.append(LeaveAfterStep() if self.loop is None else LeaveValidation())
        self._require_fast(unsupported_reason(self))  # before the data are read

    def fit(
        self,
        model: pytorch_lightning.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: pytorch_lightning.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Lightning's `fit`, after which rank 0 has all weights in its module.

        Raises Interrupted if a signal ends training, and ConfigError if the checkpoint `ckpt_path` does not fit this
        network or the number of epochs.
        """
        whole = copy.deepcopy(model.network) if isinstance(self.strategy, ModelParallelStrategy) else None
        with explained(ckpt_path, self.max_epochs), watch.deferred():
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)
        if whole is not None:
            state = self.strategy.lightning_module_state_dict()  # complete only in rank 0, but a collective call
            model.network = whole
            if self.is_global_zero:
                model.load_state_dict(state)

    def alone(self) -> "Trainer":
        """Returns a trainer for this process only, with the same counts of epochs and steps."""
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
        """Sets the threads and the loop before `fit`, and logs what was chosen and why.

        `batch`: training rows, to measure a step; `datamodule`: to see whether its hooks change batches. Raises
        ConfigError if the fast loop is required but not possible.
        """
        device = self.strategy.root_device
        threads = set_threads(self.threads, module, batch) if device.type == "cpu" else "-"
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        why = "" if device.type == "cuda" or torch.cuda.is_available() else " (no CUDA device here)"
        loop = self._choose_loop(module, datamodule)
        if self.world_size > 1:
            log.info("processes: %d, each trains on its part of the rows of a batch", self.world_size)
        log.info(
            "device: %s%s; precision: %s (%s); threads: %s; loop: %s",
            *(name, why, self.precision, self.precision_reason, threads, loop),
        )

    def _choose_loop(self, module: SupervisedModule, datamodule: pytorch_lightning.LightningDataModule | None) -> str:
        reason = unsupported_reason(self, module, datamodule)
        self._require_fast(reason)
        fast = self.fast != "off" and reason is None
        if self.loop is not None:
            self.loop.fast, self.loop.compile = fast, self.compile
            self.loop.val_loop.inference_mode = fast and self.validate_loop.inference_mode
        if fast:
            return "fast"
        loop = f"Lightning's own ({'given' if self.fast == 'off' else f'the fast loop does not support {reason}'})"
        if self.compile == "auto":
            loop += "; compile: no, auto requires the fast loop"
        elif self.compile:
            module.network.compile()
            loop += "; compile: only the network"
        return loop

    def _require_fast(self, reason: str | None) -> None:
        if self.fast == "on" and reason is not None:
            raise ConfigError(f"trainer.fast=on: the fast loop does not support {reason}. Use trainer.fast=auto.")

    def outputs(self, module: pytorch_lightning.LightningModule, loader: Batches) -> tuple[Tensor, Tensor]:
        """Returns the network's outputs for the rows of a loader, (rows, ...), and their encoded targets, (rows,).

        With `fast_dev_run` these are only the rows of the first batches.
        """
        batches: Any = self.predict(module, loader)
        output = torch.cat(batches)
        truth = torch.cat([batch["target"] for batch in loader]).to(output.device)
        return output, truth[: len(output)]


def _as_list(given: Any) -> list[Any]:
    """Returns one object, or several, as a list; an empty one for None."""
    return list(given) if isinstance(given, list | tuple) else [given] if given else []
