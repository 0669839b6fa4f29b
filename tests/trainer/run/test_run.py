"""A run from the command to the artifact: its files, reproducibility, resuming, and the choices of the config."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.errors import InputError
from datamodules.loading import batch_loader
from datamodules.readers import read
from inference.artifact import Artifact
from tests.conftest import run_script
from trainer import compose, train
from trainer.config.errors import ConfigError

RunHere = Callable[..., Path]
QUICK = ("trainer.max_epochs=2", "logger=none", "baselines=false")


def weights(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]
    return saved


def metrics(folder: Path) -> dict[str, float]:
    loaded: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    return loaded


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_the_default_run_writes_the_files_of_the_readme(default_run: tuple[Path, str]) -> None:
    folder, _ = default_run
    for name in ("model.pt", "metrics.json", "config.yaml", "environment.json", "train.log", ".hydra/overrides.yaml"):
        assert (folder / name).is_file(), name
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    last, best = (torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("last", "best"))
    assert last["epoch"] + 1 == metrics(folder)["fit/epochs"]
    assert best["epoch"] + 1 == metrics(folder)["fit/best_epoch"] < metrics(folder)["fit/epochs"]
    names = metrics(folder).keys()
    for metric in ("accuracy", "balanced_accuracy", "f1", "auroc", "average_precision", "log_loss", "loss"):
        assert {f"val/{metric}", f"test/{metric}"} <= names
    assert {"fit/seconds", "fit/samples_per_second", "fit/epochs", "train/loss"} <= names
    assert metrics(folder)["test/accuracy"] >= 0.95
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]


def test_the_last_lines_give_the_result_and_the_folder(default_run: tuple[Path, str]) -> None:
    folder, printed = default_run
    closing = printed[printed.index("Result") :]
    assert f"run folder  {folder}" in closing
    assert f"python scripts/predict.py --artifact {folder}/model.pt" in closing
    assert f"{metrics(folder)['test/accuracy']:,.5g}" in closing
    assert "Traceback" not in printed
    assert "Warning" not in printed


def test_tensorboard_has_the_curves_and_the_final_metrics_with_the_settings(
    default_run: tuple[Path, str],
) -> None:
    folder, _ = default_run
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    curve = events.Scalars("val/loss")
    assert len(curve) > 2
    assert min(point.value for point in curve) == pytest.approx(metrics(folder)["val/loss"], rel=1e-5)
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_weights_are_reproducible_and_depend_on_the_seed(run_here: RunHere, tmp_path: Path) -> None:
    first, again, other = (
        run_here(*QUICK, "export=none", f"seed={seed}", folder=tmp_path / name)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert equal(weights(first), weights(again))
    assert metrics(first)["test/log_loss"] == metrics(again)["test/log_loss"]
    assert not equal(weights(first), weights(other))


def test_the_best_weights_are_exported(run_here: RunHere) -> None:
    folder = run_here("trainer.max_epochs=6", "optimizer.lr=0.05", "logger=none", "baselines=false")
    artifact = torch.jit.load(str(folder / "model.pt"))
    exported = {f"network.{name}": value for name, value in artifact.network.state_dict().items()}
    best = weights(folder, "best.ckpt")
    assert equal({name: exported[name] for name in best}, best)  # only the artifact has buffers such as bin edges


def test_one_epoch_and_a_resumed_one_equal_two(
    run_here: RunHere, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("scheduler=none", "logger=none", "export=none", "baselines=false", "data=iris")
    whole = run_here(*settings, "trainer.max_epochs=2", folder=tmp_path / "whole")
    parts = run_here(*settings, "trainer.max_epochs=1", folder=tmp_path / "parts")
    assert train(compose("trainer.max_epochs=2", f"resume={parts}")).folder == parts
    assert equal(weights(whole), weights(parts))
    assert "trainer.max_epochs 1 -> 2" in capsys.readouterr().out


IMAGES = (
    *("data=digits", "model=cnn", "model.channels=8", "data.batch_size=64"),
    *("trainer.threads=1", "logger=none", "baselines=false"),
)
AUGMENT = ("augment=images", "augment.crop=1", "augment.rand_augment=true", "augment.mixup=0.2", "augment.cutmix=1")


def test_images_are_augmented_in_training_and_the_artifact_reads_files(run_here: RunHere, tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    folder = run_here(
        *IMAGES, "augment=images", "augment.flip=false", "augment.crop=1", "optimizer.lr=1e-2", "trainer.max_epochs=6"
    )
    assert metrics(folder)["test/accuracy"] > 0.9
    digits = load_digits()
    for row in range(100):
        Image.fromarray((digits.images[row] * 255 / 16).round().astype("uint8")).save(tmp_path / f"{row}.png")
    artifact = Artifact.load(folder / "model.pt")
    scored = artifact.score(pl.DataFrame({"image": [f"{row}.png" for row in range(100)]}), tmp_path)
    assert (scored.answers["label"] == pl.Series(digits.target[:100].astype(str))).sum() > 80


def test_augmentation_is_reproducible_and_resumes(run_here: RunHere, tmp_path: Path) -> None:
    settings = (*IMAGES, *AUGMENT, "scheduler=none", "export=none", "test=false")
    plain = run_here(*IMAGES, "scheduler=none", "export=none", "trainer.max_epochs=2", folder=tmp_path / "plain")
    whole, again = (run_here(*settings, "trainer.max_epochs=2", folder=tmp_path / name) for name in ("a", "b"))
    assert equal(weights(whole), weights(again))
    assert not equal(weights(whole), weights(plain))
    parts = run_here(*settings, "trainer.max_epochs=1", folder=tmp_path / "parts")
    train(compose(f"resume={parts}", "trainer.max_epochs=2"))
    assert equal(weights(whole), weights(parts))


def test_augmentation_without_images_is_rejected(run_here: RunHere) -> None:
    message = "^augment needs an image column, and there is none: use augment=none.$"
    with pytest.raises(ConfigError, match=message):
        run_here("augment=images", *QUICK)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=linear", "data=wine"),
        ("data=diabetes", "loss=huber", "optimizer=sgd", "optimizer.momentum=0.9", "scheduler=onecycle"),
        ("data=iris", "loss.label_smoothing=0.1", "loss.class_weights=balanced", "scheduler=plateau"),
        ("loss=focal", "optimizer=rmsprop", "scheduler=step", "l1=1e-4"),
        ("optimizer._target_=torch.optim.NAdam", "scheduler=cosine", "scheduler.warmup=0.1"),
        ("trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1", "trainer.accumulate_grad_batches=2"),
        ("trainer.deterministic=true", "callbacks=ema"),
        ("callbacks=swa", "trainer.threads=1"),
        ("data.numbers=robust", "model.norm=batch", "data.batch_size=100000"),
        ("monitor=val/auroc", "mode=max", "test=false"),
    ],
)
def test_choices_train_and_export(run_here: RunHere, overrides: tuple[str, ...]) -> None:
    folder = run_here("trainer.max_epochs=3", "logger=none", "baselines=false", *overrides)
    assert (folder / "model.pt").is_file()
    assert metrics(folder)["train/loss"] > 0
    assert ("test/loss" in metrics(folder)) == ("test=false" not in overrides)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_trains_and_exports_like_the_eager_one(run_here: RunHere, tmp_path: Path) -> None:
    settings = ("model=linear", "data=iris", "trainer.max_epochs=2", "logger=none", "model.inputs.unknown_rate=0")
    eager = run_here(*settings, folder=tmp_path / "eager")
    compiled = run_here(*settings, "trainer.compile=true", folder=tmp_path / "compiled")
    assert metrics(compiled)["val/loss"] == pytest.approx(metrics(eager)["val/loss"], abs=1e-6)
    assert weights(compiled).keys() == weights(eager).keys()


def test_a_run_may_end_within_an_epoch(run_here: RunHere) -> None:
    folder = run_here("data=iris", "trainer.max_steps=1", "logger=none", "export=none", "baselines=false")
    assert metrics(folder)["fit/steps"] == 1
    assert metrics(folder)["val/loss"] > 0


def test_checkpoints_can_be_turned_off(run_here: RunHere) -> None:
    folder = run_here(
        "data=iris", "callbacks.checkpoint=null", "callbacks.last_checkpoint=null", "callbacks.progress=null", *QUICK
    )
    assert list(folder.rglob("*.ckpt")) == []
    assert "fit/best_epoch" not in metrics(folder)


@pytest.mark.parametrize("debug", ["fast", "overfit", "limit", "profiler"])
def test_debug_choices_run(run_here: RunHere, debug: str) -> None:
    folder = run_here(f"debug={debug}", "data=iris", "logger=none", "baselines=false")
    assert "train/loss" in metrics(folder)


def test_each_job_of_a_sweep_has_its_own_folder(tmp_path: Path) -> None:
    settings = ("data=iris", "model=linear,mlp", *QUICK, "export=none", "trainer.max_epochs=1")
    done = run_script("train.py", "-m", *settings, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    runs = sorted(path.parent for path in tmp_path.rglob("metrics.json"))
    assert len(runs) == 2
    assert len({(run / ".hydra" / "overrides.yaml").read_text() for run in runs}) == 2


def test_a_folder_is_never_shared_by_two_runs(default_run: tuple[Path, str]) -> None:
    folder, _ = default_run
    before = (folder / "metrics.json").read_bytes()
    with pytest.raises(ConfigError, match=f"command line: hydra.run.dir: {folder} "):
        compose(f"hydra.run.dir={folder}")
    assert (folder / "metrics.json").read_bytes() == before


def test_bad_data_ends_the_command_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,x\n2,y\n")
    done = run_script(
        "train.py",
        "data=table",
        f"data.path={tmp_path}/rows.csv",
        "data.target=c",
        f"hydra.run.dir={tmp_path}/run",
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout
    assert "c" in done.stderr + done.stdout


def test_a_finished_run_that_is_resumed_keeps_its_metrics_and_rejects_another_network(
    run_here: RunHere, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = run_here("data=iris", *QUICK)
    before, kept = metrics(run), weights(run)
    train(compose(f"resume={run}"))
    assert "nothing was left to train: the run had ended after 2 epochs" in caplog.text
    assert metrics(run) == before
    assert equal(weights(run), kept)
    with pytest.raises(ConfigError) as error:
        train(compose(f"resume={run}", "model.hidden=[7]", "trainer.max_epochs=3"))
    assert str(error.value) == (
        f"resume: {run}/checkpoints/last.ckpt holds a different network: keep the data and model settings of the run."
    )
    assert equal(weights(run), kept)


def test_the_folder_of_a_run_that_failed_at_its_start_can_be_used(run_here: RunHere) -> None:
    with pytest.raises(InputError):
        run_here("data=table", "data.path=nowhere.csv", "data.target=y")
    run_here("data=iris", *QUICK, "trainer.max_epochs=1", "export=none")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_gpu_is_reported_before_the_data_are_read(run_here: RunHere) -> None:
    with pytest.raises(InputError) as error:
        run_here("trainer=gpu", "data.path=nowhere")
    assert str(error.value) == (
        f"trainer.accelerator=gpu: torch {torch.__version__} finds no CUDA device here. Use trainer=cpu, or install a"
        " driver and a build of torch with CUDA"
    )


def test_word_embeddings_start_from_vectors_of_the_same_rows(
    run_here: RunHere, data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings = ("data=sms_spam", f"paths.data={data_dir}", *QUICK, "trainer.max_epochs=1")
    vectors = run_here(*settings, "model=word2vec", "model.size=8", folder=tmp_path / "words")
    assert (vectors / "vectors.txt").is_file()
    assert not (vectors / "model.pt").exists()
    used = run_here(*settings, "model=mlp", f"model.inputs.text.vectors={vectors}", folder=tmp_path / "used")
    assert metrics(used)["test/accuracy"] > 0.8
    assert re.search(r"message: vectors of \d+ of \d+ words are initialized from", caplog.text)
    assert "possibly on rows that are tested here" not in caplog.text
    run_here(
        *settings, "model=mlp", f"model.inputs.text.vectors={vectors}", "data.split.seed=5", folder=tmp_path / "other"
    )
    assert (
        f"model.inputs.text.vectors={vectors}: these vectors were trained with another data.split, possibly on rows"
        " that are tested here; train them with the same data.split"
    ) in caplog.text


def test_rows_on_disk_and_in_memory_give_the_same_weights(
    run_here: RunHere, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "CHUNK", 1000)
    monkeypatch.setattr(batch_loader, "WINDOW", 50_000)  # several windows an epoch
    settings = ("data=telco_churn", f"paths.data={data_dir}", *QUICK, "export=none")
    memory, disk = (
        weights(
            run_here(*settings, f"data.store={store}", f"paths.cache={tmp_path}/cache-{store}", folder=tmp_path / store)
        )
        for store in ("memory", "disk")
    )
    assert memory.keys() == disk.keys()
    assert all(torch.equal(memory[name], disk[name]) for name in memory)


def test_a_network_sees_rows_before_training_in_eval_mode_without_gradients(
    run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    monkeypatch.setattr(
        "models.architectures.mlp.MLP.start",
        lambda network, _: seen.append((network.training, torch.is_grad_enabled())),
    )
    run_here("+trainer.fast_dev_run=true", "logger=none", "baselines=false")
    assert seen == [(False, False)]
