"""Runs on a real Slurm: sweeps, several processes, and jobs that lose their place or run out of time."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import run_script
from trainer import status

Variables = dict[str, str]
RUN = ("data=iris", "model.dropout=0.2", "logger=none", "export=none", "baselines=false", "allowed_targets=[tests]")
SLURM = ("cluster=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null")
PACED = ("trainer.max_epochs=12", "+callbacks.paced._target_=tests.parts.Paced")


def until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 180
    while not happened():
        assert time.monotonic() < end, "waited for nothing"
        time.sleep(0.2)


def test_a_job_that_fails_or_is_killed_leaves_the_others_to_end(tmp_path: Path, slurm: Variables) -> None:
    models = "model._target_=models.linear.Linear,tests.parts.Broken,tests.parts.Killed"
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
