"""Anneal: weight decay and dropout at known points of a run, and exact after a resume."""

import functools
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn

from common.errors import InputError
from models.training.lightning_module import SupervisedModule
from models.training.lr_schedules import flat_cos
from tests.models.problems import build, fit, rows
from trainer.callbacks.anneal import Anneal
from trainer.callbacks.random_state import RandomState

BATCHES = 8
TRAIN = rows("binary", 32 * BATCHES)
DECAYING = functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.5)


class Watch(Callback):
    """Records the decay of each group and the dropout rates at each step."""

    def __init__(self) -> None:
        self.decays: list[list[float]] = []
        self.rates: list[set[float]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.decays.append([group["weight_decay"] for group in optimizer.param_groups])
        self.rates.append({module.p for module in pl_module.network.modules() if isinstance(module, nn.Dropout)})


def run(
    folder: Path, epochs: int = 3, *, resume: Path | None = None, accumulate: int = 1
) -> tuple[SupervisedModule, Watch]:
    module = build("binary", optimizer=DECAYING)  # its dropout is 0.2
    watch = Watch()
    every_step = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(
        module,
        TRAIN,
        epochs=epochs,
        callbacks=[Anneal(), RandomState(), watch, every_step],
        resume=resume,
        accumulate_grad_batches=accumulate,
    )
    return module, watch


@pytest.mark.parametrize("accumulate", [1, 2])
def test_decay_and_dropout_are_constant_for_half_the_run_and_fall_to_zero(tmp_path: Path, accumulate: int) -> None:
    module, watch = run(tmp_path, accumulate=accumulate)
    steps = 3 * BATCHES // accumulate
    factors = [flat_cos(step / steps) for step in range(steps)]
    assert factors[: steps // 2] == [1.0] * (steps // 2)
    assert factors[-1] < 0.1
    assert [decay for _, decay in watch.decays] == pytest.approx([0.5 * factor for factor in factors])
    assert {bias_decay for bias_decay, _ in watch.decays} == {0.0}
    assert [rate for (rate,) in watch.rates] == pytest.approx([0.2 * factor for factor in factors])
    assert [each.p for each in module.network.modules() if isinstance(each, nn.Dropout)] == [0.2, 0.2]


Whole = tuple[Path, SupervisedModule, Watch]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(folder)


@pytest.mark.parametrize("step", [5, BATCHES, 2 * BATCHES + 3])
def test_a_resumed_run_continues_exactly(tmp_path: Path, step: int, whole_run: Whole) -> None:
    folder, whole, all_steps = whole_run
    resumed, rest = run(tmp_path, resume=folder / f"step={step}.ckpt")
    assert rest.decays == all_steps.decays[step:]
    assert rest.rates == all_steps.rates[step:]
    weights: dict[str, Tensor] = resumed.network.state_dict()
    assert [name for name, value in whole.network.state_dict().items() if not torch.equal(value, weights[name])] == []


def test_a_run_of_unknown_length_is_rejected(tmp_path: Path) -> None:
    message = r"^Anneal needs the length of the run: set trainer.max_epochs or trainer.max_steps.$"
    with pytest.raises(InputError, match=message):
        run(tmp_path, epochs=-1)
