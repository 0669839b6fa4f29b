"""Lightning is imported without the optional packages of torchmetrics, which can be imported afterwards."""

import subprocess
import sys

from tests.conftest import ROOT

CODE = """
import gc, sys
from trainer.config.fast_imports import SKIPPED, fast_imports
with fast_imports():
    import pytorch_lightning
print({"matplotlib", "scipy.signal", "torchvision", "transformers"} & set(sys.modules), gc.isenabled())
from lightning_utilities.core.imports import package_available
print([package_available(name) for name in ("matplotlib", "scipy", "torchvision")])
import matplotlib, scipy.signal, torchvision
"""


def test_optional_packages_are_not_imported_with_lightning() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "set() True\n[True, True, True]\n"
