"""Shared fixtures: where the real data sets lie, and runs in this process and in a process of their own."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl
import pytest

from inference.artifact import Artifact
from tests.server import run_forked

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests on real data sets, so that they can be chosen by `-m data`."""
    for item in items:
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("LATHE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}: set LATHE_TEST_DATA to their folder")
    return folder


@pytest.fixture
def run_here(tmp_path: Path) -> Callable[..., Path]:
    """Carries out a run in this process, without the front door; gives its folder."""

    def run_in_process(*overrides: str, folder: Path = tmp_path / "run") -> Path:
        from trainer import compose, train

        return train(compose(*overrides, f"hydra.run.dir={folder}")).folder

    return run_in_process


def run_script(
    script: str,
    *arguments: str,
    cwd: Path = ROOT,
    input: str = "",
    env: Mapping[str, str] = os.environ,
    fresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Runs `python script arguments...` as a person does, and waits for it.

    The process is forked from one that has imported torch; with `fresh` it is a new Python, where imports or the
    handling of signals are what is tested.
    """
    command = [str(ROOT / script), *arguments]
    if not fresh:
        return run_forked(command, cwd, input.encode(), env, timeout=300)
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=cwd, input=input, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of `python train.py`, and what it printed."""
    folder = tmp_path_factory.mktemp("default") / "run"
    done = run_script("train.py", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


@pytest.fixture(scope="session")
def adult_run(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """The folder of a short run on adult."""
    return _short_run("adult", tmp_path_factory.mktemp("adult") / "run", data_dir)


@pytest.fixture(scope="session")
def adult(adult_run: Path) -> Artifact:
    return Artifact.load(adult_run / "model.pt")


@pytest.fixture(scope="session")
def rows(data_dir: Path) -> pl.DataFrame:
    """Raw adult, every cell as it is written; its column fnlwgt is none of the model's."""
    return pl.read_csv(data_dir / "adult" / "adult.csv.gz", infer_schema=False)


@pytest.fixture(scope="session")
def housing_run(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """The folder of a short run on california_housing, a regression."""
    return _short_run("california_housing", tmp_path_factory.mktemp("housing") / "run", data_dir)


def _short_run(data: str, folder: Path, data_dir: Path) -> Path:
    done = run_script(
        "train.py", f"data={data}", f"paths.data={data_dir}", "trainer.max_epochs=2", f"hydra.run.dir={folder}"
    )
    assert done.returncode == 0, done.stderr
    return folder
