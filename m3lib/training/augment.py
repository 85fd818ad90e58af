"""Augment a batch of training images: flip and shift all of them, crop and jitter all or every second one.

All random numbers are drawn by one generator on its own device; pixels are computed on the device of the batch. Numbers
are drawn for the global batch and then sliced, so augmentation does not depend on the number of processes.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from m3lib.config import Train

BatchSlice = tuple[int, slice]  # the size of a global batch, and this process's rows of it


def augment(
    batch: Tensor, mirrored: Tensor, generator: Generator, train: Train, of: BatchSlice | None = None
) -> Tensor:
    """Return the batch (B, 3, H, W) in [0, 1], augmented as the settings shift, crop and jitter say.

    With keep_originals, every second image is a copy of the one before (`samplers.with_copies`), and only copies are
    cropped and jittered. mirrored: (B,) bool, which images to mirror. of: the global batch that these images belong to;
    None if they are all of it.
    """
    moved = changed = flip_and_shift(batch, mirrored, generator, train.shift, of)
    if train.crop < 1:
        changed = crop_randomly(changed, generator, train.crop, of)
    if train.jitter:
        changed = jitter(changed, generator, train.jitter, of)
    if train.keep_originals:
        changed[::2] = moved[::2]
    return changed


def uniform(count: int, batch: Tensor, generator: Generator, of: BatchSlice | None) -> Tensor:
    """Draw (count, B) numbers in [0, 1)."""
    size, rows = of or (len(batch), slice(None))
    return torch.rand(count, size, generator=generator, device=generator.device)[:, rows].to(batch.device)


def flip_and_shift(
    batch: Tensor, mirrored: Tensor, generator: Generator, shift: float, of: BatchSlice | None = None
) -> Tensor:
    """Mirror the images mirrored (B,) bool, then move each image by up to shift * side in each direction.

    Where the move uncovers an area, border pixels are repeated.
    """
    size, _, height, width = batch.shape
    rows = shifted_indices(batch, height, shift, generator, of)  # (B, H)
    columns = shifted_indices(batch, width, shift, generator, of)  # (B, W)
    columns = torch.where(mirrored.to(batch.device)[:, None], width - 1 - columns, columns)
    image = torch.arange(size, device=batch.device)[:, None, None]
    pixel = (image * height + rows[:, :, None]) * width + columns[:, None, :]  # (B, H, W)
    pixels = batch.permute(0, 2, 3, 1).reshape(-1, 3).index_select(0, pixel.flatten())
    return pixels.view(size, height, width, 3).permute(0, 3, 1, 2)


def shifted_indices(batch: Tensor, side: int, shift: float, generator: Generator, of: BatchSlice | None) -> Tensor:
    """Return (B, side) int64: for each pixel along one side, the index it is read from after one random move."""
    size, rows = of or (len(batch), slice(None))
    reach = int(shift * side)
    if not reach:
        return torch.arange(side, device=batch.device).expand(len(batch), -1)
    move = torch.randint(-reach, reach + 1, (size, 1), generator=generator, device=generator.device)[rows]
    return (torch.arange(side, device=batch.device) + move.to(batch.device)).clamp(0, side - 1)


def crop_randomly(batch: Tensor, generator: Generator, smallest: float, of: BatchSlice | None = None) -> Tensor:
    """Enlarge a random crop of each image, with the image's aspect ratio and an area uniform in [smallest, 1]."""
    area, x, y = uniform(3, batch, generator, of)
    side = (smallest + (1 - smallest) * area).sqrt()  # (B,) relative to the image's side
    theta = torch.zeros(len(batch), 2, 3, device=batch.device)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, 0, 2], theta[:, 1, 2] = (2 * x - 1) * (1 - side), (2 * y - 1) * (1 - side)
    grid = F.affine_grid(theta, list(batch.shape), align_corners=False)
    crops = F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return crops.contiguous(memory_format=torch.channels_last)


def jitter(batch: Tensor, generator: Generator, amount: float, of: BatchSlice | None = None) -> Tensor:
    """Multiply the brightness and the contrast of each image by factors in [1 - amount, 1 + amount].

    Hue and saturation are not changed, because they distinguish classes of colour and texture.
    """
    brightness, contrast = (1 + amount * (2 * uniform(2, batch, generator, of) - 1))[:, :, None, None, None]
    bright = batch * brightness
    mean = bright.mean(dim=(2, 3), keepdim=True)
    return (bright - mean) * contrast + mean
