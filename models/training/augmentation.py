"""Changes to training batches, on the batch's device: images that keep their class, and rows mixed in pairs."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.schema import InputSpec, drop_setting

CHUNK = 16
"""Images that share a draw of RandAugment: one each would take longer than the network does."""


class Augment(nn.Module):
    """Flips, crops, RandAugment, then mixup or cutmix, whichever are asked for. For training batches alone.

    `flip`: mirrors half of the images, left to right; not for writing. `crop`: moves each by up to so many pixels,
    black comes in. `rand_augment`: two of 14 changes of shape or colour (arXiv 1909.13719). `mixup` (1710.09412) and
    `cutmix` (1905.04899): the two parameters of the beta distribution of the shares, 0 for none; with both, each
    batch has the one or the other.

    All draws are from torch's own generators, so that a resumed run goes on as it would have. ValueError for settings
    that do not suit the images.
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
            raise ValueError("augment needs a column of images, and there is none: leave it out.")
        if not 0 <= crop < side:
            raise ValueError(
                f"augment.crop={crop}: must be at least 0 and below the {side} pixels of the shorter side."
            )
        if mixup < 0 or cutmix < 0:
            raise ValueError(f"augment.mixup={mixup}, augment.cutmix={cutmix}: must not be negative.")
        if (mixup > 0 or cutmix > 0) and spec != InputSpec(images=spec.images[:1]):
            raise ValueError(
                "augment.mixup and augment.cutmix are for one column of images alone, and there are others: leave them"
                " out."
            )
        if rand_augment:
            from torchvision.transforms.v2 import RandAugment  # slow to import

        self.names = [f"images.{image.name}" for image in spec.images]
        self.flip = flip
        self.crop = crop
        self.rand_augment = RandAugment() if rand_augment else None
        self.mixup = mixup
        self.cutmix = cutmix

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch with changed `images.NAME`, uint8 as before.

        After mixup or cutmix each image is `share` (a scalar) of its own and the rest of another, whose target is in
        `other_target`: the loss is `mixed_loss`.
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
    """Mixup (arXiv 1710.09412) for tables: each training row becomes a share of its own and the rest of another row.

    Numbers, indicators among them, are means weighted by the shares; a code, which has nothing between two levels, is
    the row's own with the probability of its share, cell by cell. `alpha` is the two parameters of the beta
    distribution of the shares, one draw a batch. ValueError where a column holds texts or images.
    """

    def __init__(self, spec: InputSpec, *, alpha: float = 0.2) -> None:
        super().__init__()
        if spec.texts or spec.images:
            names = [*(text.name for text in spec.texts), *(image.name for image in spec.images)]
            raise ValueError(
                f"augment=mixup mixes numbers and categories alone, and there are texts or images: {', '.join(names)}."
                f" Leave them out with {drop_setting(names)}, or take augment=none."
            )
        if alpha <= 0:
            raise ValueError(f"augment.alpha={alpha}: must be above 0.")
        self.alpha = alpha

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of mixed rows, each with `share` (a scalar) of its own target and the rest of `other_target`."""
        share = _draw_share(self.alpha)
        numbers, codes = batch["numbers"], batch["codes"]
        own = torch.rand(codes.shape, device=codes.device) < share
        mixed = {
            "numbers": torch.lerp(numbers.roll(1, 0), numbers, share),
            "codes": torch.where(own, codes, codes.roll(1, 0)),
        }
        return batch | mixed | _both_targets(batch, share)


def mixed_loss(loss: nn.Module, output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The loss for the targets of a batch; of a mixed one, for both targets by their shares.

    With cross-entropy, which is linear in the target, that is the loss for the mixed target. With squared errors it is
    more than that by share * (1 - share) * (difference of the targets)^2, which no weight changes: the gradient is
    that of the mixed target. Other losses of numbers go to another point between the two: absolute errors to the
    target of the larger share.
    """
    value = _mean_loss(loss, output, batch["target"])
    if "share" in batch:
        value = torch.lerp(_mean_loss(loss, output, batch["other_target"]), value, batch["share"])
    return value


def _mean_loss(loss: nn.Module, output: Tensor, target: Tensor) -> Tensor:
    """Of (rows, members, k) the mean of the members' losses, which is not the loss of their mean."""
    if output.ndim == 3:
        target, output = target.repeat_interleave(output.shape[1]), output.flatten(0, 1)
    value: Tensor = loss(output, target)
    return value


def _draw_share(alpha: float) -> float:
    return float(torch.distributions.Beta(alpha, alpha).sample())


def _both_targets(batch: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    # Batches are shuffled: the row before is any row.
    target = batch["target"]
    return {"other_target": target.roll(1, 0), "share": torch.full((), share, device=target.device)}


def _flip(images: Tensor) -> Tensor:
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def _crop(images: Tensor, most: int) -> Tensor:
    rows, channels, height, width = images.shape
    device = images.device
    top, left = torch.randint(0, 2 * most + 1, (2, rows, 1, 1, 1), device=device)
    y = top + torch.arange(height, device=device).view(1, 1, -1, 1)
    x = left + torch.arange(width, device=device)
    row = torch.arange(rows, device=device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, -1, 1, 1)
    return F.pad(images, [most] * 4)[row, channel, y, x]


def _mixup(images: Tensor, share: float) -> tuple[Tensor, float]:
    mixed = images.float().lerp(images.roll(1, 0).float(), 1 - share)
    return mixed.round().to(torch.uint8), share


def _cutmix(images: Tensor, share: float) -> tuple[Tensor, float]:
    """A box anywhere is the other image's; the share is what is left outside of it."""
    half = (1 - share) ** 0.5 / 2
    rows, columns = (
        slice(round(max(middle - half, 0) * size), round(min(middle + half, 1) * size))
        for middle, size in zip(torch.rand(2).tolist(), images.shape[2:], strict=True)
    )
    mixed = images.clone()
    mixed[:, :, rows, columns] = images.roll(1, 0)[:, :, rows, columns]
    return mixed, 1 - mixed[:, :, rows, columns].numel() / mixed.numel()
