"""Shared fixtures: where the real data sets lie, and runs in this process and in a process of their own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from inference.artifact import Artifact

ROOT = Path(__file__).parents[1]


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
        from trainer.main import compose, train

        return train(compose(*overrides, f"hydra.run.dir={folder}")).folder

    return run_in_process


def run_script(script: str, *arguments: str, cwd: Path = ROOT, **settings: object) -> subprocess.CompletedProcess[str]:
    """Runs a front door as a person does, and waits for it."""
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300, **settings)


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
