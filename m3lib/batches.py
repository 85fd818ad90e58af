"""Batches for training: which images, as tensors, and augmented."""

from collections.abc import Iterator

import numpy as np
import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def epoch_batches(num_images: int, batch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Index tensors, (batch,) int64, of one shuffled epoch.

    The rest that fills no batch is left for another epoch, unless the set is smaller than one batch.
    """
    order = torch.randperm(num_images, generator=generator)
    if num_images >= batch:
        order = order[: num_images - num_images % batch]
    yield from order.split(batch)


def to_tensor(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) float32 in channels_last order, normalised by ImageNet's statistics, from (B, H, W, 3) uint8."""
    x = torch.as_tensor(images).permute(0, 3, 1, 2).float()
    mean = torch.tensor(IMAGENET_MEAN, device=x.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=x.device)[:, None, None]
    return x.sub_(255 * mean).div_(255 * std).contiguous(memory_format=torch.channels_last)


def augment(batch: torch.Tensor, generator: torch.Generator, flip: bool, shift: float) -> torch.Tensor:
    """(B, 3, H, W) like the batch: each image mirrored by a coin, then moved by up to shift * side each way.

    What a move uncovers repeats the border. The draws are the generator's, made on its own device.
    """
    size, _, height, width = batch.shape
    rows = moved(size, height, shift, generator)  # (B, H)
    columns = moved(size, width, shift, generator)  # (B, W)
    if flip:
        mirrored = torch.rand(size, 1, generator=generator, device=generator.device) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    image = torch.arange(size, device=generator.device)[:, None, None]
    pixel = (image * height + rows[:, :, None]) * width + columns[:, None, :]  # (B, H, W)
    pixels = batch.permute(0, 2, 3, 1).reshape(-1, 3).index_select(0, pixel.flatten().to(batch.device))
    return pixels.view(size, height, width, 3).permute(0, 3, 1, 2)


def moved(size: int, side: int, shift: float, generator: torch.Generator) -> torch.Tensor:
    """(B, side) int64: where each pixel of a side comes from, after one random move per image."""
    reach = int(shift * side)
    move = torch.randint(-reach, reach + 1, (size, 1), generator=generator, device=generator.device)
    return (torch.arange(side, device=generator.device) + move).clamp(0, side - 1)
