"""Lightning comes without the packages that torchmetrics would bring, and they can be used afterwards."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

CODE = """
import gc, sys
from trainer.lean import LEFT_OUT, lean
with lean():
    import pytorch_lightning
print({"matplotlib", "scipy.signal", "torchvision", "transformers"} & set(sys.modules), gc.isenabled())
from lightning_utilities.core.imports import package_available
print([package_available(name) for name in ("matplotlib", "scipy", "torchvision")])
import matplotlib, scipy.signal, torchvision
"""


def test_lightning_comes_alone() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "set() True\n[True, True, True]\n"


@pytest.mark.parametrize("asked", [["--help"], ["--cfg", "job"], ["model.hiden=64"]])
def test_the_front_door_answers_without_what_a_run_takes(asked: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "train.py", *asked]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(2):  # at first the signatures of all targets are looked up, and remembered
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "trainer.config" in imported
    assert not {"torch", "pytorch_lightning", "polars", "sklearn", "optuna", "submitit"} & imported
