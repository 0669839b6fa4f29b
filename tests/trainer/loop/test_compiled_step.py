"""A whole step as one graph: equal to eager steps within rounding, and the same again after a resume."""

import functools
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from models.architectures.mlp import MLP
from models.architectures.tabm import TabM
from models.training.augmentation import TableMixup
from models.training.divergence import DivergedError
from tests.models.problems import ADAMW, INPUTS, build, fit, rows
from tests.trainer.loop.test_fast_loop import ADAM, ONE_CYCLE, SGD, TRAIN, checkpoints, same
from trainer.callbacks.anneal import Anneal


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Messages of the loop, without Lightning's."""
    return [record.getMessage() for record in caplog.records if record.name == "trainer.loop.fast_loop"]


class Halved(MLP):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        output: Tensor = super().forward(batch)
        assert output.dtype is torch.bfloat16
        return output


FLAT = functools.partial(MLP, INPUTS, 1, hidden=(16, 16))
COMPILED: dict[str, tuple[Callable[[], MLP | TabM], dict[str, Any], dict[str, Any]]] = {
    "plain": (FLAT, {"l1": 1e-3}, {"gradient_clip_val": 0}),
    "clip": (FLAT, {"optimizer": ADAM, "scheduler": ONE_CYCLE}, {"gradient_clip_val": 0.1}),
    "mixup": (FLAT, {"augment": TableMixup(INPUTS), "param_groups": {"*.bias": {"lr": 0.1}}}, {}),
    "tabm": (functools.partial(TabM, INPUTS, 1, hidden=(8,), members=4), {}, {}),
    "bfloat16": (
        functools.partial(Halved, INPUTS, 1, hidden=(16, 16)),
        {},
        {"precision": "bf16-mixed", "gradient_clip_val": 0.1},
    ),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case == "clip" else pytest.mark.slow) for case in COMPILED]
)
def test_one_graph_per_step_ends_within_rounding(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Dropout draws the same numbers, the incomplete last batch of an epoch is trained on without the graph, and a
    callback that only reads before a batch is allowed."""
    network, of_module, settings = COMPILED[case]
    of_weights, of_loss = (0.05, 1e-2) if case == "bfloat16" else (1e-5, 1e-5)
    found = []
    caplog.set_level("INFO", logger="trainer.loop.fast_loop")
    for compile in (False, True):
        torch.manual_seed(0)
        module = build("binary", network=network(), **of_module)
        reads = {"callbacks": [LearningRateMonitor()], "logger": TensorBoardLogger(str(tmp_path))}
        trainer = fit(module, TRAIN, epochs=2, fast="on", compile=compile, **reads, **settings)
        counts = {float(each["step"]) for each in trainer.optimizers[0].state.values()}
        found.append([module, counts, trainer.global_step])
    assert logged(caplog)[-1].startswith("compile: one graph per step, in ")
    (eager, *_), (compiled, *_) = found
    for name, value in eager.network.named_parameters():
        torch.testing.assert_close(compiled.network.get_parameter(name), value, rtol=1e-4, atol=of_weights)
    assert compiled.train_loss == pytest.approx(eager.train_loss, rel=of_loss)
    assert found[0][1:] == found[1][1:]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_leaves_the_weights_of_a_graph_intact() -> None:
    train = {name: values[:288].clone() for name, values in TRAIN.items()}
    train["numbers"][5 * 32 + 1, 2] = torch.inf
    module = build("binary")
    with pytest.raises(DivergedError) as caught:
        fit(module, train, epochs=1, shuffle=False, fast="on", compile=True)
    lines = str(caught.value).split("\n")
    assert lines[0] == "train/loss is nan at step 5 (epoch 0)."
    assert lines[1] == "  columns: not finite in this batch: number 2 (inf)"
    assert re.fullmatch(
        r'  parameters: all finite; the largest weight is in [\w.]+ in group "\* \(\w+\)", up to [\d.]+', lines[2]
    )


@pytest.mark.slow
def test_a_compiled_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    def run(folder: str, epochs: int, resume: Path | None = None) -> dict[str, Tensor]:
        module = build("binary")
        callbacks = checkpoints(tmp_path / folder, every=9)
        fit(module, TRAIN, epochs=epochs, callbacks=callbacks, resume=resume, fast="on", compile=True)
        return module.state_dict()

    whole = run("whole", 3)
    run("part", 2)
    for name in ("last", "step=9"):  # followed by the incomplete last batch of an epoch
        same(whole, run("resumed", 3, tmp_path / "part" / f"{name}.ckpt"))


@pytest.mark.parametrize(
    ("of_module", "settings", "why"),
    [
        ({"optimizer": SGD}, {}, "the optimizer SGD is not Adam or AdamW"),
        ({"optimizer": functools.partial(ADAMW, amsgrad=True)}, {}, "the optimizer has amsgrad=True"),
        ({}, {"accumulate_grad_batches": 2}, "gradients accumulate over batches"),
        ({}, {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, "gradients are clipped by value"),
        ({}, {"callbacks": [Anneal()]}, "Anneal may change the network before a step"),
    ],
)
def test_what_cannot_be_one_graph_is_logged(
    of_module: dict[str, Any], settings: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="trainer.loop.fast_loop")
    module = build("binary", **of_module)
    module.network.compile = lambda: None
    fit(module, TRAIN, epochs=1, fast="on", compile=True, **settings)
    assert logged(caplog) == [f"compile: only the network ({why})"]


@pytest.mark.parametrize(("count", "epochs", "tried"), [(20, 2, True), (40, 1, False), (40, 2, True)])
def test_a_graph_is_compiled_for_a_full_batch(
    count: int, epochs: int, tried: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """20 rows are one batch; of 40 rows, the second batch is incomplete."""
    caplog.set_level("INFO", logger="trainer.loop.fast_loop")
    module = build("binary", optimizer=SGD)
    module.network.compile = lambda: None
    fit(module, rows("binary", count), epochs=epochs, fast="on", compile=True)
    assert len(logged(caplog)) == tried


class Prints(MLP):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        print(end="")
        return super().forward(batch)


class Keeps(MLP):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        output: Tensor = super().forward(batch)
        self.kept = output.detach()
        return output


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (Prints, ""),
        pytest.param(Keeps, "the network keeps tensors of a step besides its buffers", marks=pytest.mark.slow),
    ],
)
def test_what_torch_cannot_compile_is_trained_eagerly(
    network: type[MLP], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for compile in (False, True):
        torch.manual_seed(0)
        module = build("binary", network=network(INPUTS, 1, hidden=(8,)))
        fit(module, TRAIN, epochs=1, fast="on", compile=compile)
        found.append(module.state_dict())
    same(*found)
    (line,) = [record for record in caplog.records if "torch cannot" in record.message]
    assert line.levelname == "WARNING"
    assert why in line.message


@pytest.mark.parametrize("pays", [pytest.param(True, marks=pytest.mark.slow), False])
def test_compiling_is_decided_after_an_epoch_and_kept(
    tmp_path: Path, pays: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trainer.loop.compiled_step.COST", 0.0 if pays else 1e9)
    caplog.set_level(logging.INFO, logger="trainer.loop.fast_loop")

    def run(epochs: int, resume: Path | None = None) -> list[str]:
        caplog.clear()
        callbacks = [ModelCheckpoint(tmp_path, "last", enable_version_counter=False)]
        fit(build("binary"), TRAIN, epochs=epochs, callbacks=callbacks, resume=resume, fast="on", compile="auto")
        return [message.split(" (")[0].split(", in")[0] for message in logged(caplog)]

    repays = ["compile: yes, it saves time", "compile: one graph per step"]
    lines = repays if pays else ["compile: no, it would take longer"]
    assert run(1) == []
    assert run(2, tmp_path / "last.ckpt") == lines
    assert run(3) == lines
    assert run(4, tmp_path / "last.ckpt") == lines[1:]


class Freeze(Callback):
    def __init__(self, *epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        pl_module.network.layers[0].requires_grad_(trainer.current_epoch not in self.epochs)


def test_auto_decides_for_a_run_that_began_without_it_and_compiles_whole_steps_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trainer.loop.compiled_step.COST", 0.0)
    caplog.set_level("INFO", logger="trainer.loop.fast_loop")
    for epochs, compile, resume in ((2, False, None), (3, "auto", tmp_path / "last.ckpt")):
        module = build("binary")
        module.network.compile = None
        callbacks = [Freeze(0), *checkpoints(tmp_path)]
        fit(module, TRAIN, epochs=epochs, callbacks=callbacks, resume=resume, fast="on", compile=compile)
    decided, tried = logged(caplog)
    assert decided.startswith("compile: yes, it saves time (at most ")
    assert tried == "compile: no (some parameters have had fewer steps than others)"


@pytest.mark.slow
def test_a_graph_is_dropped_if_a_callback_changes_what_is_trained(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="trainer.loop.fast_loop")
    found = []
    for compile in (False, True):
        torch.manual_seed(0)
        module = build("binary", network=MLP(INPUTS, 1, hidden=(8,), dropout=0.0))
        fit(module, TRAIN, epochs=2, callbacks=[Freeze(1)], fast="on", compile=compile)
        found.append(module)
    assert logged(caplog)[-1] == "compile: dropped the graph, because a callback has changed what is trained"
    for name, value in found[0].network.named_parameters():
        torch.testing.assert_close(found[1].network.get_parameter(name), value, rtol=1e-4, atol=1e-5)
