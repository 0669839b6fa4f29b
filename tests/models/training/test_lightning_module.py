"""Training: equality with a plain loop bit for bit, weight decay, L1, optimizers, losses and metrics."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.loading.batch_loader import Batches
from datamodules.loading.store import MemoryStore
from datamodules.schema import InputSpec, TargetSpec, Task
from models.architectures.linear import Linear
from models.architectures.mlp import MLP
from models.layers.tabular_embedding import TabularEmbedding
from models.training import losses
from models.training.lightning_module import SupervisedModule
from tests.models.problems import ADAMW, INPUTS, build, fit, rows, target

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append(float(outputs["loss"]))


def state(module: SupervisedModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.network.state_dict().items()}


GOLDEN: dict[Task, list[float]] = {
    "regression": [2.3566153, 1.2434353, 2.5153599, 2.9974351, 1.4048089],
    "binary": [0.7017435, 0.6635711, 0.6649811, 0.6681235, 0.679904],
    "multiclass": [1.0943928, 1.1033943, 1.09326, 1.0716474, 1.0406961],
}


@pytest.mark.parametrize("task", GOLDEN)
def test_golden_losses(task: Task) -> None:
    """The first losses of a fixed network on fixed rows."""
    module = build(task, network=fixed_network(task))
    seen = Losses()
    fit(module, rows(task, 160), epochs=1, shuffle=False, callbacks=[seen])
    assert seen.seen == pytest.approx(GOLDEN[task], abs=1e-6)


def fixed_network(task: Task) -> MLP:
    """A network with weights from a formula, because random generators may differ between versions of torch."""
    encoder = functools.partial(TabularEmbedding, unknown_rate=0.0)
    network = MLP(INPUTS, target(task).outputs, hidden=(16, 8), dropout=0.0, inputs=encoder)
    with torch.no_grad():
        for number, weight in enumerate(network.parameters()):
            values = torch.sin(torch.arange(weight.numel(), dtype=torch.float64) * 1.7 + number)
            weight.copy_((values / 3).reshape(weight.shape))
    return network


def test_training_equals_a_plain_loop_bit_for_bit() -> None:
    """With dropout, unknown levels, validation, clipping and a learning rate schedule."""
    train = rows("binary", 150)
    seen = Losses()
    schedule = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    module = build("binary", scheduler=schedule)
    fit(module, train, epochs=3, batch_size=32, callbacks=[seen], gradient_clip_val=1.0)

    torch.manual_seed(0)
    network = MLP(INPUTS, 1, hidden=(16, 16), dropout=0.2)
    decayed = [layer.weight for layer in network.layers if isinstance(layer, nn.Linear)]
    others = [parameter for parameter in network.parameters() if all(parameter is not weight for weight in decayed)]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=1e-2, fused=True)
    bare = []
    for epoch in range(3):
        mixed = int(np.random.SeedSequence([1, epoch]).generate_state(1)[0])
        order = torch.randperm(150, generator=torch.Generator().manual_seed(mixed))
        for index in order.split(32):
            batch = {name: values[index] for name, values in train.items()}
            logit = F.pad(network(batch), [1, 0])
            loss = F.cross_entropy(logit, batch["target"])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            bare.append(loss.item())
        for group in optimizer.param_groups:
            group["lr"] *= 0.5
    assert seen.seen == bare
    for name, value in network.state_dict().items():
        assert torch.equal(value, module.network.state_dict()[name]), name


def test_weight_decay_skips_biases_norms_and_embeddings() -> None:
    inputs = replace(INPUTS, edges=((-1.0, 0.0, 1.0),))
    network = MLP(inputs, 1, hidden=(8, 8), norm="batch")
    module = build("binary", network=network)
    trainer = fit(module, rows("binary", 64), epochs=1)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = {
        group["weight_decay"]: {names[id(parameter)] for parameter in group["params"]}
        for group in trainer.optimizers[0].param_groups
    }
    assert groups == {
        0.01: {"layers.0.weight", "layers.4.weight", "layers.8.weight"},
        0.0: set(names.values()) - {"layers.0.weight", "layers.4.weight", "layers.8.weight"},
    }
    assert {"inputs.embedding.weight", "inputs.bent.linear", "inputs.bent.shift", "inputs.bent.bend"} < groups[0.0]


@pytest.mark.parametrize(
    ("optimizer", "fused"),
    [
        (ADAMW, True),
        (functools.partial(torch.optim.Adam, lr=0.1), True),
        (SGD, True),
        (functools.partial(torch.optim.RMSprop, lr=0.1), None),
        (functools.partial(torch.optim.AdamW, lr=0.1, fused=False), False),
        (functools.partial(torch.optim.NAdam, lr=0.1), None),
    ],
)
def test_an_optimizer_is_fused_if_torch_supports_it_and_by_default(
    optimizer: functools.partial[torch.optim.Optimizer], fused: bool | None
) -> None:
    module = build("binary", optimizer=optimizer)
    before = state(module)
    trainer = fit(module, rows("binary", 64), epochs=1)
    assert trainer.optimizers[0].defaults.get("fused") is fused
    assert not torch.equal(before["layers.0.weight"], state(module)["layers.0.weight"])


@pytest.mark.parametrize(("clip", "fused"), [(None, True), (1.0, None)])
def test_mixed_precision_trains_with_and_without_clipping(clip: float | None, fused: bool | None) -> None:
    module = build("binary")
    trainer = fit(module, rows("binary", 256), epochs=5, precision="bf16-mixed", gradient_clip_val=clip)
    assert trainer.optimizers[0].defaults["fused"] is fused
    assert module.train_loss < 0.6


def test_l1_shrinks_irrelevant_weights() -> None:
    """One of eight numbers is relevant; L1 makes the weights of the others much smaller."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(512, 8, generator=generator)
    train = {"numbers": numbers, "codes": torch.zeros(512, 0).int(), "target": 2 * numbers[:, 0]}
    train["target"] = train["target"] + torch.randn(512, generator=generator)
    inputs = InputSpec(numbers=tuple("abcdefgh"))

    def weights(l1: float) -> Tensor:
        module = SupervisedModule(
            Linear(inputs, 1), NUMBER, losses.MSE(NUMBER), SGD, None, monitor="val/loss", mode="min", l1=l1
        )
        fit(module, train, epochs=20, batch_size=512, limit_val_batches=0)
        assert module.train_loss == pytest.approx(1.0, abs=0.2)  # the logged loss has no L1 term
        return module.network.get_parameter("layer.weight")[0].detach().abs()

    plain, shrunk = weights(0.0), weights(0.2)
    assert float(shrunk[1:].max()) < float(plain[1:].max()) / 2
    assert float(plain[0] - shrunk[0]) == pytest.approx(0.1, abs=0.03)  # d/dw (w - 2)^2 = -l1


NUMBER = TargetSpec("price", "regression")


def test_adam_has_coupled_and_adamw_decoupled_weight_decay() -> None:
    """Without other gradients, Adam steps by lr, AdamW by lr * weight_decay * weight."""
    for optimizer, step in ((torch.optim.Adam, 1e-3), (torch.optim.AdamW, 1e-3 * 0.1 * 0.5)):
        network = Linear(InputSpec(numbers=("a",)), 1)
        nn.init.constant_(network.layer.weight, 0.5)
        nothing = {"numbers": torch.zeros(4, 1), "codes": torch.zeros(4, 0).int(), "target": torch.zeros(4)}
        partial = functools.partial(optimizer, lr=1e-3, weight_decay=0.1)
        module = SupervisedModule(network, NUMBER, losses.MSE(NUMBER), partial, None, monitor="val/loss", mode="min")
        fit(module, nothing, epochs=1, limit_val_batches=0)
        assert network.layer.weight.item() == pytest.approx(0.5 - step, abs=1e-7)


def test_accumulated_gradients_equal_those_of_a_larger_batch() -> None:
    train = rows("regression", 128)
    ends = []
    for batch_size, accumulate in ((64, 1), (16, 4)):
        network = fixed_network("regression")
        module = build("regression", network=network, optimizer=SGD)
        fit(module, train, epochs=2, batch_size=batch_size, shuffle=False, accumulate_grad_batches=accumulate)
        ends.append(state(module))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("task", "metric", "least"), [("regression", "r2", 0.95), ("binary", "accuracy", 0.93)])
def test_a_network_learns_a_known_function(task: Task, metric: str, least: float) -> None:
    spec = target(task)
    torch.manual_seed(0)
    module = build(task, network=MLP(INPUTS, spec.outputs, hidden=(64, 64), dropout=0.0))
    trainer = fit(module, rows(task, 2000), epochs=15, batch_size=64)
    assert float(trainer.callback_metrics[f"val/{metric}"]) > least


def test_the_training_loss_is_the_mean_over_the_rows_of_an_epoch() -> None:
    seen = Losses()
    module = build("binary")
    trainer = fit(module, rows("binary", 50), epochs=2, batch_size=32, callbacks=[seen])
    mean = (32 * seen.seen[2] + 18 * seen.seen[3]) / 50
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(mean, rel=1e-6)


def test_losses_are_means_over_rows_and_metrics_are_in_target_units() -> None:
    module = build("regression", network=fixed_network("regression"))
    test = rows("regression", 50)
    trainer = fit(module, test, epochs=1)
    (measured,) = trainer.test(module, Batches(MemoryStore(test), 32), verbose=False)
    with torch.inference_mode():
        error = module.network.eval()(test)[:, 0] - test["target"]
    assert measured["test/loss"] == pytest.approx(float(error.square().mean()), rel=1e-5)
    assert measured["test/rmse"] == pytest.approx(8.0 * float(error.square().mean().sqrt()), rel=1e-5)
    assert measured["test/mae"] == pytest.approx(8.0 * float(error.abs().mean()), rel=1e-5)


def test_a_checkpoint_is_read_without_pickle_and_has_the_network(tmp_path: Path) -> None:
    module = build("multiclass")
    trainer = fit(module, rows("multiclass", 64), epochs=1)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    other = build("multiclass")
    other.load_state_dict(saved["state_dict"])
    assert all(torch.equal(value, state(module)[name]) for name, value in state(other).items())
