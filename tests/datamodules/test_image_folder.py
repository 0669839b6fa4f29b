from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from common.image_decoder import decode
from datamodules.features.images import Images

SIZES = st.integers(1, 40)
CHANNELS = st.sampled_from([1, 3])
SHAPES = st.tuples(CHANNELS, SIZES, SIZES)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray((image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy())


@settings(max_examples=60, deadline=None)
@given(old=SHAPES, shape=SHAPES)
@example(old=(3, 2, 2), shape=(1, 1, 1))
def test_one_image_a_batch_and_the_artifact_agree(old: tuple[int, int, int], shape: tuple[int, int, int]) -> None:
    images = Images(["photo"], [shape])
    batch = noise(3, *old)
    fitted = images({"photo": batch, "unknown": batch}, 3)
    assert list(fitted) == ["images.photo"]
    assert fitted["images.photo"].shape == (3, *shape)
    assert fitted["images.photo"].dtype == torch.uint8
    for row in range(3):
        assert torch.equal(images.fit("photo", batch[row]), fitted["images.photo"][row])
    scripted = torch.jit.script(images)
    assert torch.equal(scripted({"photo": batch}, 3)["images.photo"], fitted["images.photo"])
    assert torch.equal(scripted.fit("photo", batch[0]), fitted["images.photo"][0])
    # Images of the right shape are unchanged.
    assert torch.equal(images.fit("photo", fitted["images.photo"][0]), fitted["images.photo"][0])


def test_a_photograph_is_cropped_and_resized_as_by_pillow(data_dir: Path) -> None:
    photo = decode(data_dir / "hymenoptera" / "train" / "ants" / "0013035.jpg")
    assert photo.shape == (3, 512, 768)
    for shape, box in {(3, 64, 64): (128, 0, 640, 512), (3, 30, 90): (0, 128, 768, 384)}.items():
        fitted = to_pillow(Images(["photo"], [shape]).fit("photo", photo))
        expected = to_pillow(photo).crop(box).resize((shape[2], shape[1]), Image.Resampling.BILINEAR)
        difference = torch.tensor(list(fitted.tobytes())) - torch.tensor(list(expected.tobytes()))
        assert difference.abs().max() <= 1


def test_color_becomes_gray_as_in_pillow_and_gray_becomes_color() -> None:
    color = noise(3, 50, 60)
    gray = Images(["photo"], [(1, 50, 60)]).fit("photo", color)
    assert to_pillow(gray).tobytes() == to_pillow(color).convert("L").tobytes()
    assert torch.equal(Images(["photo"], [(3, 50, 60)]).fit("photo", gray), gray.expand(3, 50, 60))


def test_a_single_pixel_and_a_long_strip_become_a_uniform_image() -> None:
    images = Images(["photo"], [(1, 8, 8)])
    for height, width in [(1, 1), (1, 16_384), (16_384, 1)]:
        assert torch.equal(
            images.fit("photo", torch.full((3, height, width), 7).byte()), torch.full((1, 8, 8), 7).byte()
        )


def test_absent_columns_are_black_and_batches_may_be_empty() -> None:
    images = torch.jit.script(Images(["photo", "scan"], [(3, 4, 5), (1, 2, 2)]))
    fitted = images({"scan": noise(2, 1, 9, 9)}, 2)
    assert torch.equal(fitted["images.photo"], torch.zeros(2, 3, 4, 5).byte())
    assert images({"photo": noise(0, 1, 9, 9)}, 0)["images.photo"].shape == (0, 3, 4, 5)
    assert torch.jit.script(Images([], []))({}, 2) == {}


@pytest.mark.parametrize("wrong", [noise(1, 4, 8, 8), noise(3, 8, 8), noise(1, 1, 8, 8).float()])
def test_pixels_of_another_shape_or_type_are_refused(wrong: Tensor) -> None:
    message = r"^images must be uint8 \(rows, 1 or 3, height, width\), not torch\.\w+ torch\.Size\(\[.*\]\)$"
    with pytest.raises(ValueError, match=message):
        Images(["photo"], [(1, 8, 8)])({"photo": wrong}, 1)
