"""Sweeps: one table of all jobs, even if some fail, and resuming."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from common.errors import InputError
from tests.conftest import ROOT, run_script
from trainer.command.prepare import prepare
from trainer.config.errors import ConfigError
from trainer.config.settings import quoted
from trainer.folders.status import Status, lock_folder, write
from trainer.sweep.sweep import done_before

QUICK = ("data=iris", "logger=none", "baselines=false", "trainer=cpu")


def status(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return facts


def weights(folder: Path) -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return saved


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A sweep of four models: linear and mlp train, cnn needs images, crash raises an error."""
    place = tmp_path_factory.mktemp("failing")
    (place / "conf" / "model").mkdir(parents=True)
    (place / "conf" / "model" / "crash.yaml").write_text("_target_: tests.parts.Broken\ninputs: null\n")
    done = run_script(
        "train.py",
        "-m",
        f"--config-dir={place}/conf",
        *QUICK,
        "model=cnn,crash,linear,mlp",
        "trainer.max_epochs=1",
        "export=none",
        "allowed_targets=[tests]",
        f"hydra.sweep.dir={place}/sweep",
    )
    return place / "sweep", done


def test_a_failed_job_does_not_end_the_sweep_and_the_table_has_all_jobs(
    failing: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = failing
    assert done.returncode == 1  # it would be 2 if both were InputErrors
    lines = done.stdout[done.stdout.index("\nSweep: ") :].splitlines()
    values = {name: status(folder / name)["value"] for name in ("2_iris_linear", "3_iris_mlp")}
    assert values["2_iris_linear"] < values["3_iris_mlp"]
    assert lines[1] == "Sweep: 2 done, 2 failed"
    assert lines[2].split() == ["val/", "test/", "test/", "test/"]
    assert lines[3].split() == ["job", "model", "loss", "accuracy", "auroc", "log_loss", "seconds", "state"]
    rows = [line.split() for line in lines[4:8]]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("2", "linear", "done"),
        ("3", "mlp", "done"),
        ("0", "cnn", "failed"),
        ("1", "crash", "failed"),
    ]
    assert rows[0][2] == f"{values['2_iris_linear']:,.5g}"
    why = "model: cnn supports only images, but there are numbers: use model=mlp, linear, tabm, realmlp, resnet,"
    assert lines[8:] == [
        f"job 0 failed: {why} ft_transformer or tree. ({folder}/0_iris_cnn)",
        f"job 1 failed: RuntimeError: asked to fail ({folder}/1_iris_crash)",
        "",
        f"all metrics  {folder}/sweep.csv, sweep.parquet",
        f"best         {folder}/2_iris_linear",
        f"resume with  python train.py sweep.resume={folder}",
    ]


def test_the_traceback_of_a_job_is_in_its_log_and_an_input_error_has_none(
    failing: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = failing
    assert "Traceback" not in (folder / "0_iris_cnn" / "train.log").read_text()
    assert "Traceback" not in (folder / "2_iris_linear" / "train.log").read_text()
    log = (folder / "1_iris_crash" / "train.log").read_text()
    assert log.count("Traceback (most recent call last)") == 1
    assert log.endswith("RuntimeError: asked to fail\n")
    assert done.stdout.count("model: cnn supports only images") == 2  # in the log, and below the table


def test_the_files_of_a_sweep_have_all_metrics_and_settings(
    failing: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = failing
    frame = pl.read_parquet(folder / "sweep.parquet")
    assert frame["job"].to_list() == [2, 3, 0, 1]
    assert frame["state"].to_list() == ["done", "done", "failed", "failed"]
    assert frame["model"].to_list() == ["linear", "mlp", "cnn", "crash"]
    assert frame["error"][3] == "RuntimeError: asked to fail"
    assert frame["folder"][0] == f"{folder}/2_iris_linear"
    assert "model=linear trainer.max_epochs=1" in frame["overrides"][0]
    measured = json.loads((folder / "2_iris_linear" / "metrics.json").read_text())
    assert {name: frame[name][0] for name in measured} == measured
    assert frame[0, "value"] == measured["val/loss"]
    assert frame.filter(pl.col("state") == "failed")["test/accuracy"].null_count() == 2
    assert pl.read_csv(folder / "sweep.csv").columns == frame.columns


def test_a_search_by_name_is_a_sweep_and_the_largest_value_may_be_best(tmp_path: Path) -> None:
    monitor = ("monitor=val/accuracy", "mode=max", "trainer.max_epochs=1", "export=none")
    done = run_script("train.py", "search=seeds", *QUICK, *monitor, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    frame = pl.read_csv(tmp_path / "sweep.csv")
    assert sorted(frame["seed"]) == [0, 1, 2]
    assert frame["value"].to_list() == sorted(frame["value"], reverse=True)
    assert "resume with" not in done.stdout


@pytest.mark.slow
def test_a_resumed_sweep_reports_changed_settings_and_does_not_mix_jobs(tmp_path: Path) -> None:
    mine = tmp_path / "conf" / "search" / "mine.yaml"
    mine.parent.mkdir(parents=True)

    def start(*arguments: str, seeds: str, rate: float) -> subprocess.CompletedProcess[str]:
        sweep = f"hydra: {{mode: MULTIRUN, sweeper: {{params: {{seed: '{seeds}'}}}}}}"
        mine.write_text(f"# @package _global_\noptimizer: {{lr: {rate}}}\n{sweep}\n")
        return run_script("train.py", f"--config-dir={tmp_path}/conf", *arguments)

    folder = tmp_path / "sweep"
    quick = (*QUICK, "trainer.max_epochs=1", "export=none", "model=linear", f"hydra.sweep.dir={folder}")
    assert start("search=mine", *quick, seeds="0,1", rate=0.1).returncode == 0
    again = start(f"sweep.resume={folder}", seeds="0,1", rate=0.5)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("resume: optimizer.lr 0.1 -> 0.5, but the job is already done\n") == 2
    assert again.stdout.count("already done: ") == 2
    other = start(f"sweep.resume={folder}", seeds="1,2", rate=0.1)
    assert other.returncode == 2
    assert (
        f"{folder}/1_iris_linear contains another job (seed 1 -> 2): the config file with the swept settings has"
        " changed. Restore it, or start another sweep.\n" in other.stdout
    )
    first = folder / "0_iris_linear"
    (first / "status.json").write_text(json.dumps(status(first) | {"state": "interrupted", "exit_code": 130}))
    half_done = start(f"sweep.resume={folder}", seeds="0,1", rate=0.5)
    assert half_done.returncode == 1  # 2 of the rejected job, and 130 of the interrupted one
    assert (
        f"{first}: optimizer.lr 0.1 -> 0.5, but the checkpoint contains it, so a change would have no effect. Restore"
        " it, or delete the folder.\n" in half_done.stdout
    )


LONG = (*QUICK, "model=mlp", "seed=0,1,2", "trainer.max_epochs=15", "callbacks.early_stopping=null")


@pytest.mark.slow
def test_a_killed_sweep_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_script("train.py", "-m", *LONG, f"hydra.sweep.dir={whole}").returncode == 0
    process = subprocess.Popen(
        [sys.executable, "train.py", "-m", *LONG, f"hydra.sweep.dir={killed}"], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    half_done = killed / "1_iris_mlp" / "checkpoints" / "last.ckpt"
    while not half_done.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [status(path)["state"] for path in sorted(killed.glob("*_iris_mlp"))] == ["done", "running"]
    model = (killed / "0_iris_mlp" / "model.pt").stat().st_mtime_ns

    again = run_script("train.py", f"sweep.resume={killed}")
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith(f"sweep: resuming {killed}: 1 done, 1 interrupted\n")
    assert f"already done: {killed}/0_iris_mlp\n" in again.stdout
    assert f"resume: resuming {killed}/1_iris_mlp\n" in again.stdout
    assert "\nSweep: 3 done\n" in again.stdout
    assert (killed / "0_iris_mlp" / "model.pt").stat().st_mtime_ns == model
    for name in ("0_iris_mlp", "1_iris_mlp", "2_iris_mlp"):
        ours, theirs = weights(killed / name), weights(whole / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
        assert status(killed / name)["value"] == status(whole / name)["value"]


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_with_its_table(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "-m", *LONG, "trainer.max_epochs=100000", f"hydra.sweep.dir={tmp_path}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "0_iris_mlp" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130
    lines = output[output.index("\nSweep: ") :].splitlines()
    assert lines[1] == "Sweep: 1 interrupted, 2 not started"
    assert lines[4].split()[-1] == "interrupted"
    assert f"resume with  python train.py sweep.resume={tmp_path}" in lines
    assert "Interrupted by SIGINT.\n" in output  # without how to resume, which the sweep says
    assert pl.read_csv(tmp_path / "sweep.csv")["state"].to_list() == ["interrupted"]


def test_a_folder_that_another_sweep_uses_is_rejected(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        refused = run_script("train.py", "-m", *QUICK, "seed=0,1", f"hydra.sweep.dir={tmp_path}")
    assert refused.returncode == 2
    why = f"{tmp_path}: another run is using this folder. Wait until it ends, or choose another folder.\n"
    assert refused.stdout == why
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a job with `seed=1`, which a sweep has reached."""
    hydra = {"mode": RunMode.MULTIRUN, "overrides": {"task": ["seed=1"]}}
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": hydra}))
    OmegaConf.save({"seed": 1, "optimizer": {"lr": 0.1}}, tmp_path / "config.yaml")
    write(tmp_path, Status("val/loss", "min", state="done", value=0.5))
    return tmp_path


def reached(job: Path, seed: int = 1, rate: float = 0.1) -> Status | None:
    return done_before(job, OmegaConf.create({"seed": seed, "optimizer": {"lr": rate}}))


def test_a_job_that_is_done_is_skipped(job: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = reached(job, rate=0.5)
    assert found is not None
    assert found.value == 0.5
    assert caplog.messages == ["resume: optimizer.lr 0.1 -> 0.5, but the job is already done"]
    with pytest.raises(InputError) as error:
        reached(job, seed=2)
    assert str(error.value) == (
        f"{job} contains another job (seed 1 -> 2): the config file with the swept settings has changed. Restore it, or"
        " start another sweep."
    )


def test_a_job_that_is_not_done_resumes_with_the_same_settings(job: Path) -> None:
    write(job, Status("val/loss", "min", state="interrupted"))
    (job / "checkpoints").mkdir()
    (job / "checkpoints" / "last.ckpt").touch()
    assert reached(job) is None
    with pytest.raises(InputError) as error:
        reached(job, rate=0.5)
    assert str(error.value) == (
        f"{job}: optimizer.lr 0.1 -> 0.5, but the checkpoint contains it, so a change would have no effect. Restore it,"
        " or delete the folder."
    )


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """Folder of a sweep without jobs."""
    folder = tmp_path / "begun"
    folder.mkdir()
    lines = ("data=iris", "seed=0,1", "++optimizer.eps=1e-7", "hydra.sweep.dir=elsewhere", "hydra.mode=MULTIRUN")
    (folder / "sweep.yaml").write_text("".join(f"- {line}\n" for line in lines))
    return folder


def test_a_sweep_is_resumed_by_its_own_command(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["data=iris", "seed=0,1", "++optimizer.eps=1e-7"]
    ending = ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={begun}"]
    assert prepare([f"sweep.resume={begun}"]) == [*own, *ending]
    assert capsys.readouterr().out == f"sweep: resuming {begun}: no job was started\n"
    assert prepare([f"sweep.resume='{begun}'", "seed=0,1", "optimizer.eps=1e-7"]) == [*own, *ending]
    launcher = ["hydra/launcher=basic"]
    assert prepare([f"sweep.resume={begun}", *launcher]) == [*own, *launcher, *ending]


def test_a_resumed_sweep_may_use_another_launcher(begun: Path, tmp_path: Path) -> None:
    folder = begun.rename(tmp_path / "it's")
    (folder / "sweep.yaml").open("a").write("- cluster=slurm\n- hydra.launcher.timeout_min=30\n")
    elsewhere = ["cluster=local", "hydra.launcher.n_jobs=1"]
    again = prepare([f"sweep.resume={quoted(folder)}", f"hydra.sweep.dir={quoted(folder)}", *elsewhere])
    assert again[4:] == [*elsewhere, "hydra.mode=MULTIRUN", f"hydra.sweep.dir={quoted(folder)}"]


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (["sweep.resume={place}/nope"], ["sweep.resume: there is no folder {place}/nope: give the folder of a sweep."]),
        (["sweep.resume={place}"], ["sweep.resume: {place} is not the folder of a sweep: it has no sweep.yaml."]),
        (
            ["sweep.resume={place}/run"],
            ["sweep.resume: {place}/run is the folder of a run: resume it with resume={place}/run."],
        ),
        (
            ["sweep.resume={begun}", "seed=0", "trainer.max_epochs=3", "hydra.sweep.dir={place}"],
            [
                "hydra.sweep.dir: {place} is not the folder of sweep.resume={begun}: leave it out.",
                "seed: the sweep in {begun} was started with seed=0,1: leave it out, or start another sweep.",
                "trainer.max_epochs: the sweep in {begun} was started without it: leave it out, or start another"
                " sweep.",
            ],
        ),
        (
            ["-m", "seed=0,1", "hydra.sweep.dir={begun}"],
            [
                "hydra.sweep.dir: {begun} already contains a sweep: resume it with sweep.resume={begun}, or choose"
                " another folder."
            ],
        ),
        (["sweep.resum={begun}"], ["sweep.resum: unknown key. Did you mean resume?"]),
        (["resume={begun}"], ["resume: {begun} is the folder of a sweep: resume it with sweep.resume={begun}."]),
    ],
)
def test_settings_that_a_resumed_sweep_cannot_use_are_rejected(
    begun: Path, tmp_path: Path, arguments: list[str], problems: list[str]
) -> None:
    for run in (tmp_path / "run", begun / "0_iris_mlp"):
        run.mkdir()
        (run / "status.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        prepare([argument.format(place=tmp_path, begun=begun) for argument in arguments])
    lines = [f"  command line: {problem.format(place=tmp_path, begun=begun)}" for problem in problems]
    head = "A setting is wrong:" if len(lines) == 1 else f"{len(lines)} settings are wrong:"
    assert str(caught.value).splitlines() == [head, *lines]
