"""Augmentation: the effect of each transform on a batch, and the loss of mixed batches."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.schema import ImageSpec, InputSpec
from models.architectures.mlp import MLP
from models.training.augmentation import Augment, TableMixup, mixed_loss
from models.training.losses import CrossEntropy
from tests.models import problems
from tests.models.problems import INPUTS, MIXED, build, fit, target

GRAY = ImageSpec("photo", (1, 8, 6), (0.5,), (0.25,))
COLOR = ImageSpec("scan", (3, 9, 9), (0.5,) * 3, (0.25,) * 3)


def rows(count: int = 200) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "images.photo": torch.randint(1, 256, (count, *GRAY.shape), generator=generator).byte(),
        "target": torch.randint(0, 3, (count,), generator=generator),
    }


def augmented(**settings: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    batch = rows()
    before = batch["images.photo"].clone()
    result = Augment(InputSpec(images=(GRAY,)), **settings)(batch)
    assert torch.equal(batch["images.photo"], before)
    assert result["images.photo"].dtype == torch.uint8
    assert result["images.photo"].shape == before.shape
    return batch, result


def test_the_default_changes_nothing() -> None:
    batch, result = augmented()
    assert result.keys() == batch.keys()
    assert torch.equal(result["images.photo"], batch["images.photo"])


def test_about_half_of_the_images_are_mirrored_independently() -> None:
    batch, result = augmented(flip=True)
    old, new = batch["images.photo"], result["images.photo"]
    same, mirrored = (new == old).flatten(1).all(1), (new == old.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 70 < int(mirrored.sum()) < 130


def test_images_are_shifted_independently_with_black_borders() -> None:
    batch, result = augmented(crop=2)
    moves = set()
    for old, new in zip(F.pad(batch["images.photo"], [2] * 4), result["images.photo"], strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(old[:, y : y + 8, x : x + 6], new)]
        assert len(found) == 1
        moves.add(found[0])
    assert len(moves) == 25


def test_rand_augment_changes_only_images_with_any_number_of_channels() -> None:
    torch.manual_seed(0)
    batch = rows(40) | {"images.scan": torch.randint(0, 256, (40, *COLOR.shape)).byte()}
    result = Augment(InputSpec(images=(GRAY, COLOR)), rand_augment=True)(batch)
    for name in ("images.photo", "images.scan"):
        assert result[name].dtype == torch.uint8
        assert result[name].shape == batch[name].shape
        assert not torch.equal(result[name], batch[name])
    assert torch.equal(result["target"], batch["target"])


def test_mixup_blends_two_images_and_keeps_both_targets() -> None:
    batch, result = augmented(mixup=0.4)
    old, share = batch["images.photo"].float(), result["share"]
    expected = share * old + (1 - share) * old.roll(1, 0)
    assert (result["images.photo"].float() - expected).abs().max() <= 0.501
    assert torch.equal(result["other_target"], batch["target"].roll(1))
    assert 0 < float(share) < 1


def test_cutmix_pastes_one_box_and_the_share_is_the_rest_of_the_image() -> None:
    torch.manual_seed(0)
    augment, batch = Augment(InputSpec(images=(GRAY,)), cutmix=1.0), rows()
    old, shares = batch["images.photo"], []
    for _ in range(50):
        result = augment(batch)
        pasted = (result["images.photo"] == old.roll(1, 0)).all(0)[0]
        kept = (result["images.photo"] == old).all(0)[0]
        assert bool((pasted ^ kept).all())
        assert torch.equal(pasted, pasted.any(1, keepdim=True) & pasted.any(0, keepdim=True))
        shares.append(float(result["share"]))
        assert shares[-1] == pytest.approx(float(kept.float().mean()))
    assert min(shares) < 0.3
    assert max(shares) > 0.7


def test_each_batch_has_mixup_or_cutmix_if_both_are_set() -> None:
    torch.manual_seed(0)
    augment, batch = Augment(InputSpec(images=(GRAY,)), mixup=1.0, cutmix=1.0), rows()
    old = batch["images.photo"]
    cut = [
        bool(((new == old) | (new == old.roll(1, 0))).all())
        for new in (augment(batch)["images.photo"] for _ in range(60))
    ]
    assert 15 < sum(cut) < 45


def test_the_loss_of_a_mixed_batch_equals_the_loss_of_the_mixed_target() -> None:
    _, result = augmented(mixup=1.0)
    loss, output = CrossEntropy(target("multiclass"), label_smoothing=0.1), torch.randn(200, 3)
    one_hot = F.one_hot(result["target"], 3), F.one_hot(result["other_target"], 3)
    soft = result["share"] * one_hot[0] + (1 - result["share"]) * one_hot[1]
    expected = F.cross_entropy(output, soft, label_smoothing=0.1)
    torch.testing.assert_close(mixed_loss(loss, output, result), expected)
    plain = rows()
    torch.testing.assert_close(mixed_loss(loss, output, plain), loss(output, plain["target"]))


def test_mixed_rows_have_interpolated_numbers_and_codes_of_either_row() -> None:
    torch.manual_seed(0)
    mixup, shares = TableMixup(INPUTS, alpha=1.0), []
    batch = problems.rows("regression", 500)
    before = {name: values.clone() for name, values in batch.items()}
    for _ in range(20):
        result = mixup(batch)
        share, others = result["share"], {name: values.roll(1, 0) for name, values in before.items()}
        assert result.keys() == batch.keys() | {"other_target", "share"}
        expected = share * before["numbers"] + (1 - share) * others["numbers"]
        torch.testing.assert_close(result["numbers"], expected)
        assert result["codes"].dtype == torch.int32
        unlike = before["codes"] != others["codes"]
        kept, taken = result["codes"] == before["codes"], result["codes"] == others["codes"]
        assert bool((kept | taken).all())
        assert float(kept[unlike].float().mean()) == pytest.approx(float(share), abs=0.06)
        assert torch.equal(result["target"], before["target"])
        assert torch.equal(result["other_target"], others["target"])
        shares.append(float(share))
    assert all(torch.equal(values, before[name]) for name, values in batch.items())
    assert min(shares) < 0.2
    assert max(shares) > 0.8


def test_mixed_regression_targets_have_the_gradient_of_the_mean_target() -> None:
    torch.manual_seed(0)
    result = TableMixup(INPUTS, alpha=1.0)(problems.rows("regression", 100))
    loss = build("regression").loss
    output = torch.randn(100, 1, requires_grad=True)
    middle = torch.lerp(result["other_target"], result["target"], result["share"])
    (ours,) = torch.autograd.grad(mixed_loss(loss, output, result), output)
    (theirs,) = torch.autograd.grad(loss(output, middle), output)
    torch.testing.assert_close(ours, theirs)


def test_a_network_learns_from_mixed_rows() -> None:
    module = build("regression", augment=TableMixup(INPUTS))
    trainer = fit(module, problems.rows("regression", 512), epochs=15)
    assert float(trainer.callback_metrics["val/r2"]) > 0.8


def test_only_training_batches_are_augmented() -> None:
    class Black(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return batch | {"images.photo": torch.zeros_like(batch["images.photo"])}

    batch, network = rows(), MLP(InputSpec(images=(GRAY,)), 3, hidden=(4,), dropout=0.0)
    module = build("multiclass", network=network, augment=Black())
    with torch.no_grad():
        trained = module.training_step(batch, 0)
        module.validation_step(batch, 0)
        plain, black = (module.loss(network(each), batch["target"]) for each in (batch, Black()(batch)))
    assert trained == black != plain
    assert module.eval_loss_mean.flush() == [pytest.approx(float(plain))]


def test_draws_depend_only_on_torchs_generator() -> None:
    settings = {"flip": True, "crop": 2, "rand_augment": True, "mixup": 0.2, "cutmix": 1.0}
    augment = Augment(InputSpec(images=(GRAY,)), **settings)
    torch.manual_seed(3)
    augment(rows())
    state = torch.get_rng_state()
    first = [augment(rows()) for _ in range(3)]
    torch.set_rng_state(state)
    for before in first:
        again = augment(rows())
        assert all(torch.equal(again[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        (INPUTS, {"flip": True}, "augment needs an image column, and there is none: use augment=none."),
        (
            InputSpec(images=(COLOR, GRAY)),
            {"crop": 6},
            "augment.crop=6: must be at least 0 and below the 6 pixels of the shorter side.",
        ),
        (InputSpec(images=(GRAY,)), {"cutmix": -1.0}, "augment.mixup=0.0, augment.cutmix=-1.0: must not be negative."),
        (
            MIXED,
            {"mixup": 0.2},
            "augment.mixup and augment.cutmix need a single image column and no other columns: set both to 0.",
        ),
    ],
)
def test_settings_that_do_not_fit_the_images_are_refused(
    inputs: InputSpec, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Augment(inputs, **settings)


@pytest.mark.parametrize(
    ("inputs", "alpha", "message"),
    [
        (
            MIXED,
            0.2,
            "augment=mixup does not support text and image columns: title, photo."
            " Drop them with data.columns='{title: drop, photo: drop}', or use augment=none.",
        ),
        (INPUTS, 0.0, "augment.alpha=0.0: must be above 0."),
    ],
)
def test_columns_and_alphas_that_mixup_does_not_support_are_refused(
    inputs: InputSpec, alpha: float, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TableMixup(inputs, alpha=alpha)
