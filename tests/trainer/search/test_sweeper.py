"""search=...: trials, resuming, failed and pruned trials, retraining the best one, and settings that are rejected.

Most tests use trials that take no time (fake_trials.py); those that train in worker processes are slow.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from optuna import Study
from optuna.trial import create_trial

from tests.conftest import ROOT, run_script
from trainer import compose, train
from trainer.command.prepare import prepare
from trainer.config.errors import ConfigError
from trainer.folders.status import Pruned
from trainer.search.study import JOURNAL, open_study
from trainer.search.trial_workers import Worker

QUICK = ("search=optuna", "data=iris", "trainer.max_epochs=2", "logger=none")
NONE = "no trial was completed: see the messages above, or train.log of each trial"
RATE = "optimizer.lr=tag(log,interval(1e-4,1e-1))"
MINE = """# @package _global_
defaults: [optuna]
l1: 0.001
trainer: {accelerator: cpu, max_time: "00:01:00:00"}
"""


def fake_search(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """A search whose trials take no time."""
    return run_script("tests/trainer/search/fake_trials.py", *QUICK, f"hydra.sweep.dir={folder}", *settings)


def of_file(folder: Path, dropouts: str, trials: int) -> list[str]:
    """A search by a file of its user, in a folder whose name is a number."""
    command = [f"--config-dir={folder.parent}", "search=mine", *QUICK[1:], RATE, f"model.dropout={dropouts}"]
    return [*command, "cluster=local", f"hydra.sweep.dir={folder}", f"search.n_trials={trials}", "search.n_jobs=2"]


def make_file(folder: Path) -> Path:
    (folder / "search").mkdir()
    (folder / "search" / "mine.yaml").write_text(MINE)
    return folder / "2026"


def study_of(folder: Path) -> Study:
    return open_study(str(folder / JOURNAL), folder.name)


def states(folder: Path) -> list[str]:
    return [trial.state.name for trial in study_of(folder).trials]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of a search of four trials."""
    folder = make_file(tmp_path_factory.mktemp("search"))
    done = run_script("tests/trainer/search/fake_trials.py", *of_file(folder, "0,0.1", trials=4))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.slow
def test_two_workers_train_all_trials(tmp_path: Path) -> None:
    folder = make_file(tmp_path)
    done = run_script("train.py", *of_file(folder, "0,0.1", trials=4))
    assert done.returncode == 0, done.stderr
    check(folder, done.stdout)


def test_all_trials_of_a_search_run(searched: tuple[Path, str]) -> None:
    check(*searched)


def check(folder: Path, output: str) -> None:
    """Checks the files and the output of the search of four trials."""
    study = study_of(folder)
    assert states(folder) == ["COMPLETE"] * 4
    for trial in study.trials:
        status = json.loads((folder / f"trial_{trial.number}" / "status.json").read_text())
        assert (status["state"], status["value"]) == ("done", trial.value)
        assert 1e-4 <= trial.params["optimizer.lr"] <= 1e-1
        assert trial.params["model.dropout"] in ("0", "0.1")
        assert not (folder / f"trial_{trial.number}" / "model.pt").exists()
    best = study.best_trial
    assert f"best         trial {best.number}: val/loss {best.value:.4g}, with optimizer.lr=" in output
    assert "trials       4 completed\n" in output
    assert output.rstrip().endswith(f"python train.py experiment=best study={folder}")
    assert {"history.png", "importance.png"} <= {path.name for path in folder.iterdir()}


def test_a_trial_has_the_settings_of_the_search(searched: tuple[Path, str]) -> None:
    folder, _ = searched
    arguments = (folder / "trial_0" / "arguments").read_text().splitlines()
    params = study_of(folder).trials[0].params
    own = [f"optimizer.lr={params['optimizer.lr']}", f"model.dropout={params['model.dropout']}", "search.trial=0"]
    assert arguments[0] == f"--config-dir={folder.parent}"
    assert {*own, "search=mine", "data=iris", "search.study='2026'", "hydra.mode=RUN"} <= {*arguments}
    assert f"hydra.run.dir={folder}/trial_0" in arguments


def test_the_same_command_resumes_up_to_the_number_of_trials(searched: tuple[Path, str]) -> None:
    folder, _ = searched
    before = study_of(folder).trials
    study_of(folder).ask()  # like a search that was killed before the trial had its settings
    done = run_script("tests/trainer/search/fake_trials.py", *of_file(folder, "0,0.1", trials=6))
    assert f"study 2026 in {folder / JOURNAL}: 4 completed, 1 interrupted of 6 trials" in done.stdout
    after = study_of(folder).trials
    assert after[:4] == before
    with (folder / "sweep.csv").open() as table:
        assert "search.n_trials" not in table.readline()
    assert [trial.state.name for trial in after[4:]] == ["FAIL", "COMPLETE"]
    with pytest.raises(ConfigError) as error:
        prepare(of_file(folder, "0,0.2", trials=7))
    assert str(error.value) == (
        f"A setting is wrong:\n  command line: hydra.sweep.dir: {folder} contains a search that was started by another"
        " command: it had model.dropout=0,0.1, not model.dropout=0,0.2. Use the same command, or choose another folder."
    )


def test_the_best_trial_is_retrained_by_one_command(searched: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = searched
    given = ["baselines=false", f"hydra.run.dir={tmp_path}", "seed=3"]
    best = study_of(folder).best_trial
    expected = [
        "data=iris",
        "trainer.max_epochs=2",
        "logger=none",
        "l1=0.001",
        'trainer.accelerator="cpu"',
        '++trainer.max_time="00:01:00:00"',
        *(f"{key}={value}" for key, value in best.params.items()),
        *given,
    ]
    assert prepare(["experiment=best", f"study={folder}", *given]) == expected
    moved = folder.rename(tmp_path / "moved")
    try:
        assert prepare(["experiment=best", f"study={moved}", *given]) == expected
    finally:
        moved.rename(folder)


def test_jobs_with_the_settings_of_the_best_trial_do_not_search_again(searched: tuple[Path, str]) -> None:
    folder, _ = searched
    given = prepare(["-m", "experiment=best", f"study={folder}", "seed=0,1"])
    assert [each for each in given if each.startswith(("study", "experiment", "cluster", "seed"))] == ["seed=0,1"]


def test_failed_trials_do_not_end_the_search(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    done = fake_search(folder, "optimizer.lr=0,0.1,2,-1", "search.sampler=grid")
    assert done.returncode == 0, done.stderr
    assert states(folder) == ["FAIL", "COMPLETE", "FAIL", "FAIL"]
    log = folder / "trial_0" / "train.log"
    assert f"trial 0 of 4: failed: optimizer.lr: must be positive. ({log})\n" in done.stdout
    assert "trial 1 of 4: val/loss 0.09\n" in done.stdout
    assert "trial 3 of 4: failed: an objective is not finite\n" in done.stdout
    assert "trials       1 completed, 3 failed\n" in done.stdout


def test_a_search_without_a_completed_trial_fails(tmp_path: Path) -> None:
    folder = tmp_path / "rejected"
    done = fake_search(folder, "optimizer.lr=0", "search.sampler=grid", "model.dropout=0,0.1")
    assert done.returncode == 2
    assert done.stdout.endswith(f"trials       2 failed\n{NONE}\n")
    with pytest.raises(ConfigError) as error:
        prepare(["experiment=best", f"study={folder}"])
    assert (
        str(error.value) == f"A setting is wrong:\n  command line: study: {folder} has no completed trial (2 failed)."
    )
    assert fake_search(tmp_path / "crashed", "optimizer.lr=2,3", "search.sampler=grid").returncode == 1


def test_a_trial_that_falls_behind_is_pruned(tmp_path: Path) -> None:
    """The study has five good trials; the sixth learns nothing."""
    study, spaces = open_study(str(tmp_path / JOURNAL), "study", better=["min"]), {}
    for _ in range(5):
        study.add_trial(create_trial(value=0.1, intermediate_values=dict.fromkeys(range(12), 0.1)))
    trial = study.ask(spaces)
    search = ("search.study=study", f"search.storage={tmp_path / JOURNAL}", f"search.trial={trial.number}")
    settings = ("trainer.max_epochs=12", "trainer.limit_train_batches=2", "optimizer.lr=1e-7", "search.pruner=median")
    config = compose(*QUICK, *search, *settings, "hydra.mode=RUN", f"hydra.run.dir={tmp_path}/trial_5")
    with pytest.raises(Pruned, match=r"^pruned after epoch 6: val/loss \d\.\d+ is behind$"):
        train(config)
    status = json.loads((tmp_path / "trial_5" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("pruned", 0)
    last = study.trials[5]
    assert sorted(last.intermediate_values) == [0, 1, 2, 3, 4, 5]


def test_a_worker_is_a_process_that_is_replaced_if_it_is_killed(tmp_path: Path) -> None:
    worker = Worker(print, {"SHARE": "1"}, tmp_path / "workers.log")
    worker.submit(tmp_path, ["first"]).result(timeout=100)
    worker.submit(tmp_path, ["second"]).result(timeout=100)
    assert (tmp_path / "workers.log").read_text().split() == ["['first']", "['second']"]
    worker = Worker(os._exit, {}, tmp_path / "workers.log")
    for _ in range(2):
        future = worker.submit(tmp_path, 1)  # type: ignore[arg-type]
        with pytest.raises(BrokenProcessPool):
            future.result(timeout=100)


@pytest.mark.slow
def test_a_killed_search_resumes_its_trials(tmp_path: Path) -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_trials_with_their_checkpoints(tmp_path: Path, number: signal.Signals) -> None:
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
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + number
    assert "stopping the trials: each writes a checkpoint\n" in output
    assert "\nSweep: 1 interrupted\n" in output
    command = shlex.split(output.splitlines()[-1])
    assert command == ["resume", "with", "python", "train.py", f"sweep.resume='{folder}'"]
    ended = json.loads((folder / "trial_0" / "status.json").read_text())
    assert (ended["state"], ended["error"]) == ("interrupted", "Interrupted by SIGTERM")
    assert states(folder) == ["RUNNING", "WAITING"]


@pytest.mark.slow
def test_trials_that_fall_behind_are_pruned(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    # In the order of the grid: five good rates, then one that learns nothing.
    done = run_script(
        "train.py",
        *QUICK,
        f"hydra.sweep.dir={folder}",
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
            "the password in it would be written into the folder of every trial: leave it out. The database driver"
            " reads PGPASSWORD or ~/.pgpass for PostgreSQL.",
        ),
        (
            ["search.objectives={val/loss: min}", RATE],
            "command line: search.objectives",
            "val/loss is the monitor, which is always an objective: leave it out.",
        ),
        (["search.n_trials=0", RATE], "command line: search.n_trials", "must be 1 or more; it is 0."),
        (
            [],
            "command line: search",
            f"has nothing to search: give a setting several values, such as '{RATE}'.",
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
            "grid does not support intervals: give a list or a range, or use search.sampler=tpe.",
        ),
        (
            ["search.sampler=cmaes", "model.dropout=0,0.1"],
            "command line: model.dropout",
            "cmaes does not support lists: give an interval or a range, or use search.sampler=tpe.",
        ),
        (
            ["model.dropout=interval(0.5,0.1)"],
            "command line: model.dropout",
            "the lower end 0.5 of the interval is not below the upper end 0.1.",
        ),
        (
            ["model.dropout=tag(log,interval(0,0.1))"],
            "command line: model.dropout",
            "0 has no logarithm: start the interval above 0.",
        ),
        (
            [RATE, "trainer.devices=auto"],
            "command line: trainer.devices",
            "auto does not say what a job requests: give a number.",
        ),
        (
            [RATE, "cluster=local", "hydra.launcher.n_jobs=4"],
            "command line: hydra.launcher.n_jobs",
            "applies to sweeps: search.n_jobs is the number of concurrent trials.",
        ),
    ],
)
def test_a_mistake_is_reported_before_the_search_starts(settings: list[str], where: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        prepare([*QUICK, *settings])
    assert str(error.value) == f"A setting is wrong:\n  {where}: {problem}"


def test_an_interval_needs_a_search() -> None:
    with pytest.raises(ConfigError) as error:
        prepare(["-m", "data=iris", RATE])
    assert str(error.value) == (
        "A setting is wrong:\n  command line: optimizer.lr: an interval needs a search: add search=optuna."
    )
