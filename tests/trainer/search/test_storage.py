"""A study in a database: SQLite, and a real PostgreSQL that is started for the test."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import InputError
from tests.conftest import run_script
from trainer.command.prepare import prepare
from trainer.search.study import open_study

SEARCH = ("search=optuna", "data=iris", "trainer.max_epochs=1", "logger=none", "model.dropout=interval(0,0.5)")


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/studies.db"


@pytest.fixture
def postgresql() -> Iterator[str]:
    """A server that listens only on a socket."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not programs:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    if os.geteuid() == 0 and shutil.which("runuser") is None:
        pytest.skip("PostgreSQL does not run as root, and there is no runuser")
    folder = Path(tempfile.mkdtemp(prefix="pg.", dir="/tmp"))  # the paths of sockets must be short
    as_user = []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    data, log = folder / "data", folder / "log"

    def server(*command: str) -> None:
        given = [*as_user, programs[-1], "-D", data, "-w", *command]
        subprocess.run(given, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=100)

    server("-o", "-A trust -U postgres", "init")
    server("-l", str(log), "-o", f"-k {folder} -c listen_addresses=", "start")
    try:
        yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
    finally:
        server("-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("script", "database"),
    [
        ("tests/trainer/search/fake_trials.py", "sqlite"),
        pytest.param("train.py", "sqlite", marks=pytest.mark.slow),
        pytest.param("train.py", "postgresql", marks=pytest.mark.slow),
    ],
)
def test_two_workers_share_a_study_that_is_resumed(
    script: str, database: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    storage, folder = request.getfixturevalue(database), tmp_path / "study"
    command = (*SEARCH, "search.n_jobs=2", f"search.storage='{storage}'", f"hydra.sweep.dir={folder}")
    for trials in (2, 3):
        done = run_script(script, *command, f"search.n_trials={trials}")
        assert done.returncode == 0, done.stderr
    assert f"study study in {storage}: 2 completed of 3 trials\n" in done.stdout
    study = open_study(storage, "study")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert not list(folder.glob("*.journal"))
    with pytest.raises(InputError) as error:
        open_study(storage, "study", better=["min"], new=True)
    assert str(error.value) == (
        f"{storage} already has a study study of another search: choose another hydra.sweep.dir, whose last part is the"
        " name of the study."
    )
    assert f"model.dropout={study.best_params['model.dropout']}" in prepare(["experiment=best", f"study={folder}"])
