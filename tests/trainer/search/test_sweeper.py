"""search=...: studies on real tables, killed and gone on with, pruned, with trials that fail; and what is refused."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna import Study

from tests.conftest import ROOT, run_script
from trainer.command.prepare import prepare
from trainer.config.errors import ConfigError
from trainer.search.study import JOURNAL, open_study

QUICK = ("search=optuna", "data=iris", "trainer.max_epochs=2", "logger=none")
NONE = "no trial was completed: what is above, or train.log of each, says why"
RATE = "optimizer.lr=tag(log,interval(1e-4,1e-1))"
MINE = """# @package _global_
defaults: [optuna]
l1: 0.001
trainer: {accelerator: cpu, max_time: "00:01:00:00"}
"""


def search(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    return run_script("train.py", *QUICK, f"hydra.sweep.dir={folder}", *settings)


def shared(folder: Path, dropouts: str, trials: int) -> subprocess.CompletedProcess[str]:
    """The search of several tests, by a file of its user's."""
    command = [f"--config-dir={folder.parent}", "search=mine", *QUICK[1:], RATE, f"model.dropout={dropouts}"]
    where = ["cluster=local", f"hydra.sweep.dir={folder}"]
    return run_script("train.py", *command, *where, f"search.n_trials={trials}", "search.n_jobs=2")


def study_of(folder: Path) -> Study:
    return open_study(str(folder / JOURNAL), folder.name)


def states(folder: Path) -> list[str]:
    return [trial.state.name for trial in study_of(folder).trials]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A study of four trials, by two workers, in a folder whose name is a number; and what was printed."""
    folder = tmp_path_factory.mktemp("search") / "2026"
    (folder.parent / "search").mkdir()
    (folder.parent / "search" / "mine.yaml").write_text(MINE)
    done = shared(folder, "0,0.1", trials=4)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_two_workers_carry_out_all_trials(searched: tuple[Path, str]) -> None:
    folder, said = searched
    study = study_of(folder)
    assert states(folder) == ["COMPLETE"] * 4
    for trial in study.trials:
        status = json.loads((folder / f"trial_{trial.number}" / "status.json").read_text())
        assert (status["state"], status["value"]) == ("done", trial.value)
        assert 1e-4 <= trial.params["optimizer.lr"] <= 1e-1
        assert trial.params["model.dropout"] in ("0", "0.1")
        assert not (folder / f"trial_{trial.number}" / "model.pt").exists()
    best = study.best_trial
    assert f"best         trial {best.number}: val/loss {best.value:.4g}, with optimizer.lr=" in said
    assert f"  {best.params['optimizer.lr']:.5g}  " in said.partition("Sweep: ")[2]
    assert "trials       4 completed\n" in said
    assert said.rstrip().endswith(f"python train.py experiment=best study={folder}")
    assert {"history.png", "importance.png"} <= {path.name for path in folder.iterdir()}


def test_the_same_command_goes_on_to_the_total(searched: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = searched
    before = study_of(folder).trials
    study_of(folder).ask()  # as of a search that was killed before the trial had its settings
    done = shared(folder, "0,0.1", trials=6)
    assert f"study 2026 in {folder / JOURNAL}: 4 completed, 1 broken off of 6 trials" in done.stdout
    after = study_of(folder).trials
    assert after[:4] == before
    with (folder / "sweep.csv").open() as table:
        assert "search.n_trials" not in table.readline()
    assert [trial.state.name for trial in after[4:]] == ["FAIL", "COMPLETE"]
    other = shared(folder, "0,0.2", trials=7)
    assert other.returncode == 2
    assert other.stderr == (
        f"A setting is wrong:\n  command line: hydra.sweep.dir: {folder} holds a search that was begun by another"
        " command: it had model.dropout=0,0.1, not model.dropout=0,0.2. Give it as it was, or choose another folder.\n"
    )


def test_the_best_is_one_command_away(searched: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = searched
    run = tmp_path / "best"
    done = run_script(
        "train.py", "experiment=best", f"study={folder}", "baselines=false", f"hydra.run.dir={run}", "seed=3"
    )
    assert done.returncode == 0, done.stderr
    assert (run / "model.pt").exists()
    overrides = (run / ".hydra" / "overrides.yaml").read_text().splitlines()
    best = study_of(folder).best_trial
    assert overrides == [
        "- data=iris",
        "- trainer.max_epochs=2",
        "- logger=none",
        "- l1=0.001",
        '- trainer.accelerator="cpu"',
        '- ++trainer.max_time="00:01:00:00"',
        *(f"- {key}={value}" for key, value in best.params.items()),
        "- baselines=false",
        "- seed=3",
    ]


def test_jobs_of_the_best_neither_look_for_it_nor_go_where_its_trials_went(searched: tuple[Path, str]) -> None:
    folder, _ = searched
    given = prepare(["-m", "experiment=best", f"study={folder}", "seed=0,1"])
    assert [each for each in given if each.startswith(("study", "experiment", "cluster", "seed"))] == ["seed=0,1"]


def test_the_folder_of_a_search_may_be_moved(searched: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = searched
    moved, run = folder.rename(tmp_path / "moved"), tmp_path / "best"
    try:
        done = run_script("train.py", "experiment=best", f"study={moved}", "baselines=false", f"hydra.run.dir={run}")
    finally:
        moved.rename(folder)
    assert done.returncode == 0, done.stderr
    dropout = study_of(folder).best_trial.params["model.dropout"]
    assert f"- model.dropout={dropout}\n" in (run / ".hydra" / "overrides.yaml").read_text()


def test_a_killed_search_goes_on_with_what_it_left(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    command = [sys.executable, "train.py", *QUICK, f"hydra.sweep.dir={folder}", "model.hidden=[8],[16],[32],[64]"]
    command += ["search.sampler=grid", "trainer.max_epochs=400", "callbacks.early_stopping=null"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    checkpoint = folder / "trial_1" / "checkpoints" / "last.ckpt"
    waited = time.monotonic() + 200
    while not checkpoint.exists():
        assert time.monotonic() < waited
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert states(folder)[:2] == ["COMPLETE", "RUNNING"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert states(folder) == ["COMPLETE"] * 4
    assert [trial.params["model.hidden"] for trial in study_of(folder).trials] == ["[8]", "[16]", "[32]", "[64]"]
    assert "resume=" in (folder / "trial_1" / ".hydra" / "overrides.yaml").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_search_ends_the_trials_with_their_checkpoints(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "my study"
    command = [sys.executable, "train.py", *QUICK, f"hydra.sweep.dir='{folder}'", "model.hidden=[8],[16]"]
    command += ["search.sampler=grid", "trainer.max_epochs=1000000", "callbacks.early_stopping=null"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    checkpoint = folder / "trial_0" / "checkpoints" / "last.ckpt"
    waited = time.monotonic() + 200
    while not checkpoint.exists():
        assert time.monotonic() < waited
        time.sleep(0.01)
    process.send_signal(number)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + number
    assert "ending the trials: each leaves a checkpoint\n" in said
    assert "\nSweep: 1 interrupted\n" in said
    go_on = shlex.split(said.splitlines()[-1])
    assert go_on == ["go", "on", "with", "python", "train.py", f"sweep.resume='{folder}'"]
    ended = json.loads((folder / "trial_0" / "status.json").read_text())
    assert (ended["state"], ended["error"]) == ("interrupted", "Interrupted by SIGTERM")
    assert states(folder) == ["RUNNING", "WAITING"]


def test_trials_that_fall_behind_are_pruned(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    # In the order of a grid: five good rates, then one that learns nothing.
    done = search(
        folder,
        "optimizer.lr=0.01,0.011,0.012,0.013,0.014,1e-7",
        "search.sampler=grid",
        "trainer.max_epochs=12",
        "trainer.limit_train_batches=2",
    )
    assert done.returncode == 0, done.stderr
    assert states(folder) == ["COMPLETE"] * 5 + ["PRUNED"]
    status = json.loads((folder / "trial_5" / "status.json").read_text())
    last = study_of(folder).trials[5]
    assert (status["state"], status["exit_code"]) == ("pruned", 0)
    assert re.fullmatch(r"pruned after epoch 6: val/loss \d\.\d+ is behind", status["error"])
    assert sorted(last.intermediate_values) == [0, 1, 2, 3, 4, 5]
    assert "trials       5 completed, 1 pruned\n" in done.stdout


def test_trials_that_fail_are_survived(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    done = search(folder, "model.activation=nothing,relu", "search.sampler=grid")
    assert done.returncode == 0, done.stderr
    assert states(folder) == ["FAIL", "COMPLETE"]
    why = json.loads((folder / "trial_0" / "status.json").read_text())["error"]
    assert f"trial 0 of 2: failed: {why} ({folder / 'trial_0' / 'train.log'})\n" in done.stdout
    assert "trials       1 completed, 1 failed\n" in done.stdout


def test_without_a_completed_trial_the_search_fails(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    done = search(folder, "model.activation=nothing,none", "search.sampler=grid")
    assert done.returncode == 2
    assert done.stdout.endswith(f"trials       2 failed\n{NONE}\n")
    best = run_script("train.py", "experiment=best", f"study={folder}")
    assert best.returncode == 2
    assert best.stderr == (f"A setting is wrong:\n  command line: study: {folder} has no completed trial (2 failed).\n")


def test_of_trials_that_crash_no_setting_is_to_blame(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    models = ("model=linear", "model._target_=tests.parts.Broken", "allowed_targets=[tests]")
    done = search(folder, *models, "optimizer.lr=0.1,0.2", "search.sampler=grid")
    assert done.returncode == 1
    assert done.stdout.endswith(f"trials       2 failed\n{NONE}\n")


@pytest.mark.parametrize(
    ("settings", "where", "problem"),
    [
        (
            ["search.sampler=tpee", RATE],
            "command line: search.sampler",
            'must be "tpe", "random", "grid" or "cmaes"; it is "tpee". Did you mean tpe?',
        ),
        (
            ["search.storage=postgresql://me:secret@example.org/studies", RATE],
            "command line: search.storage",
            "a password in it would be written into the folder of every trial: leave it to the driver of the database,"
            " which reads PGPASSWORD or ~/.pgpass for PostgreSQL.",
        ),
        (
            ["search.objectives={val/loss: min}", RATE],
            "command line: search.objectives",
            "val/loss is the monitor, which is compared anyway: leave it out.",
        ),
        (["search.n_trials=0", RATE], "command line: search.n_trials", "must be 1 or more; it is 0."),
        (
            [],
            "command line: search",
            "has nothing to choose: give a setting several values, as 'optimizer.lr=tag(log,interval(1e-4,1e-1))'.",
        ),
        (
            ["optimizer.rate=interval(0,1)"],
            "command line: optimizer.rate",
            "unknown key. Known are amsgrad, betas, capturable, differentiable, eps, foreach, fused, lr, maximize,"
            " weight_decay.",
        ),
        (
            ["search.sampler=grid", RATE],
            "command line: optimizer.lr",
            "a grid has no intervals: give a list or a range, or take search.sampler=tpe.",
        ),
        (
            ["search.sampler=cmaes", "model.dropout=0,0.1"],
            "command line: model.dropout",
            "cmaes has no lists: give an interval or a range, or take search.sampler=tpe.",
        ),
        (
            ["model.dropout=interval(0.5,0.1)"],
            "command line: model.dropout",
            "an interval goes up: 0.5 is not below 0.1.",
        ),
        (
            ["model.dropout=tag(log,interval(0,0.1))"],
            "command line: model.dropout",
            "the logarithm of 0 is none: begin the interval above 0.",
        ),
        (
            [RATE, "trainer.devices=auto"],
            "command line: trainer.devices",
            "auto leaves open what a job is to ask for: give a number.",
        ),
        (
            [RATE, "cluster=local", "hydra.launcher.n_jobs=4"],
            "command line: hydra.launcher.n_jobs",
            "is for sweeps: search.n_jobs is how many trials are carried out at once.",
        ),
    ],
)
def test_a_mistake_is_said_before_any_work(settings: list[str], where: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        prepare([*QUICK, *settings])
    assert str(error.value) == f"A setting is wrong:\n  {where}: {problem}"


def test_an_interval_is_for_a_search() -> None:
    with pytest.raises(ConfigError) as error:
        prepare(["-m", "data=iris", RATE])
    assert str(error.value) == (
        "A setting is wrong:\n  command line: optimizer.lr: an interval is for a search: add search=optuna."
    )
