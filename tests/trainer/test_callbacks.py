"""Callbacks: a resumed run ends as an uninterrupted one, averages are what is kept, progress is short."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor

from models import schedules
from models.supervised import SupervisedModule
from tests.models.problems import build, fit, rows
from trainer.callbacks.averaging import EMA, SWA
from trainer.callbacks.random_state import RandomState

BATCHES = 8
TRAIN = rows("binary", 32 * BATCHES)
COSINE = functools.partial(schedules.cosine, warmup=0.1)
AVERAGES: dict[str, Callable[[], list[Callback]]] = {
    "plain": list,
    "ema": lambda: [EMA(0.9)],
    "swa": lambda: [SWA(0.5)],
}


class StopAt(Callback):
    """Ends the process's part of a run in the midst of it, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


def weights(module: SupervisedModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.network.state_dict().items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("batches", "checkpoint"),
    [(BATCHES, "last"), (BATCHES + 2, "step"), (2 * BATCHES - 2, "step"), (2 * BATCHES, "step"), (2 * BATCHES, "last")],
)
@pytest.mark.parametrize("average", AVERAGES)
def test_an_interrupted_run_goes_on_to_the_same_weights(
    tmp_path: Path, average: str, batches: int, checkpoint: str, accumulate: int
) -> None:
    """Stopped in the midst of an epoch, after its last step and after its validation; dropout, AdamW and a cosine."""
    step = batches // accumulate

    def run(folder: str, *extra: Callback, resume: Path | None = None) -> SupervisedModule:
        module = build("binary", scheduler=COSINE)
        every_step = ModelCheckpoint(
            tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False
        )
        by_epoch = ModelCheckpoint(tmp_path / folder, filename="epoch", monitor="val/loss", save_last=True)
        callbacks = [*AVERAGES[average](), RandomState(), EarlyStopping("val/loss"), every_step, by_epoch, *extra]
        fit(module, TRAIN, epochs=3, callbacks=callbacks, resume=resume, accumulate_grad_batches=accumulate)
        return module

    whole = run("whole")
    with pytest.raises(RuntimeError, match="stopped"):
        run("part", StopAt(step))
    torch.manual_seed(123)
    name = "last.ckpt" if checkpoint == "last" else f"step={step}.ckpt"
    resumed = run("part", resume=tmp_path / "part" / name)
    assert differing(weights(whole), weights(resumed)) == []
    assert whole.train_loss == resumed.train_loss
