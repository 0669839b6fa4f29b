"""The learning rate finder: its suggestion, and that it changes nothing in the run except the rate."""

import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from datamodules.loading.batch_loader import Batches
from datamodules.loading.store import MemoryStore
from datamodules.schema import Task
from models.architectures.mlp import MLP
from models.training.lightning_module import SupervisedModule
from tests.models.problems import INPUTS, build, rows
from trainer.command.prepare import prepare
from trainer.config.errors import ConfigError
from trainer.evaluation.lr_finder import HIGH, LOW, STEPS, RangeTest, range_test, suggest
from trainer.loop.trainer import Trainer

RunHere = Callable[..., Path]
QUICK = (
    *("data=iris", "scheduler=none", "export=none", "test=false", "baselines=false", "calibrate=false"),
    *("trainer.threads=1", "callbacks.progress=null"),
)
RATES = [LOW * (HIGH / LOW) ** (step / (STEPS - 1)) for step in range(STEPS)]
FLAT = (
    "^lr_find: from a rate of 1e-06 up, the loss never decreases by more than it varies between batches. Set"
    " optimizer.lr, or use a larger data.batch_size.$"
)


def weights(folder: Path) -> dict[str, Tensor]:
    saved: dict[str, Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return saved


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


class Rows(pl.LightningDataModule):
    """Synthetic training rows, 128 in batches of 32."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task: Task = task

    def train_dataloader(self) -> Batches:
        return Batches(MemoryStore(rows(self.task, 128)), 32, shuffle=True, seed=1)

    val_dataloader = train_dataloader


class RecordingSGD(torch.optim.SGD):
    """Records the rates of its groups at each step, and the largest gradient norm."""

    rates: list[list[float]]
    norm: float

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        RecordingSGD.rates.append([group["lr"] for group in self.param_groups])
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        RecordingSGD.norm = max(RecordingSGD.norm, float(nn.utils.get_total_norm(gradients)))
        return loss


class Members(nn.Module):
    """Two MLPs: (rows, 2, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.ModuleList(MLP(INPUTS, 1, hidden=(8,)) for _ in range(2))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.stack([member(batch) for member in self.both], 1)


def run_test(module: SupervisedModule, task: Task, **settings: Any) -> RangeTest:
    datamodule: Any = Rows(task)
    return range_test(module, datamodule, partial(Trainer, accelerator="cpu", enable_model_summary=False, **settings))


def test_the_rate_of_the_steepest_decrease_is_suggested() -> None:
    noise = 0.02 * np.random.default_rng(0).standard_normal(STEPS)
    x = np.log10(RATES)
    losses = 1 - 0.8 / (1 + np.exp(-4 * (x + 3))) + 3 * np.maximum(x + 1, 0) + noise
    assert suggest(RATES, losses.tolist()) == pytest.approx(1e-3, rel=0.4)


def test_a_loss_that_does_not_decrease_raises_an_error() -> None:
    noise = np.random.default_rng(0).standard_normal((20, STEPS))
    for losses in [*(1 + 0.3 * noise), np.linspace(1, 4, STEPS), np.ones(5), np.ones(0)]:
        with pytest.raises(ConfigError, match=FLAT):
            suggest(RATES[: len(losses)], losses.tolist())


def test_groups_keep_their_factors_and_gradients_are_clipped() -> None:
    RecordingSGD.rates, RecordingSGD.norm = [], 0.0
    module = build("binary", optimizer=partial(RecordingSGD, lr=0.3), param_groups={"inputs.*": {"lr": 0.1}})
    test = run_test(module, "binary", gradient_clip_val=1e-3)
    assert test.rates == pytest.approx(RATES[: len(test.rates)])
    assert len(test.rates) == len(RecordingSGD.rates) == STEPS  # clipped to small steps, it does not diverge
    for rate, group_rates in zip(test.rates, RecordingSGD.rates, strict=True):
        assert {round(each / rate, 6) for each in group_rates} == {0.1, 1.0}
    assert 0 < RecordingSGD.norm < 1.01e-3


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_module_and_the_random_state_do_not_change(task: Task) -> None:
    module = build(task, optimizer=partial(torch.optim.AdamW, lr=0.3))
    before, state = {name: value.clone() for name, value in module.state_dict().items()}, torch.get_rng_state()
    test = run_test(module, task)
    assert len(test.losses) < STEPS  # it stops when the loss diverges
    assert 1e-3 < suggest(test.rates, test.losses) < 0.1
    assert equal(module.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.optimizer.keywords == {"lr": 0.3}
    assert (module.samples, module.train_loss_mean.rows) == (0, 0)


def test_losses_of_members_and_accumulated_steps() -> None:
    torch.manual_seed(0)
    module = build("regression", network=Members())
    test = run_test(module, "regression", accumulate_grad_batches=2)
    with torch.no_grad():
        batches = [(module.network.eval()(batch), batch["target"]) for batch in Rows("regression").train_dataloader()]
        losses = [nn.functional.mse_loss(output[:, :, 0], truth[:, None].expand(-1, 2)) for output, truth in batches]
    assert test.losses[0] == pytest.approx(float(losses[0]), rel=0.2)  # not equal because of dropout
    assert test.rates[:6] == pytest.approx([RATES[step] for step in (0, 0, 1, 1, 2, 2)])


def test_infinite_losses_stop_the_test_and_are_not_recorded() -> None:
    module = build("regression", optimizer=partial(torch.optim.SGD, lr=0.1), network=Cliff())
    test = run_test(module, "regression")
    assert 10 < len(test.losses) < STEPS
    assert all(map(math.isfinite, test.losses))


class Cliff(nn.Module):
    """Returns infinity once its weight has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        moved = (self.weight - 1).abs() > 1e-3
        return torch.where(moved, torch.inf, 1.0) * self.weight * batch["numbers"][:, :1]


def test_a_run_equals_one_with_the_rate_set_by_hand(run_here: RunHere, tmp_path: Path) -> None:
    settings = (*QUICK, "trainer.max_epochs=2", "+param_groups={inputs*: {lr: 0.5}}")
    found = run_here(*settings, "lr_find=true", "optimizer.lr=7", folder=tmp_path / "found")
    rate = json.loads((found / "lr_find.json").read_text())["lr"]
    given = run_here(*settings, f"optimizer.lr={rate}", "logger=none", folder=tmp_path / "given")
    assert equal(weights(found), weights(given))
    assert (found / "lr_find.png").read_bytes().startswith(b"\x89PNG")
    assert not (given / "lr_find.json").exists()
    events = EventAccumulator(str(found / "tensorboard"))
    events.Reload()
    assert "lr_find" in events.Tags()["images"]


def test_a_resumed_run_keeps_the_rate(run_here: RunHere, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    settings = (*QUICK, "logger=none", "lr_find=true")
    whole = run_here(*settings, "trainer.max_epochs=2", folder=tmp_path / "whole")
    parts = run_here(*settings, "trainer.max_epochs=1", folder=tmp_path / "parts")
    (parts / "lr_find.png").unlink()
    resume = f"resume={parts}/checkpoints/last.ckpt"
    run_here(*settings, "trainer.max_epochs=2", resume, folder=parts)
    assert equal(weights(whole), weights(parts))
    assert not (parts / "lr_find.png").exists()
    rates = re.findall(
        r"learning rate: (.*), at the steepest decrease of the loss \(optimizer.lr was 0.001\)", caplog.text
    )
    assert len(rates) == 3
    assert len(set(rates)) == 1
    (parts / "lr_find.json").unlink()
    message = f"lr_find: {parts} was started without it, and a resumed run keeps its learning rate. Use lr_find=false."
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        run_here(*settings, "trainer.max_epochs=3", resume, folder=parts)


def rateless(params: Any, *, momentum: float = 0.9) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, momentum=momentum)


def test_an_optimizer_without_a_rate_is_refused() -> None:
    optimizer = f"{{_target_: {__name__}.rateless, _partial_: true}}"
    with pytest.raises(ConfigError) as caught:
        prepare(["lr_find=true", "~optimizer", f"+optimizer={optimizer}", "allowed_targets=[tests]"])
    assert str(caught.value) == (
        f"A setting is wrong:\n  command line: lr_find: {__name__}.rateless has no argument lr: use lr_find=false."
    )
