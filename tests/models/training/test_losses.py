"""Losses compared with torch and scikit-learn, and the arguments that they refuse."""

import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F

from datamodules.schema import TargetSpec
from models.training import losses
from tests.models.problems import target

BINARY, MULTICLASS, NUMBER = target("binary"), target("multiclass"), target("regression")
LOGITS = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 3
LABELS = torch.randint(0, 3, (200,), generator=torch.Generator().manual_seed(1))


def test_binary_cross_entropy_takes_one_logit() -> None:
    output, truth = LOGITS[:, :1], LABELS.clamp_max(1)
    expected = F.binary_cross_entropy_with_logits(output[:, 0], truth.float())
    torch.testing.assert_close(losses.auto(BINARY)(output, truth), expected)
    assert losses.auto(BINARY)(torch.tensor([[200.0], [-200.0]]), torch.tensor([0, 1])) == 200


def test_cross_entropy_equals_the_log_loss_of_the_predictions() -> None:
    expected = log_loss(LABELS, torch.softmax(LOGITS.double(), 1))
    assert float(losses.auto(MULTICLASS)(LOGITS, LABELS)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_label_smoothing_mixes_the_target_with_the_uniform_distribution(smoothing: float) -> None:
    soft = F.one_hot(LABELS, 3) * (1 - smoothing) + smoothing / 3
    expected = -(soft * torch.log_softmax(LOGITS, 1)).sum(1).mean()
    torch.testing.assert_close(losses.auto(MULTICLASS, label_smoothing=smoothing)(LOGITS, LABELS), expected)
    output, truth = LOGITS[:, :1], LABELS.clamp_max(1)
    expected = F.binary_cross_entropy_with_logits(output[:, 0], truth * (1 - smoothing) + smoothing / 2)
    torch.testing.assert_close(losses.auto(BINARY, label_smoothing=smoothing)(output, truth), expected)


def test_balanced_weights_equal_those_of_scikit_learn() -> None:
    counts = torch.bincount(LABELS, minlength=3)
    spec = TargetSpec("answer", "multiclass", MULTICLASS.classes, tuple(counts.tolist()))
    weight = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
    expected = log_loss(LABELS, torch.softmax(LOGITS.double(), 1), sample_weight=weight[LABELS])
    assert float(losses.auto(spec, class_weights="balanced")(LOGITS, LABELS)) == pytest.approx(expected, rel=1e-5)


def test_given_weights_apply_to_the_classes_in_order() -> None:
    rows = torch.tensor([1.0, 2.0, 5.0])[LABELS]
    expected = (F.cross_entropy(LOGITS, LABELS, reduction="none") * rows).sum() / rows.sum()
    torch.testing.assert_close(losses.CrossEntropy(MULTICLASS, class_weights=[1, 2, 5])(LOGITS, LABELS), expected)


@given(st.integers(0, 1000), st.sampled_from(["binary", "multiclass"]))
def test_focal_loss_without_focus_is_cross_entropy(seed: int, task: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    spec = BINARY if task == "binary" else MULTICLASS
    output = torch.randn(20, spec.outputs, generator=generator) * 5
    truth = torch.randint(0, len(spec.classes), (20,), generator=generator)
    torch.testing.assert_close(losses.Focal(spec, gamma=0)(output, truth), losses.CrossEntropy(spec)(output, truth))


def test_focal_loss_equals_its_formula_and_has_finite_gradients() -> None:
    probability = torch.softmax(LOGITS.double(), 1).gather(1, LABELS[:, None])[:, 0]
    expected = (-((1 - probability) ** 2) * probability.log()).mean()
    assert float(losses.Focal(MULTICLASS)(LOGITS, LABELS)) == pytest.approx(float(expected), rel=1e-5)
    sure = torch.tensor([[60.0], [-60.0], [1000.0]], requires_grad=True)
    losses.Focal(BINARY, gamma=0.5)(sure, torch.tensor([1, 1, 0])).backward()
    assert sure.grad is not None
    assert bool(sure.grad.isfinite().all())


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (losses.auto, nn.MSELoss()),
        (losses.MSE, nn.MSELoss()),
        (losses.MAE, nn.L1Loss()),
        (losses.Huber, nn.HuberLoss()),
        (lambda target: losses.Huber(target, delta=0.3), nn.HuberLoss(delta=0.3)),
    ],
)
def test_regression_losses_equal_those_of_torch(loss: Callable[[TargetSpec], nn.Module], reference: nn.Module) -> None:
    output = LOGITS[:, :1].clone().requires_grad_()
    truth = LABELS.float()
    value = loss(NUMBER)(output, truth)
    torch.testing.assert_close(value, reference(output[:, 0], truth))
    # With mixed precision the output and its gradient are bfloat16.
    half = output.detach().bfloat16().requires_grad_()
    loss(NUMBER)(half, truth).backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


REFUSED: Sequence[tuple[Callable[[], nn.Module], str]] = [
    (
        lambda: losses.auto(NUMBER, label_smoothing=0.1),
        "loss.label_smoothing and loss.class_weights are for classes, but the target 'price' is a number: remove them.",
    ),
    (
        lambda: losses.CrossEntropy(NUMBER),
        "loss=cross_entropy needs classes, but the target 'price' is a number: choose loss=mse, mae or huber.",
    ),
    (
        lambda: losses.Huber(MULTICLASS),
        "loss=huber needs a number, but the target 'answer' has 3 classes: choose loss=cross_entropy or focal.",
    ),
    (lambda: losses.Huber(NUMBER, delta=0), "loss.delta=0: must be above 0."),
    (lambda: losses.Focal(BINARY, gamma=-1), "loss.gamma=-1: must not be negative."),
    (
        lambda: losses.CrossEntropy(BINARY, label_smoothing=1),
        "loss.label_smoothing=1: must be at least 0 and below 1.",
    ),
    (
        lambda: losses.auto(MULTICLASS, class_weights=[1, 2]),
        "loss.class_weights=[1, 2]: must be 'balanced' or one weight for each of the 3 classes of 'answer': low,"
        " mid, high.",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_unsupported_arguments_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()
