"""A real Slurm of one node, started for the tests and stopped after them."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """Environment variables of a process that uses it. Tests are skipped if it cannot be started."""
    if os.geteuid() != 0:
        pytest.skip("starting a Slurm needs root")
    if not shutil.which("slurmctld") or not shutil.which("munged"):
        pytest.skip("Slurm is not installed: apt-get install slurm-wlm munge")
    folder = tempfile.mkdtemp(prefix="slurm.", dir="/tmp")  # the paths of sockets must be short
    started = subprocess.run(["bash", HERE / "up.sh", folder], capture_output=True, text=True, timeout=60, check=False)
    try:
        if started.returncode:
            pytest.skip(f"Slurm does not start here: {started.stderr.strip()}")
        yield os.environ | {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{HERE}/bin:{os.environ['PATH']}"}
    finally:
        subprocess.run(["bash", HERE / "down.sh", folder], timeout=60, check=False)
        shutil.rmtree(folder, ignore_errors=True)
