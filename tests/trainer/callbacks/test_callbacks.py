"""Callbacks: a resumed run ends like an uninterrupted one, averages are kept as the model, progress is short."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor

from models.architectures.mlp import MLP
from models.training import lr_schedules
from models.training.lightning_module import SupervisedModule
from tests.models.problems import INPUTS, build, fit, rows
from trainer.callbacks.averaging import EMA, SWA
from trainer.callbacks.progress import Progress
from trainer.callbacks.random_state import RandomState
from trainer.callbacks.tensorboard import log_hyperparameters

BATCHES = 8
TRAIN = rows("binary", 32 * BATCHES)
COSINE = functools.partial(lr_schedules.cosine, warmup=0.1)
WORSE = functools.partial(torch.optim.SGD, lr=0.02, maximize=True)
AVERAGES: dict[str, Callable[[], list[Callback]]] = {
    "plain": list,
    "ema": lambda: [EMA(0.9)],
    "swa": lambda: [SWA(0.5)],
}


class StopAt(Callback):
    """Interrupts a run before a step, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


def weights(module: SupervisedModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.network.state_dict().items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    return [name for name in a if not torch.equal(a[name], b[name])]


def run(folder: Path, average: str, accumulate: int, *extra: Callback, resume: Path | None = None) -> SupervisedModule:
    module = build("binary", scheduler=COSINE)
    by_epoch = ModelCheckpoint(folder, filename="epoch", monitor="val/loss", save_last=True)
    callbacks = [*AVERAGES[average](), RandomState(), EarlyStopping("val/loss"), by_epoch, *extra]
    fit(module, TRAIN, epochs=3, callbacks=callbacks, resume=resume, accumulate_grad_batches=accumulate)
    return module


class Runs:
    """Runs that several tests resume or compare with; each is made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.whole = functools.cache(self._whole)
        self.interrupted = functools.cache(self._interrupted)

    def _whole(self, average: str, accumulate: int) -> SupervisedModule:
        return run(self.folder / f"{average}-{accumulate}", average, accumulate)

    def _interrupted(self, average: str, accumulate: int, batches: int) -> Path:
        """The folder with a checkpoint of each step, and the one after the last validation."""
        folder = self.folder / f"{average}-{accumulate}-{batches}"
        every_step = ModelCheckpoint(
            folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False
        )
        with pytest.raises(RuntimeError, match="stopped"):
            run(folder, average, accumulate, every_step, StopAt(batches // accumulate))
        return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("batches", "checkpoint"),
    [(BATCHES, "last"), (BATCHES + 2, "step"), (2 * BATCHES - 2, "step"), (2 * BATCHES, "step"), (2 * BATCHES, "last")],
)
@pytest.mark.parametrize("average", AVERAGES)
def test_an_interrupted_run_resumes_to_the_same_weights(
    runs: Runs, tmp_path: Path, average: str, batches: int, checkpoint: str, accumulate: int
) -> None:
    """Interrupted within an epoch, after its last step and after its validation; dropout, AdamW and a cosine."""
    whole = runs.whole(average, accumulate)
    # One run is interrupted after the first epoch, and one after the second, which has all other checkpoints.
    part = runs.interrupted(average, accumulate, BATCHES if batches == BATCHES else 2 * BATCHES)
    torch.manual_seed(123)
    name = "last.ckpt" if checkpoint == "last" else f"step={batches // accumulate}.ckpt"
    resumed = run(tmp_path, average, accumulate, resume=part / name)
    assert differing(weights(whole), weights(resumed)) == []
    assert whole.train_loss == resumed.train_loss


@pytest.mark.parametrize(
    ("monitor", "interval", "looks"), [("val/loss", 1.0, 3), ("val/loss", 0.5, 6), ("train/loss", 1.0, 3)]
)
def test_a_plateau_schedule_resumes_where_it_was(tmp_path: Path, monitor: str, interval: float, looks: int) -> None:
    plateau = functools.partial(lr_schedules.plateau, factor=0.5, patience=0)

    def run(folder: str, epochs: int, resume: Path | None = None) -> tuple[SupervisedModule, float]:
        # Each loss is higher than the previous one, so each lowers the rate.
        module = build("binary", scheduler=plateau, monitor=monitor, optimizer=WORSE)
        checkpoint = ModelCheckpoint(tmp_path / folder, monitor=monitor, save_last=True)
        settings = {"callbacks": [RandomState(), checkpoint], "val_check_interval": interval}
        trainer = fit(module, TRAIN, epochs=epochs, resume=resume, **settings)
        return module, trainer.optimizers[0].param_groups[0]["lr"]

    whole, rate = run("whole", 3)
    run("part", 2)
    resumed, same = run("part", 3, tmp_path / "part" / "last.ckpt")
    assert rate == same == pytest.approx(WORSE.keywords["lr"] * 0.5 ** (looks - 1))
    assert differing(weights(whole), weights(resumed)) == []


@pytest.mark.parametrize("average", [EMA(0.9), SWA(0.5)], ids=["ema", "swa"])
def test_the_average_is_measured_saved_and_left_in_the_module(tmp_path: Path, average: Callback) -> None:
    history: list[dict[str, Tensor]] = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            history.append(weights(pl_module))

    network = MLP(INPUTS, 1, hidden=(16,), norm="batch")  # its running statistics are averaged too
    module = build("binary", network=network, optimizer=functools.partial(torch.optim.SGD, lr=0.5))
    start = weights(module)
    last = ModelCheckpoint(tmp_path, filename="last", monitor="val/loss", save_top_k=1, mode="max")
    trainer = fit(module, TRAIN, epochs=2, callbacks=[average, Keep(), last])
    measured = trainer.callback_metrics["val/loss"]

    expected = start
    for step, newest in enumerate(history, start=1):
        share = 1 - min(0.9, step / (step + 9)) if isinstance(average, EMA) else 1 / max(step - BATCHES, 1)
        expected = {name: torch.lerp(value.float(), newest[name].float(), share) for name, value in expected.items()}
    for name, value in weights(module).items():
        torch.testing.assert_close(value.float(), expected[name], rtol=1e-5, atol=1e-6)
    # Validated again, the module is still the average, not weights that a callback kept.
    again = trainer.validate(module, trainer.val_dataloaders, verbose=False)[0]
    assert again["val/loss"] == pytest.approx(float(measured), abs=1e-6)
    best = torch.load(last.best_model_path, weights_only=True)
    module.load_state_dict(best["state_dict"])
    kept = trainer.validate(module, trainer.val_dataloaders, verbose=False)[0]
    assert kept["val/loss"] == pytest.approx(float(last.best_model_score), abs=1e-6)


def test_progress_without_a_terminal_is_one_line_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    module = build("binary", monitor="val/auroc", mode="max")
    caplog.set_level("INFO", logger="trainer")
    trainer = fit(module, TRAIN, epochs=2, callbacks=[Progress()], enable_progress_bar=True)
    (line,) = [record.getMessage() for record in caplog.records if "callbacks" in record.name]
    loss, auroc = (float(trainer.callback_metrics[name]) for name in ("val/loss", "val/auroc"))
    assert line.startswith(
        f"epoch 2/2  step {2 * BATCHES}  train/loss {module.train_loss:.4g}  val/loss {loss:.4g}"
        f"  val/auroc {auroc:.4g} (best 0."
    )


def test_progress_is_an_occasional_line_in_a_long_run(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the clock takes five minutes: twelve hours are about twenty lines."""
    clock = itertools.count(0, 300)
    monkeypatch.setattr("trainer.callbacks.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    caplog.set_level("INFO", logger="trainer")
    fit(build("binary"), TRAIN, epochs=16, callbacks=[Progress()], enable_progress_bar=True)
    lines = [record.getMessage() for record in caplog.records if "callbacks" in record.name]
    assert 15 <= len(lines) <= 40
    assert lines[-1].startswith(f"epoch 16/16  step {16 * BATCHES}  ")


def test_hyperparameters_and_final_metrics_are_one_session_next_to_the_curves(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    trainer = fit(build("binary"), TRAIN, epochs=1, logger=logger, log_every_n_steps=1)
    config = {"model": {"hidden": [16, 16], "dropout": 0.2}, "resume": None, "seed": 0}
    log_hyperparameters(trainer, config, {"val/loss": 0.25, "test/f1": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
    assert not [path for path in (tmp_path / "tensorboard").iterdir() if path.is_dir()]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [events.Scalars(name)[-1].value for name in ("val/loss", "test/f1")] == [0.25, 0.5]
    session = HParamsPluginData.FromString(events.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    settings = {
        name: value.string_value or value.number_value for name, value in session.session_start_info.hparams.items()
    }
    assert settings == {"model/hidden": "[16, 16]", "model/dropout": 0.2, "resume": "None", "seed": 0}


def test_hyperparameters_need_no_logger() -> None:
    log_hyperparameters(fit(build("binary"), TRAIN, epochs=1), {"seed": 0}, {"val/loss": 0.25})


def test_early_stopping_and_the_best_checkpoint_choose_by_the_monitor(tmp_path: Path) -> None:
    """After the third epoch the rate is so high that the loss only increases."""
    seen: list[float] = []

    class Spoil(Callback):
        def on_validation_end(self, trainer, pl_module) -> None:
            seen.append(float(trainer.callback_metrics["val/loss"]))
            if trainer.current_epoch == 2:
                trainer.optimizers[0].param_groups[0]["lr"] = 3.0

    best = ModelCheckpoint(tmp_path, filename="best", monitor="val/loss")
    fit(build("binary"), TRAIN, epochs=50, callbacks=[Spoil(), EarlyStopping("val/loss", patience=4), best])
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert seen.index(min(seen)) == saved["epoch"] == 2
    assert len(seen) == 3 + 4
