"""Augmentation of training batches, on the device of the batch: image transforms, mixup and cutmix."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.schema import InputSpec, drop_setting

CHUNK = 16
"""Number of images per draw of RandAugment: one draw per image would take longer than the network."""


class Augment(nn.Module):
    """Random flip, crop and RandAugment of images, then mixup or cutmix; for training batches only.

    `flip`: mirrors half of the images horizontally; do not use it for text. `crop`: pads with this many black pixels,
    then crops at random to the original size. `rand_augment`: two of 14 transforms (arXiv 1909.13719). `mixup` (arXiv
    1710.09412) and `cutmix` (arXiv 1905.04899): both parameters of the beta distribution of the mixing weight, 0 to
    disable; if both are set, each batch uses one of them.

    All draws use torch's global generators, so that a resumed run continues with the same draws. Raises ValueError for
    settings that do not fit the images.
    """

    def __init__(
        self,
        spec: InputSpec,
        *,
        flip: bool = False,
        crop: int = 0,
        rand_augment: bool = False,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ) -> None:
        super().__init__()
        side = min((min(image.shape[1:]) for image in spec.images), default=0)
        if not spec.images:
            raise ValueError("augment needs an image column, and there is none: use augment=none.")
        if not 0 <= crop < side:
            raise ValueError(
                f"augment.crop={crop}: must be at least 0 and below the {side} pixels of the shorter side."
            )
        if mixup < 0 or cutmix < 0:
            raise ValueError(f"augment.mixup={mixup}, augment.cutmix={cutmix}: must not be negative.")
        if (mixup > 0 or cutmix > 0) and spec != InputSpec(images=spec.images[:1]):
            raise ValueError(
                "augment.mixup and augment.cutmix need a single image column and no other columns: set both to 0."
            )
        if rand_augment:
            from torchvision.transforms.v2 import RandAugment  # here, because it is slow to import

        self.names = [f"images.{image.name}" for image in spec.images]
        self.flip = flip
        self.crop = crop
        self.rand_augment = RandAugment() if rand_augment else None
        self.mixup = mixup
        self.cutmix = cutmix

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a batch with augmented `images.NAME`, uint8.

        After mixup or cutmix it also has `share` (a scalar), the weight of the row itself, and `other_target`, the
        target of the row that it is mixed with; see `mixed_loss`.
        """
        batch = dict(batch)
        for name in self.names:
            images = batch[name]
            if self.flip:
                images = _flip(images)
            if self.crop > 0:
                images = _crop(images, self.crop)
            if self.rand_augment is not None:
                images = torch.cat([self.rand_augment(chunk) for chunk in torch.split(images, CHUNK)])
            batch[name] = images
        if self.mixup > 0 or self.cutmix > 0:
            chosen = self.mixup > 0 and (self.cutmix == 0 or bool(torch.rand(()) < 0.5))
            mix, alpha = (_mixup, self.mixup) if chosen else (_cutmix, self.cutmix)
            batch[self.names[0]], share = mix(batch[self.names[0]], _draw_share(alpha))
            batch |= _both_targets(batch, share)
        return batch


class TableMixup(nn.Module):
    """Mixup (arXiv 1710.09412) for tables: mixes each training row with another row of the batch.

    Numbers and indicators are weighted means; each category code is taken from the row itself with a probability equal
    to its weight, otherwise from the other row. `alpha`: both parameters of the beta distribution of the weight, which
    is drawn once per batch. Raises ValueError for text and image columns.
    """

    def __init__(self, spec: InputSpec, *, alpha: float = 0.2) -> None:
        super().__init__()
        if spec.texts or spec.images:
            names = [*(text.name for text in spec.texts), *(image.name for image in spec.images)]
            raise ValueError(
                f"augment=mixup does not support text and image columns: {', '.join(names)}."
                f" Drop them with {drop_setting(names)}, or use augment=none."
            )
        if alpha <= 0:
            raise ValueError(f"augment.alpha={alpha}: must be above 0.")
        self.alpha = alpha

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a batch of mixed rows with `share` (a scalar), the weight of `target`, and `other_target`."""
        share = _draw_share(self.alpha)
        numbers, codes = batch["numbers"], batch["codes"]
        own = torch.rand(codes.shape, device=codes.device) < share
        mixed = {
            "numbers": torch.lerp(numbers.roll(1, 0), numbers, share),
            "codes": torch.where(own, codes, codes.roll(1, 0)),
        }
        return batch | mixed | _both_targets(batch, share)


def mixed_loss(loss: nn.Module, output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Returns the loss of a batch; for a mixed batch, the mean of the losses of both targets, weighted by `share`.

    With cross-entropy, which is linear in the target, this equals the loss of the mixed target. With squared error it
    exceeds it by share * (1 - share) * (difference of the targets)^2, a constant, so that gradients are equal. Other
    regression losses have another minimum between both targets; absolute error has it at the target with the larger
    weight.
    """
    value = _mean_loss(loss, output, batch["target"])
    if "share" in batch:
        value = torch.lerp(_mean_loss(loss, output, batch["other_target"]), value, batch["share"])
    return value


def _mean_loss(loss: nn.Module, output: Tensor, target: Tensor) -> Tensor:
    """Mean loss over rows, and over members if `output` is (rows, members, k)."""
    if output.ndim == 3:
        target, output = target.repeat_interleave(output.shape[1]), output.flatten(0, 1)
    value: Tensor = loss(output, target)
    return value


def _draw_share(alpha: float) -> float:
    return float(torch.distributions.Beta(alpha, alpha).sample())


def _both_targets(batch: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    # Batches are shuffled, so the previous row is a random row.
    target = batch["target"]
    return {"other_target": target.roll(1, 0), "share": torch.full((), share, device=target.device)}


def _flip(images: Tensor) -> Tensor:
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def _crop(images: Tensor, padding: int) -> Tensor:
    rows, channels, height, width = images.shape
    device = images.device
    top, left = torch.randint(0, 2 * padding + 1, (2, rows, 1, 1, 1), device=device)
    y = top + torch.arange(height, device=device).view(1, 1, -1, 1)
    x = left + torch.arange(width, device=device)
    row = torch.arange(rows, device=device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, -1, 1, 1)
    return F.pad(images, [padding] * 4)[row, channel, y, x]


def _mixup(images: Tensor, share: float) -> tuple[Tensor, float]:
    mixed = images.float().lerp(images.roll(1, 0).float(), 1 - share)
    return mixed.round().to(torch.uint8), share


def _cutmix(images: Tensor, share: float) -> tuple[Tensor, float]:
    """Pastes a random box of the other image; returns the images and the share of pixels outside the box."""
    half = (1 - share) ** 0.5 / 2
    rows, columns = (
        slice(round(max(middle - half, 0) * size), round(min(middle + half, 1) * size))
        for middle, size in zip(torch.rand(2).tolist(), images.shape[2:], strict=True)
    )
    mixed = images.clone()
    mixed[:, :, rows, columns] = images.roll(1, 0)[:, :, rows, columns]
    return mixed, 1 - mixed[:, :, rows, columns].numel() / mixed.numel()
