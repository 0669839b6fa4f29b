"""Runs on a real Slurm: sweeps, several processes, and jobs that are preempted or reach their time limit."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, run_script
from trainer.folders import status
from trainer.search.study import JOURNAL, open_study

pytestmark = pytest.mark.slow

Variables = dict[str, str]
RUN = ("data=iris", "model.dropout=0.2", "logger=none", "export=none", "baselines=false", "allowed_targets=[tests]")
SLURM = ("cluster=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null")
PACED = (*RUN, "trainer.max_epochs=12", "callbacks.early_stopping=null", "+callbacks.paced._target_=tests.parts.Paced")


def until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def ask(*command: str, env: Variables) -> str:
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def started(*settings: str, env: Variables) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), *settings]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the same run without a cluster."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    done = run_script("train.py", *PACED, "+callbacks.paced.seconds=0", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def assert_same(folder: Path, other: Path) -> None:
    """Compares weights, optimizer state and metrics bit for bit."""
    for name in ("best.ckpt", "last.ckpt"):
        one, two = (torch.load(each / "checkpoints" / name, weights_only=True) for each in (folder, other))
        for part in (lambda saved: saved["state_dict"], lambda saved: saved["optimizer_states"][0]["state"]):
            torch.testing.assert_close(part(one), part(two), rtol=0, atol=0)
    one, two = (json.loads((each / "metrics.json").read_text()) for each in (folder, other))
    for name in ("val/loss", "test/accuracy", "fit/epochs", "fit/best_epoch"):
        assert one[name] == two[name]


def test_the_other_jobs_finish_if_one_fails_or_is_killed(tmp_path: Path, slurm: Variables) -> None:
    models = "model._target_=models.architectures.linear.Linear,tests.parts.Broken,tests.parts.Killed"
    settings = (*SLURM, "model=linear", models, *RUN[2:], "data=iris", "trainer.max_epochs=2")
    done = run_script("train.py", *settings, f"hydra.sweep.dir={tmp_path}", env=slurm)
    folders = [tmp_path / f"{number}_iris_linear" for number in range(3)]
    assert re.search(r"#0, job \d+_0: done in \d+ s, val/loss 0\.\d+\n", done.stdout)
    assert re.search(r"#1, job \d+_1: failed: RuntimeError: asked to fail\n", done.stdout)
    assert re.search(r"#2, job \d+_2, left no result \(FAILED\): \S+_0_log\.err\n", done.stdout)
    assert "Traceback (most recent call last)" in (folders[1] / "train.log").read_text()
    assert [run.state for folder in folders if (run := status.read(folder))] == ["done", "failed", "interrupted"]


def test_two_tasks_train_one_network(tmp_path: Path, slurm: Variables) -> None:
    settings = (*SLURM, "trainer=ddp", "trainer.accelerator=cpu", *RUN, "trainer.max_epochs=2")
    done = run_script("train.py", *settings, f"hydra.sweep.dir={tmp_path}", env=slurm)
    folder = tmp_path / "0_iris_mlp"
    assert re.search(r"#0, job \d+: done in \d+ s, val/loss 0\.\d+\n", done.stdout), done.stdout + done.stderr
    assert (folder / "train_rank_1.log").exists()
    assert json.loads((folder / "metrics.json").read_text())["fit/epochs"] == 2


def test_a_preempted_job_resumes_to_the_same_weights(tmp_path: Path, slurm: Variables, uninterrupted: Path) -> None:
    with started(*SLURM, *PACED, "+callbacks.paced.seconds=2", f"hydra.sweep.dir={tmp_path}", env=slurm) as sweep:
        folder = tmp_path / "0_iris_mlp"
        until((folder / "checkpoints" / "last.ckpt").exists)
        ask("sbatch", "--partition=first", "--ntasks=4", "--output=/dev/null", "--wrap=true", env=slurm)
        output, _ = sweep.communicate(timeout=300)
    assert re.search(r"#0, job \d+: done in \d+ s, val/loss 0\.\d+\n", output)
    log = (folder / "train.log").read_text()
    assert "Interrupted by SIGUSR2.\n" in log
    assert re.search(rf"resume: .*{folder}\n", log)
    assert_same(folder, uninterrupted)


def test_a_batch_job_at_its_time_limit_is_requeued(tmp_path: Path, slurm: Variables, uninterrupted: Path) -> None:
    paced = (*PACED, "+callbacks.paced.seconds=4")
    given = ["--cpus-per-task=1", f"--output={tmp_path}/log", str(ROOT / "scripts" / "slurm" / "train.sbatch")]
    job = ask("sbatch", "--parsable", *given, *paced, env=slurm)
    folder = ROOT / "outputs" / f"slurm-{job}"

    def last(minutes: int) -> None:
        ask("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}", env=slurm)

    try:
        until((folder / "checkpoints" / "last.ckpt").exists)
        ran = ask("squeue", "--noheader", "--format=%M", f"--jobs={job}", env=slurm)  # minutes:seconds
        last(int(ran.partition(":")[0]) + 1)
        until(lambda: "queued again" in (tmp_path / "log").read_text())
        last(30)
        until(lambda: (run := status.read(folder)) is not None and run.state == "done")
        log = (tmp_path / "log").read_text()
        assert "interrupted (138): queued again\n" in log
        assert re.search(rf"resume: .*{folder.relative_to(ROOT)}\n", log)
        assert_same(folder, uninterrupted)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_ctrl_c_cancels_the_jobs_which_write_their_checkpoints(tmp_path: Path, slurm: Variables) -> None:
    with started(*SLURM, *PACED, "+callbacks.paced.seconds=9", f"hydra.sweep.dir={tmp_path}", env=slurm) as sweep:
        folder = tmp_path / "0_iris_mlp"
        until((folder / "checkpoints" / "last.ckpt").exists)
        sweep.send_signal(signal.SIGINT)
        output, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 130
    assert re.search(r"canceling \d+: running jobs write a checkpoint\n", output)
    assert f"resume with  python train.py sweep.resume={tmp_path}\n" in output
    run = status.read(folder)
    assert run is not None
    assert (run.state, run.error) == ("interrupted", "Interrupted by SIGTERM")
    assert ask("squeue", "--noheader", env=slurm) == ""


def test_no_job_is_left_if_a_submission_is_refused(tmp_path: Path, slurm: Variables) -> None:
    settings = (*SLURM, "trainer.accelerator=cpu,gpu", *RUN)  # it has no GPU
    done = run_script("train.py", *settings, f"hydra.sweep.dir={tmp_path}", env=slurm)
    assert done.returncode == 2
    assert "sbatch: error: Invalid generic resource (gres) specification\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"canceling \d+: running jobs write a checkpoint\n", done.stdout)
    assert ask("squeue", "--noheader", env=slurm) == ""


def test_a_search_cancels_its_jobs_and_resumes_all_trials(tmp_path: Path, slurm: Variables) -> None:
    asked = ("search=optuna", "model.dropout=0,0.1,0.2", "search.sampler=grid", "search.n_jobs=2")
    settings = (
        *SLURM,
        *asked,
        *RUN[2:],
        "data=iris",
        "trainer.max_epochs=4",
        *PACED[-1:],
        "+callbacks.paced.seconds=3",
    )
    folder = tmp_path / "study"

    def states() -> list[str]:
        return [trial.state.name for trial in open_study(str(folder / JOURNAL), "study").trials]

    refused = run_script(
        "train.py", *settings, f"hydra.sweep.dir={folder}", "hydra.launcher.partition=nowhere", env=slurm
    )
    assert refused.returncode == 2
    assert "sbatch: error: Batch job submission failed: Invalid partition name specified\n" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert states() == ["RUNNING", "RUNNING", "WAITING"]
    with started(*settings, f"hydra.sweep.dir={folder}", env=slurm) as search:
        until((folder / "trial_0" / "checkpoints" / "last.ckpt").exists)
        search.send_signal(signal.SIGTERM)
        output, _ = search.communicate(timeout=300)
    assert search.returncode == 128 + signal.SIGTERM
    assert re.search(r"canceling \d+ \d+: running jobs write a checkpoint\n", output)
    assert ask("squeue", "--noheader", env=slurm) == ""
    assert states() == ["RUNNING", "RUNNING", "WAITING"]
    done = run_script("train.py", *settings, f"hydra.sweep.dir={folder}", env=slurm)
    assert done.returncode == 0, done.stderr
    assert states() == ["COMPLETE"] * 3
    assert (
        f"resume={folder / 'trial_0' / 'checkpoints' / 'last.ckpt'}"
        in (folder / "trial_0" / ".hydra" / "overrides.yaml").read_text()
    )
