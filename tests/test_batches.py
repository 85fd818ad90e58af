"""Augmentation against a naive loop, and the bookkeeping of an epoch."""

import numpy as np
import pytest
import torch

from m3lib import batches


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_augment(batch: torch.Tensor, draws: torch.Generator, flip: bool, shift: float) -> torch.Tensor:
    size, _, height, width = batch.shape
    reach_y, reach_x = int(shift * height), int(shift * width)
    down = torch.randint(-reach_y, reach_y + 1, (size, 1), generator=draws)
    right = torch.randint(-reach_x, reach_x + 1, (size, 1), generator=draws)
    mirrored = torch.rand(size, 1, generator=draws) < 0.5 if flip else torch.zeros(size, 1, dtype=torch.bool)
    out = torch.empty_like(batch)
    for i in range(size):
        image = batch[i].flip(-1) if mirrored[i] else batch[i]
        for y in range(height):
            for x in range(width):
                from_y = min(max(y + int(down[i]), 0), height - 1)
                from_x = min(max(x + int(right[i]), 0), width - 1)
                out[i, :, y, x] = image[:, from_y, from_x]
    return out


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("shift", [0.0, 0.2, 1.0])
def test_augment_equals_a_naive_loop(flip, shift):
    batch = torch.randn(5, 3, 11, 8, generator=generator(1))
    for layout in (torch.contiguous_format, torch.channels_last):
        given = batch.contiguous(memory_format=layout)
        got = batches.augment(given, generator(2), flip, shift)
        torch.testing.assert_close(got, naive_augment(batch, generator(2), flip, shift), rtol=0, atol=0)
        assert got.is_contiguous(memory_format=torch.channels_last)


def test_augment_without_flip_or_shift_changes_nothing():
    batch = torch.randn(4, 3, 6, 6)
    assert torch.equal(batches.augment(batch, generator(), flip=False, shift=0.0), batch)


def test_augment_moves_both_ways_mirrors_half_and_differs_between_images():
    ramp = torch.arange(20.0).expand(400, 3, 20, 20)
    moved = batches.augment(ramp, generator(), flip=False, shift=0.1)
    assert set((moved[:, 0, 10, 10] - 10).tolist()) == {-2, -1, 0, 1, 2}
    mirrored = batches.augment(ramp, generator(), flip=True, shift=0.0)[:, 0, 0, 0] == 19
    assert 0.4 < mirrored.float().mean() < 0.6


def test_to_tensor_normalises_by_imagenet():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    got = batches.to_tensor(images)
    expected = (images / 255 - batches.IMAGENET_MEAN) / batches.IMAGENET_STD
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-5, atol=1e-5)
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_shows_each_image_at_most_once_in_whole_batches():
    found = list(batches.epoch_batches(23, 5, generator()))
    assert [len(batch) for batch in found] == [5, 5, 5, 5]
    assert len(set(torch.cat(found).tolist())) == 20


def test_a_set_smaller_than_a_batch_is_one_batch():
    (only,) = batches.epoch_batches(3, 5, generator())
    assert sorted(only.tolist()) == [0, 1, 2]


def test_an_epoch_is_the_generators():
    draws = generator()
    first, second = (torch.cat(list(batches.epoch_batches(20, 5, draws))) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, torch.cat(list(batches.epoch_batches(20, 5, generator()))))
