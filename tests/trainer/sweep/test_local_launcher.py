"""`cluster=local`: the jobs of a sweep, several at once, each in its own process."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import ROOT, run_script
from trainer.command.prepare import prepare
from trainer.config.errors import ConfigError
from trainer.folders import status
from trainer.sweep.local_launcher import shares
from trainer.sweep.resources import Resources, resources, wait_for_any

SHORT = ("data=iris", "trainer.max_epochs=1", "logger=none", "export=none", "baselines=false")


def test_jobs_share_the_machine_and_a_failed_one_does_not_end_the_sweep(tmp_path: Path) -> None:
    """The jobs only write their status: the job with seed=1 fails."""
    jobs = ("cluster=local", "hydra.launcher.n_jobs=2", "data=iris", "seed=0,1,2", f"hydra.sweep.dir={tmp_path}")
    done = run_script("tests/trainer/sweep/fake_jobs.py", *jobs)
    assert done.returncode == 1, done.stderr
    assert "3 jobs, 2 at once (OMP_NUM_THREADS=" in done.stdout
    assert "#2: done in 1 s, val/loss 0.5\n" in done.stdout
    assert f"#1: failed: RuntimeError: asked to fail: {tmp_path}/1_iris_mlp/output.log\n" in done.stdout
    assert "\nSweep: 2 done, 1 failed\n" in done.stdout
    command = (tmp_path / "1_iris_mlp" / "output.log").read_text()
    assert f" data=iris seed=1 hydra.mode=RUN hydra.run.dir={tmp_path}/1_iris_mlp hydra.job.num=1\n" in command
    (tmp_path / "1_iris_mlp" / "checkpoints").mkdir()
    (tmp_path / "1_iris_mlp" / "checkpoints" / "last.ckpt").touch()
    again = run_script("tests/trainer/sweep/fake_jobs.py", f"sweep.resume={tmp_path}")
    assert [line[:3] for line in again.stdout.splitlines() if line.endswith(" data=iris seed=1")] == ["#1:"]
    assert "hydra.job.num=1 resume=auto\n" in (tmp_path / "1_iris_mlp" / "output.log").read_text()


@pytest.mark.slow
def test_a_failed_job_is_reported_with_its_log(tmp_path: Path) -> None:
    models = "model._target_=models.architectures.linear.Linear,tests.parts.Broken"
    given = ("cluster=local", "hydra.launcher.n_jobs=2", "model=linear", models, "allowed_targets=[tests]", *SHORT)
    done = run_script("train.py", *given, "+hydra.job.env_set.MARK=seen", f"hydra.sweep.dir={tmp_path}")
    good, bad = tmp_path / "0_iris_linear", tmp_path / "1_iris_linear"
    assert done.returncode == 1
    assert "2 jobs, 2 at once" in done.stdout
    assert re.search(r"#0: done in \d+ s, val/loss 0\.\d+\n", done.stdout)
    assert f"#1: failed: RuntimeError: asked to fail: {bad}/output.log\n" in done.stdout
    assert (good / "metrics.json").exists()
    assert "MARK: seen" in (good / ".hydra" / "hydra.yaml").read_text()
    for name in ("output.log", "train.log"):
        assert "Traceback (most recent call last)" in (bad / name).read_text()
    assert [run.state for folder in (good, bad) if (run := status.read(folder))] == ["done", "failed"]

    config = good / "config.yaml"
    config.write_text(config.read_text().replace("models.architectures.linear.Linear", "models.architectures.mlp.MLP"))
    other = run_script("train.py", f"sweep.resume={tmp_path}")
    assert other.returncode == 2
    assert (
        f'{good} contains another job (model._target_ "models.architectures.mlp.MLP" -> '
        '"models.architectures.linear.Linear"): the config file with the swept settings has changed. Restore it, or'
        " start another sweep.\n" in other.stdout
    )


@pytest.mark.slow
def test_sigterm_ends_the_jobs_with_their_checkpoints_and_starts_no_other(tmp_path: Path) -> None:
    settings = ("cluster=local", "hydra.launcher.n_jobs=1", "seed=0,1", *SHORT, "trainer.max_epochs=100000")
    settings = (*settings, "callbacks.early_stopping=null", f"hydra.sweep.dir={tmp_path}")
    sweep = subprocess.Popen([sys.executable, ROOT / "train.py", *settings], stdout=subprocess.PIPE, text=True)
    last = tmp_path / "0_iris_mlp" / "checkpoints" / "last.ckpt"
    until = time.monotonic() + 120
    while not last.exists() and time.monotonic() < until:
        time.sleep(0.1)
    sweep.send_signal(signal.SIGTERM)
    output, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 128 + signal.SIGTERM, output
    assert "stopping #0: each writes a checkpoint" in output
    assert "#0: interrupted: " in output
    assert "\nSweep: 1 interrupted, 1 not started\n" in output
    assert output.endswith(f"resume with  python train.py sweep.resume={tmp_path}\n")
    assert not (tmp_path / "1_iris_mlp").exists()
    run = status.read(last.parents[1])
    assert run is not None
    assert run.state == "interrupted"

    command = [sys.executable, ROOT / "train.py", f"sweep.resume={tmp_path}"]
    with status.track_status(last.parents[1], "val/loss", "min"):  # like a job of an earlier sweep
        again = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert again.stdout is not None
        waiting = f"#0: waiting for process {os.getpid()} of an earlier sweep\n"
        assert waiting in iter(again.stdout.readline, "")
    assert any(line.startswith("#1: ") for line in iter(again.stdout.readline, ""))
    again.send_signal(signal.SIGTERM)
    assert "\nSweep: 1 done, " in again.communicate(timeout=120)[0]


def test_ctrl_c_interrupts_a_wait_although_polars_is_imported() -> None:
    assert "polars" in sys.modules
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        wait_for_any([Future[None]()])


def test_jobs_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")

    def shared(devices: int, accelerator: str, n_jobs: int | None) -> list[tuple[str | None, str]]:
        found = shares(devices, accelerator, n_jobs)
        return [(share.get("CUDA_VISIBLE_DEVICES"), share["OMP_NUM_THREADS"]) for share in found]

    assert shared(1, "cpu", 3) == [(None, "2")] * 3
    assert shared(1, "cpu", None) == [(None, "1")] * 8
    assert shared(2, "gpu", None) == [("2,3", "4"), ("5,7", "4")]
    assert shared(1, "auto", 6) == [(gpu, "1") for gpu in ("2", "3", "5", "7", "2", "3")]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        (
            "trainer.devices=auto",
            "trainer.devices: auto does not say what a job requests: give a number.",
        ),
        (
            "trainer.num_nodes=2",
            "trainer.num_nodes: the processes of 2 machines are started by torchrun or srun, on each of them"
            " (docs/processes.md).",
        ),
    ],
)
def test_a_job_with_unknown_resources_is_rejected(setting: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(["cluster=local", setting])
    assert str(caught.value) == f"A setting is wrong:\n  command line: {problem}"


def test_resources_follow_the_trainer() -> None:
    def needed(**trainer: object) -> Resources:
        return resources(OmegaConf.create({"accelerator": "auto", "devices": 1, "num_nodes": 1, **trainer}))

    assert needed() == Resources(nodes=1, devices=1, gpus=0)
    assert needed(accelerator="gpu", devices=4, num_nodes=2) == Resources(nodes=2, devices=4, gpus=4)
    assert needed(accelerator="cuda", devices=[0, 2]) == Resources(nodes=1, devices=2, gpus=2)


def test_slurm_is_rejected_if_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError) as caught:
        prepare(["cluster=slurm"])
    assert str(caught.value) == (
        "A setting is wrong:\n  conf/cluster/slurm.yaml: cluster: slurm needs Slurm's sbatch, which is not installed"
        " here: run the command on a machine of the cluster, or use cluster=local."
    )
