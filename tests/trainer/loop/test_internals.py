"""Training without the private names of Lightning and torch, as with a version that has renamed them."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, run_script
from tests.models.problems import build, fit, rows
from tests.trainer.loop.test_fast_loop import same
from trainer.callbacks.averaging import EMA
from trainer.loop import lightning_internals, torch_internals
from trainer.loop.fused_step import Step
from trainer.loop.trainer import Trainer

TRAIN = rows("binary", 100)
CONNECTOR = "pytorch_lightning.trainer.connectors.signal_connector", "_SignalConnector"
LOOP = "pytorch_lightning.loops.training_epoch_loop", "_TrainingEpochLoop"
SCRIPT = f'''
import importlib, json, logging, os, signal, sys

sys.path.insert(0, "{ROOT}")
module, name, folder = sys.argv[1:]
for loaded in [each for each in sys.modules if each.startswith("trainer.loop")]:
    del sys.modules[loaded]  # the process was forked from one that may have imported them
import pytorch_lightning
owner = importlib.import_module(module)
private = vars(owner).pop(name)
import trainer.loop.trainer
setattr(owner, name, private)  # Lightning's own functions use the name

import torch
from pathlib import Path
from pytorch_lightning.callbacks import LambdaCallback, ModelCheckpoint
from tests.models.problems import build, fit, rows
from trainer.callbacks.random_state import RandomState
from trainer.folders.signals import Interrupted, watch

logging.basicConfig(format="%(message)s")
logging.getLogger("trainer").setLevel("INFO")


def train(folder, resume=None, stop=None):
    def send(trainer, *_):
        if trainer.global_step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    module = build("binary")
    callbacks = [RandomState(), LambdaCallback(on_train_batch_start=send), ModelCheckpoint(folder)]
    trainer = fit(module, rows("binary", 100), epochs=3, callbacks=callbacks, resume=resume, default_root_dir=folder)
    return trainer, module.state_dict()


trainer, whole = train(folder)
with watch.installed():
    try:
        train(folder, stop=6)
    except Interrupted as interrupted:
        code = interrupted.exit_code
_, resumed = train(folder, Path(folder, "checkpoints", "last.ckpt"))
equal = all(torch.equal(value, resumed[name]) for name, value in whole.items())
torch.save(whole, Path(folder, "whole.pt"))
print(json.dumps([trainer.loop is None, trainer.global_step, code, equal]))
'''


@pytest.mark.parametrize(("module", "name"), [CONNECTOR, LOOP])
def test_without_private_names_lightnings_own_loop_trains_and_resumes(module: str, name: str, tmp_path: Path) -> None:
    """A signal ends the run with a checkpoint, and the weights are the same as with the fast loop."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = run_script(str(script), module, name, str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [True, 12, 143, True]
    version = importlib.metadata.version("pytorch-lightning")
    reason = f"pytorch-lightning {version} (cannot import name '{name}' from '{module}')"
    assert f"; loop: Lightning's own (the fast loop does not support {reason})\n" in done.stderr
    fast = build("binary")
    fit(fast, TRAIN, epochs=3, fast="on")
    same(fast.state_dict(), torch.load(tmp_path / "whole.pt", weights_only=True))


def test_other_versions_of_lightning_keep_their_own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.7.0")
    trainer = Trainer(accelerator="cpu", threads=1, logger=False)
    assert lightning_internals.unsupported_reason(trainer) == "pytorch-lightning 2.7.0 (tested: 2.6.x)"
    assert trainer.loop is None
    assert not isinstance(trainer._signal_connector, lightning_internals.NoSignals)


def test_an_attribute_that_lightning_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(accelerator="cpu", threads=1, logger=False)
    monkeypatch.delattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped")
    reason = lightning_internals.unsupported_reason(trainer)
    assert reason is not None
    assert reason.endswith(" (no attribute _batches_that_stepped)")


@pytest.fixture
def no_torch_names() -> Iterator[None]:
    """Deletes the names while they are looked up, and not while torch itself needs them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_fused_adam_", "_fused_adamw_", "_foreach_add_", "_foreach_lerp_"):
            patch.delattr(torch, name)
        importlib.reload(torch_internals)
    yield
    importlib.reload(torch_internals)


def test_without_private_names_of_torch_the_optimizer_steps_by_itself(request: pytest.FixtureRequest) -> None:
    found = []
    for kernels in (True, False):
        if not kernels:
            request.getfixturevalue("no_torch_names")
        module = build("binary")
        trainer = fit(module, TRAIN, epochs=2, callbacks=[EMA(0.9)], fast="on")
        assert Step(trainer.optimizers[0]).fused == kernels
        found.append(module.state_dict())
    same(*found)


@pytest.mark.usefixtures("no_torch_names")
def test_public_functions_do_the_same() -> None:
    tensors = [torch.ones(2), torch.zeros(3)]
    torch_internals.foreach_add_(tensors, 2)
    assert [tensor.tolist() for tensor in tensors] == [[3.0] * 2, [2.0] * 3]
    torch_internals.foreach_lerp_(tensors, [torch.ones(2), torch.zeros(3)], 0.5)
    assert [tensor.tolist() for tensor in tensors] == [[2.0] * 2, [1.0] * 3]


@pytest.mark.parametrize("name", ["lookup_backend", "config.trace_autograd_ops"])
def test_a_torch_that_cannot_compile_a_step_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_internals.graph_unsupported_reason() is None
    owner, _, attribute = f"torch._dynamo.{name}".rpartition(".")
    monkeypatch.delattr(sys.modules[owner], attribute)
    assert torch_internals.graph_unsupported_reason() == f"torch {torch.__version__} has no {attribute}"
