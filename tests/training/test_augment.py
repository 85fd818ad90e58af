"""Images as tensors, and augmentation against naive loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from m3lib.data import batches
from m3lib.training import augment
from reference import bilinear
from tiny import SETTINGS, generator


def naive_augment(batch: torch.Tensor, mirrored: torch.Tensor, draws: torch.Generator, shift: float) -> torch.Tensor:
    size, _, height, width = batch.shape
    reach_y, reach_x = int(shift * height), int(shift * width)
    down, right = torch.zeros(2, size, 1)
    if reach_y:
        down = torch.randint(-reach_y, reach_y + 1, (size, 1), generator=draws)
    if reach_x:
        right = torch.randint(-reach_x, reach_x + 1, (size, 1), generator=draws)
    out = torch.empty_like(batch)
    for i in range(size):
        image = batch[i].flip(-1) if mirrored[i] else batch[i]
        for y in range(height):
            for x in range(width):
                from_y = min(max(y + int(down[i]), 0), height - 1)
                from_x = min(max(x + int(right[i]), 0), width - 1)
                out[i, :, y, x] = image[:, from_y, from_x]
    return out


@pytest.mark.parametrize("mirrored", [[True, False, True, True, False], [False] * 5])
@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2, 1.0])
def test_augment_equals_a_naive_loop(mirrored, shift):
    mirrored = torch.tensor(mirrored)
    batch = torch.randn(5, 3, 11, 8, generator=generator(1))
    for layout in (torch.contiguous_format, torch.channels_last):
        given = batch.contiguous(memory_format=layout)
        got = augment.flip_and_shift(given, mirrored, generator(2), shift)
        torch.testing.assert_close(got, naive_augment(batch, mirrored, generator(2), shift), rtol=0, atol=0)
        assert got.is_contiguous(memory_format=torch.channels_last)


def test_augment_moves_both_ways_and_differs_between_images():
    ramp = torch.arange(20.0).expand(400, 3, 20, 20)
    moved = augment.flip_and_shift(ramp, torch.zeros(400, dtype=torch.bool), generator(), shift=0.1)
    assert set((moved[:, 0, 10, 10] - 10).tolist()) == {-2, -1, 0, 1, 2}


def test_to_tensor_gives_numbers_from_0_to_1():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    got = batches.to_tensor(images)
    expected = images / 255
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-5, atol=1e-5)
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("smallest", [0.05, 0.5, 0.9])
def test_crop_randomly_equals_a_bilinear_loop(smallest):
    batch = torch.randn(4, 3, 9, 7, generator=generator(1))
    got = augment.crop_randomly(batch, generator(2), smallest)
    pixels = batch.double()
    area, right, down = torch.rand(3, 4, generator=generator(2), dtype=torch.float32).double()
    expected = torch.empty(4, 3, 9, 7, dtype=torch.float64)
    for i in range(4):
        side = float(smallest + (1 - smallest) * area[i]) ** 0.5
        top, left = float(down[i]) * (9 - 9 * side), float(right[i]) * (7 - 7 * side)
        for y in range(9):
            for x in range(7):
                expected[i, :, y, x] = bilinear(pixels[i], top + (y + 0.5) * side, left + (x + 0.5) * side)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-4)
    assert got.is_contiguous(memory_format=torch.channels_last)


def to_pixels(batch: torch.Tensor) -> np.ndarray:
    """(B, H, W, 3) float64 in [0, 1], of a normalised batch."""
    return batch.permute(0, 2, 3, 1).double().numpy()


@pytest.mark.parametrize("amount", [0.2, 0.9])
def test_jitter_is_brightness_then_contrast_of_the_pixels(amount):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
    got = to_pixels(augment.jitter(batches.to_tensor(images), generator(4), amount))
    light, contrast = (1 - amount + 2 * amount * torch.rand(2, 5, generator=generator(4))).double().numpy()
    for i in range(5):
        bright = light[i] * images[i] / 255
        mean = bright.mean(axis=(0, 1))  # (3,)
        np.testing.assert_allclose(got[i], mean + contrast[i] * (bright - mean), atol=1e-5)
    assert np.ptp(light) > 0.5 * amount
    assert np.ptp(contrast) > 0.5 * amount


def make_train(**changes: object):
    return replace(SETTINGS.train, **({"shift": 0.2, "crop": 1.0, "jitter": 0.0} | changes))


@pytest.mark.parametrize("changes", [{"crop": 0.5}, {"jitter": 0.2}, {"crop": 0.5, "jitter": 0.2}])
def test_views_are_augment_then_crop_then_jitter_and_the_generators(changes):
    batch, draws, train = torch.randn(6, 3, 10, 10, generator=generator(1)), generator(2), make_train(**changes)
    mirrored = torch.arange(6) < 3
    expected = augment.flip_and_shift(batch, mirrored, draws, train.shift)
    if "crop" in changes:
        expected = augment.crop_randomly(expected, draws, 0.5)
    if "jitter" in changes:
        expected = augment.jitter(expected, draws, 0.2)
    before = batch.clone()
    assert torch.equal(augment.augment(batch, mirrored, generator(2), train), expected)
    assert torch.equal(batch, before)
    assert not torch.equal(augment.augment(batch, mirrored, generator(3), train), expected)
    expected[[0, 2, 4]] = augment.flip_and_shift(batch, mirrored, generator(2), train.shift)[[0, 2, 4]]
    train = make_train(**changes, keep_originals=True)  # images 1, 3, 5 are copies, and the only ones that change
    assert torch.equal(augment.augment(batch, mirrored, generator(2), train), expected)
