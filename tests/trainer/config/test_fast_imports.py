"""Lightning comes without the packages that torchmetrics would bring, and they can be used afterwards."""

import subprocess
import sys

from tests.conftest import ROOT

CODE = """
import gc, sys
from trainer.config.fast_imports import LEFT_OUT, fast_imports
with fast_imports():
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
