"""The fast loop gives the same weights and counters as Lightning's own, bit for bit, with any settings."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.callbacks import Callback, EarlyStopping, LambdaCallback, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from models.architectures.mlp import MLP
from models.training import lr_schedules
from models.training.lightning_module import SupervisedModule
from tests.models.problems import MIXED, build, fit, mixed_rows, rows
from trainer.callbacks.anneal import Anneal
from trainer.callbacks.averaging import EMA
from trainer.callbacks.random_state import RandomState
from trainer.config.errors import ConfigError
from trainer.loop.trainer import Trainer

TRAIN = rows("binary", 300)
"""Nine batches of 32 rows and one of 12."""
SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAM = functools.partial(torch.optim.Adam, lr=0.01, weight_decay=0.01)
ONE_CYCLE = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.01)
STEP = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1)
PLATEAU = functools.partial(lr_schedules.plateau, patience=0)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "accumulate": ({}, {"accumulate_grad_batches": 3}),
    "clip": ({"optimizer": ADAM}, {"gradient_clip_val": 0.1}),
    "clip by value": ({"optimizer": SGD}, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "every step": ({"scheduler": ONE_CYCLE}, {}),
    "every epoch": ({"scheduler": STEP}, {}),
    "plateau": ({"scheduler": PLATEAU}, {}),
    "max steps": ({}, {"max_steps": 14}),
    "part of an epoch": ({}, {"limit_train_batches": 4}),
    "validation twice": ({}, {"val_check_interval": 5}),
    "validation by steps": ({}, {"val_check_interval": 7, "check_val_every_n_epoch": None}),
    "bfloat16": ({}, {"precision": "bf16-mixed"}),
    "groups": ({"param_groups": {"*.bias": {"lr": 0.1}}, "l1": 1e-3}, {}),
    "log often": ({}, {"log_every_n_steps": 3}),
}


class Journal(Callback):
    """Records what callbacks see after each batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, float, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.seen.append((batch_idx, trainer.global_step, float(outputs["loss"]), rate))


class Stop(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        trainer.should_stop = trainer.global_step == 14


class Gradients(Callback):
    def on_after_backward(self, trainer, pl_module) -> None:
        pass


def checkpoints(folder: Path, every: int = 5) -> list[Callback]:
    return [
        RandomState(),
        EarlyStopping("val/loss", patience=1),
        ModelCheckpoint(folder, "last", enable_version_counter=False),
        ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1, save_on_train_epoch_end=False),
    ]


def state(folder: Path) -> dict[str, Any]:
    """The contents of each checkpoint in a folder, without paths and durations."""
    found = {path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.ckpt"))}
    for checkpoint in found.values():
        for name in ("decided", "batches", "seconds"):
            checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"].pop(name)
        checkpoint["callbacks"] = {
            name: values for name, values in checkpoint["callbacks"].items() if not name.startswith("ModelCheckpoint")
        }
    return found


def same(left: Any, right: Any, path: str = "") -> None:
    """Asserts that nested values are equal, tensors bit for bit."""
    if isinstance(left, dict):
        assert list(left) == list(right), path
        for name in left:
            same(left[name], right[name], f"{path}/{name}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for place, (one, other) in enumerate(zip(left, right, strict=True)):
            same(one, other, f"{path}/{place}")
    elif isinstance(left, Tensor):
        assert torch.equal(left, right), path
    else:
        assert left == right, path


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(next(folder.rglob("events*")).parent)).Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("case", CASES)
def test_everything_is_as_in_lightnings_own_loop(tmp_path: Path, case: str) -> None:
    of_module, settings = CASES[case]
    found: list[Any] = []
    for fast in ("off", "on"):
        module, journal = build("binary", **of_module), Journal()
        callbacks = [*checkpoints(tmp_path / fast), EMA(0.9), journal]
        logger = TensorBoardLogger(str(tmp_path / fast))
        trainer = fit(module, TRAIN, epochs=3, callbacks=callbacks, fast=fast, logger=logger, **settings)
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        measured = [module.train_loss, module.samples, trainer.global_step, trainer.current_epoch, logged]
        found.append([state(tmp_path / fast), curves(tmp_path / fast), measured, journal.seen])
    assert len(found[0][0]) > 2
    assert len(found[0][3]) > 5
    same(*found)


@pytest.mark.parametrize("extra", [[Stop], [Anneal]])
def test_callbacks_may_stop_or_change_training(tmp_path: Path, extra: list[Callable[[], Callback]]) -> None:
    found = []
    for fast in ("off", "on"):
        module, journal = build("binary"), Journal()
        trainer = fit(module, TRAIN, epochs=3, callbacks=[*(make() for make in extra), journal], fast=fast)
        found.append([module.state_dict(), journal.seen, trainer.global_step])
    same(*found)


def test_callbacks_may_log_and_add_parameters_and_consist_of_functions() -> None:
    found = []
    for fast in ("off", "auto"):
        calls: list[int] = []

        class Grow(Callback):
            """Adds the parameters of the first group in the second epoch."""

            def on_train_start(self, trainer, pl_module) -> None:
                group = trainer.optimizers[0].param_groups.pop(0)
                self.group = {name: value for name, value in group.items() if name != "name"}

            def on_train_epoch_start(self, trainer, pl_module) -> None:
                if trainer.current_epoch == 1:
                    trainer.optimizers[0].add_param_group(self.group)

            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
                pl_module.log("seen", float(batch_idx))

        count = LambdaCallback(on_train_batch_end=lambda *_, calls=calls: calls.append(1))
        module = build("binary")
        trainer = fit(module, TRAIN, epochs=2, callbacks=[Grow(), count], fast=fast, log_every_n_steps=0)
        logged = float(trainer.callback_metrics["seen"])
        found.append([module.state_dict(), len(calls), logged])
    assert found[0][1] == 20
    same(*found)


def test_a_trainer_may_fit_twice() -> None:
    found = []
    for fast in ("off", "on"):
        trainer = fit(build("binary"), TRAIN, epochs=1, fast=fast)
        module = build("binary")
        trainer.fit_loop.max_epochs = 2
        trainer.fit(module, trainer.train_dataloader, trainer.val_dataloaders)
        found.append(module.state_dict())
    same(*found)


def test_texts_and_images_are_trained_on_too() -> None:
    found = []
    for fast in ("off", "on"):
        torch.manual_seed(0)
        module = build("binary", network=MLP(MIXED, 1, hidden=(8,)))
        fit(module, mixed_rows(100), epochs=2, fast=fast, limit_val_batches=0)
        found.append(module.state_dict())
    same(*found)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"callbacks": [Gradients()]}, "Gradients.on_after_backward"),
        ({"precision": "64-true"}, "precision 64-true"),
        ({"profiler": "simple"}, "the profiler SimpleProfiler"),
    ],
)
def test_what_the_fast_loop_does_not_support_is_logged(
    settings: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(accelerator="cpu", threads=1, logger=False, **settings)
    caplog.set_level("INFO", logger="trainer.loop.trainer")
    compiled = {"auto": "; compile: no, auto requires the fast loop", True: "; compile: only the network", False: ""}
    module = build("binary")
    module.network.compile = lambda: None
    for trainer.compile, then in compiled.items():
        trainer.prepare(module, {})
        assert caplog.messages[-1].endswith(f"; loop: Lightning's own (the fast loop does not support {why}){then}")
    with pytest.raises(ConfigError) as caught:
        Trainer(accelerator="cpu", threads=1, logger=False, fast="on", **settings)
    assert str(caught.value) == f"trainer.fast=on: the fast loop does not support {why}. Use trainer.fast=auto."


def test_modules_with_their_own_hooks_are_trained_by_lightnings_loop() -> None:
    class Own(SupervisedModule):
        def on_after_backward(self) -> None:
            pass

    module = build("binary")
    module.__class__ = Own
    trainer = Trainer(accelerator="cpu", threads=1, logger=False)
    trainer.prepare(module, {})
    assert not trainer.loop.fast
    asked = Trainer(accelerator="cpu", threads=1, logger=False, fast="on")
    with pytest.raises(
        ConfigError, match=r"^trainer\.fast=on: the fast loop does not support Own\.on_after_backward\. "
    ):
        asked.prepare(module, {})

    class Rows(LightningDataModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

    with pytest.raises(ConfigError, match=r"does not support Rows\.on_after_batch_transfer\. "):
        asked.prepare(build("binary"), {}, Rows())
