"""The diagnosis of a loss that is not finite (columns, parameters, module, advice) and when runs stop."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from datamodules.schema import InputSpec
from models.architectures.linear import Linear
from models.architectures.mlp import MLP
from models.training import losses
from models.training.augmentation import mixed_loss
from models.training.diagnosis import diagnose
from models.training.divergence import DivergedError, RunningMean
from models.training.lightning_module import SupervisedModule
from tests.conftest import run_script
from tests.models.problems import INPUTS, MIXED, build, fit, mixed_rows, rows, target

Batch = dict[str, Tensor]
ADVICE = "Lower optimizer.lr, or let lr_find=true choose it."
CLIP = " Gradients are large: set trainer.gradient_clip_val=1."


def at(rate: str) -> str:
    return f"Lower optimizer.lr ({rate} at this step), or let lr_find=true choose it."


def extreme(*columns: str) -> str:
    drop = ", ".join(f"{column}: drop" for column in columns)
    return (
        " Some numbers are extreme: use data.numbers=quantile or robust, reject such rows with data.ranges, or drop"
        f" columns with data.columns='{{{drop}}}'."
    )


def make_network() -> MLP:
    torch.manual_seed(0)
    return MLP(INPUTS, 1, hidden=(8, 8), dropout=0.5)


def diagnosis(
    network: nn.Module, batch: Batch, *, spec: InputSpec | None = INPUTS, loss: nn.Module | None = None
) -> dict[str, str]:
    """The diagnosis as a dict from the first word of each line; the advice is under ""."""
    criterion = loss or losses.auto(target("regression" if batch["target"].is_floating_point() else "binary"))
    parameters = list(network.parameters())
    groups = {
        "* (weights)": [each for each in parameters if each.ndim > 1],
        "* (others)": [each for each in parameters if each.ndim < 2],
    }
    text = diagnose(network, lambda output, batch: mixed_loss(criterion, output, batch), batch, spec, groups)
    *parts, advice = text.split("\n")
    return dict(part.strip().split(": ", 1) for part in parts) | {"": advice}


def test_an_input_that_is_not_finite_is_named_with_the_first_module() -> None:
    batch = rows("binary", 32)
    batch["numbers"][5, 1] = math.nan
    batch["numbers"][6, 3] = math.inf
    found = diagnosis(make_network(), batch)
    assert found["columns"] == "not finite in this batch: b (nan), b (missing) (inf)"
    assert found["parameters"].startswith('all finite; the largest weight is in inputs.embedding.weight in group "* (w')
    assert found["network"] == "the first output that is not finite is that of inputs (TabularEmbedding)"
    assert found[""] == ADVICE + extreme("b")
    found = diagnosis(make_network(), batch, spec=None)
    assert found["columns"] == "not finite in this batch: number 1 (nan), number 3 (inf)"


def test_extreme_values_are_named_if_the_loss_is_finite_without_them() -> None:
    batch = rows("regression", 32)
    batch["numbers"][5, 1] = -3e25  # its square overflows float32
    batch["numbers"][9, 2] = 4e25
    batch["numbers"][9, 0] = 2e6  # harmless
    found = diagnosis(make_network().eval(), batch)
    assert found["columns"] == "without b (-3e+25), c (4e+25) the loss of this batch is finite"
    assert found["network"].startswith("the output is finite (largest absolute value ")
    assert found["network"].endswith("), but the loss is not")
    assert found[""] == ADVICE + extreme("b", "c")


def test_a_category_with_an_infinite_vector_is_named() -> None:
    network = make_network().eval()
    batch = rows("binary", 32)
    with torch.no_grad():
        network.get_parameter("inputs.embedding.weight")[batch["codes"][3, 2]] = math.inf
    found = diagnosis(network, batch)
    assert found["columns"] == "without wide the loss of this batch is finite"
    assert found["parameters"] == 'not finite: inputs.embedding.weight in group "* (weights)"'
    assert found[""] == ADVICE


def test_a_text_or_image_column_is_named() -> None:
    network = MLP(MIXED, 1, hidden=()).eval()
    batch = mixed_rows(16)
    with torch.no_grad():
        network.get_parameter("inputs.texts.0.embedding.weight")[1:] *= 1e38
        network.get_parameter("layers.0.weight")[:, 1:65] = 1e10
    assert diagnosis(network, batch, spec=MIXED)["columns"] == "without title the loss of this batch is finite"
    nn.init.zeros_(network.get_parameter("inputs.texts.0.embedding.weight"))
    network.get_submodule("inputs.images.0").get_buffer("deviation").fill_(1e-39)
    network.get_submodule("inputs.images.0").get_buffer("mean").fill_(0)
    assert diagnosis(network, batch, spec=MIXED)["columns"] == "without photo the loss of this batch is finite"


def test_weights_that_are_not_finite_are_named_by_group_with_extreme_columns() -> None:
    network = make_network()
    batch = rows("binary", 32)
    with torch.no_grad():
        for name in ("layers.0.weight", "layers.3.weight", "layers.3.bias"):
            network.get_parameter(name)[0] = math.nan
    found = diagnosis(network, batch)
    assert found["columns"] == "no single cause"
    assert found["parameters"] == (
        'not finite: layers.0.weight, layers.3.weight in group "* (weights)"; layers.3.bias in group "* (others)"'
    )
    assert found["network"] == "the first output that is not finite is that of layers.0 (Linear)"
    assert found[""] == ADVICE
    batch["numbers"][3, 2] = -12
    found = diagnosis(network, batch)
    assert found["columns"] == "no single cause; extreme encoded values: c (-12)"
    assert found[""] == ADVICE + extreme("c")


def test_the_largest_gradient_and_gradients_that_are_not_finite_are_named() -> None:
    network = make_network()
    batch = rows("binary", 32)
    losses.auto(target("binary"))(network(batch), batch["target"]).backward()
    network.get_parameter("layers.0.bias").data[2] = 1e6
    gradient = network.get_parameter("layers.6.weight").grad
    assert gradient is not None
    gradient[0, 0] = -1e9
    assert diagnosis(network, batch)[""] == ADVICE + CLIP
    assert diagnosis(network, batch)["parameters"] == (
        'all finite; the largest weight is in layers.0.bias in group "* (others)", up to 1e+06; the largest gradient of'
        ' the last step in layers.6.weight in group "* (weights)", up to 1e+09'
    )
    gradient[0, 0] = math.inf
    assert diagnosis(network, batch)[""] == ADVICE + CLIP
    assert diagnosis(network, batch)["parameters"] == (
        'all finite, but gradients of the last step are not: layers.6.weight in group "* (weights)"'
    )


class SquareRoot(nn.Module):
    """A network whose final output is NaN although the outputs of its submodules are finite."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, batch: Batch) -> Tensor:
        output: Tensor = self.layer(batch["numbers"])
        return (-output.square() - 1).sqrt()


def test_a_final_output_and_a_loss_that_are_nan_are_distinguished() -> None:
    assert diagnosis(SquareRoot(), rows("binary", 8))["network"] == "only the final output is not finite (SquareRoot)"

    class Loss(nn.Module):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return (output.square() + 1).neg().log().mean()

    found = diagnosis(Linear(INPUTS, 1), rows("binary", 8), loss=Loss())
    assert found["network"] == "the output is finite (largest absolute value 0), but the loss is not"


def test_a_loss_that_is_finite_in_float32_is_reported() -> None:
    network = Linear(InputSpec(numbers=("a",)), 1)
    nn.init.constant_(network.get_parameter("layer.weight"), 300.0)
    batch = {"numbers": torch.full((2, 1), 300.0), "target": torch.zeros(2)}
    with torch.autocast("cpu", torch.float16):
        found = diagnosis(network, batch, spec=InputSpec(numbers=("a",)))
    assert found["columns"] == "without a (300) the loss of this batch is finite"
    in_float32 = " In float32 the loss of this batch is finite: use trainer.precision=32-true."
    assert found[""] == ADVICE + extreme("a") + in_float32


def test_a_loss_that_is_finite_when_computed_again_has_no_cause() -> None:
    found = diagnosis(make_network(), rows("binary", 8))
    assert found["columns"] == "no single cause"
    assert found["network"] == "when computed again, output and loss are finite"


def test_the_diagnosis_changes_neither_random_state_nor_network() -> None:
    network = make_network()
    state = torch.get_rng_state()
    diagnosis(network, rows("binary", 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())


def test_a_running_mean_keeps_losses_until_it_is_flushed() -> None:
    mean = RunningMean()
    mean.add(torch.tensor(1.0), 3)
    mean.add(torch.tensor(math.nan), 1)
    assert mean.flush() == pytest.approx([1.0, math.nan], nan_ok=True)
    assert mean.flush() == []
    mean.reset()
    mean.add(torch.tensor(1.0), 3)
    mean.add(torch.tensor(5.0), 1)
    assert mean.flush() == [1.0, 5.0]
    assert mean.total / mean.rows == 2.0


def test_a_run_stops_before_the_step_that_would_corrupt_the_weights() -> None:
    train = rows("binary", 12)
    train["numbers"][6, 0] = math.nan
    module = build("binary")
    with pytest.raises(DivergedError) as caught:
        fit(module, train, epochs=5, batch_size=4, shuffle=False)
    lines = str(caught.value).split("\n")
    assert lines[0] == "train/loss is nan at step 1 (epoch 0)."
    assert lines[1] == "  columns: not finite in this batch: number 0 (nan)"
    assert lines[3] == "  network: the first output that is not finite is that of inputs (TabularEmbedding)"
    assert lines[4:] == [at("0.01") + extreme("number 0"), "There is no checkpoint: no epoch was completed."]
    good = build("binary")
    fit(good, train, epochs=1, batch_size=4, shuffle=False, max_steps=1)
    for name, value in good.network.state_dict().items():
        assert torch.equal(value, module.network.state_dict()[name]), name


@pytest.mark.parametrize("every", [4, 100])
def test_with_rare_checks_the_first_bad_step_and_its_batch_are_named(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: at the next check, or at the end of the epoch."""
    monkeypatch.setattr(SupervisedModule, "check_interval", every)
    train = rows("binary", 4 * 12)
    train["numbers"][4 * 5 + 1, 2] = math.inf
    with pytest.raises(DivergedError) as caught:
        fit(build("binary"), train, epochs=5, batch_size=4, shuffle=False)
    lines = str(caught.value).split("\n")
    assert lines[0] == "train/loss is nan at step 5 (epoch 0)."
    assert lines[1] == "  columns: not finite in this batch: number 2 (inf)"
    assert lines[2].startswith("  parameters: not finite: ")


class CorruptingSGD(torch.optim.SGD):
    """SGD whose sixth step sets a weight to NaN."""

    steps = 0

    def step(self, closure=None):
        loss = super().step(closure)
        self.steps += 1
        if self.steps == 6:
            self.param_groups[0]["params"][0].data[0] = math.nan
        return loss


def test_no_checkpoint_has_weights_that_are_not_finite(tmp_path: Path) -> None:
    """The sixth step is the last of an epoch without validation; its own loss is finite."""
    module = build("binary", optimizer=lambda groups, lr=0.1: CorruptingSGD(groups, lr=lr), monitor="train/loss")
    keep = ModelCheckpoint(tmp_path, "last", enable_version_counter=False)
    with pytest.raises(DivergedError) as caught:
        fit(module, rows("binary", 12), epochs=5, batch_size=4, callbacks=[keep], limit_val_batches=0)
    lines = str(caught.value).split("\n")
    assert lines[0] == "a weight is not finite at step 5 (epoch 1)."
    assert lines[2].startswith('  parameters: not finite: inputs.embedding.weight in group "* (others)"')
    assert lines[-1] == f"The last good checkpoint, after epoch 1, is {tmp_path}/last.ckpt."
    assert_good(tmp_path / "last.ckpt", epoch=1)


def assert_good(checkpoint: Path, *, epoch: int) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["epoch"] + 1 == epoch
    assert all(bool(value.isfinite().all()) for value in saved["state_dict"].values())


class TurnsNan(nn.Module):
    """Squared error that is NaN from the hundredth training call on."""

    def __init__(self, target: object) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += torch.is_grad_enabled()
        loss = (output[:, 0] - target).square().mean()
        return loss * math.nan if self.calls >= 100 else loss


EXPLODING = (
    "scheduler._target_=torch.optim.lr_scheduler.ExponentialLR",
    "~scheduler.warmup",
    "~scheduler.final",
    "scheduler.gamma=1e9",
)


def test_a_diverging_learning_rate_ends_the_command_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = run_script("train.py", "data=diabetes", *EXPLODING, "logger=none", f"hydra.run.dir={run}")
    assert (done.returncode, done.stderr) == (2, "")
    number = r"-?[\d.]+(e[+-]\d+)?"
    message = (
        rf"train/loss is (inf|nan) at step \d+ \(epoch 1\)\.\n"
        r"  columns: no single cause\n"
        r'  parameters: all finite; the largest weight is in layers\.\d\.weight in group "\* \(weights\)",'
        rf" up to {number}; the largest gradient of the last step"
        rf' in layers\.\d\.\w+ in group "\* \(\w+\)", up to {number}\n'
        rf"  network: the output is finite \(largest absolute value {number}\), but the loss is not\n"
        rf"Lower optimizer\.lr \({number} at this step\), or let lr_find=true choose it\.({re.escape(CLIP)})?\n"
        rf"The last good checkpoint, after epoch 1, is {run}/checkpoints/last\.ckpt\.\n"
    )
    printed = done.stdout[done.stdout.index("train/loss is ") :]
    assert re.fullmatch(message, printed), printed
    assert not (run / "model.pt").exists()
    for name in ("best", "last"):
        assert_good(run / "checkpoints" / f"{name}.ckpt", epoch=1)


def test_a_run_with_a_nan_loss_can_be_resumed(run_here: Callable[..., Path], tmp_path: Path) -> None:
    settings = ("data=diabetes", "data.batch_size=32", "logger=none", "export=none")
    broken = ("loss=mse", "loss._target_=tests.models.training.test_divergence.TurnsNan", "allowed_targets=[tests]")
    with pytest.raises(DivergedError) as caught:
        run_here(*settings, *broken)
    lines = str(caught.value).split("\n")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert lines[0] == "train/loss is nan at step 99 (epoch 11)."  # nine steps an epoch
    assert lines[3].startswith("  network: the output is finite (largest absolute value ")
    assert lines[4:] == [at("0.00097"), f"The last good checkpoint, after epoch 11, is {last}."]
    assert_good(last, epoch=11)
    run_here(*settings, f"resume={last}", "trainer.max_epochs=12")
    assert_good(last, epoch=12)


def test_a_value_only_in_validation_is_named_by_its_column(run_here: Callable[..., Path], tmp_path: Path) -> None:
    lines = [f"{row},{row % 7},{row % 5 + row % 7}" for row in range(100)]
    (tmp_path / "train.csv").write_text("\n".join(["age,pay,y", *lines]))
    lines[17] = f"17,1e300,{lines[17].rpartition(',')[2]}"
    (tmp_path / "val.csv").write_text("\n".join(["age,pay,y", *lines]))
    files = (f"data.path={tmp_path}/train.csv", f"data.val_path={tmp_path}/val.csv", "data.target=y")
    with pytest.raises(DivergedError) as caught:
        run_here("data=table", *files, "data.numbers=standard", "+data.columns={age: number}", "model=linear")
    said = str(caught.value).split("\n")
    assert said[:2] == ["val/loss is inf at step 3 (epoch 0).", "  columns: not finite in this batch: pay (inf)"]
    assert said[4] == at("0.001") + extreme("pay")
