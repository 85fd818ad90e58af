"""Images as tensors, and as training sees them."""

import numpy as np
import torch
import torch.nn.functional as F

from m3lib.config import Train

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_tensor(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) float32 in channels_last order, normalised by ImageNet's statistics, from (B, H, W, 3) uint8."""
    x = torch.as_tensor(images).permute(0, 3, 1, 2).float()
    mean = torch.tensor(IMAGENET_MEAN, device=x.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=x.device)[:, None, None]
    return x.sub_(255 * mean).div_(255 * std).contiguous(memory_format=torch.channels_last)


def views(batch: torch.Tensor, generator: torch.Generator, train: Train) -> torch.Tensor:
    """(B, 3, H, W): the batch as training sees it, by the settings flip, shift, crop and jitter."""
    batch = augment(batch, generator, train.flip, train.shift)
    if train.crop < 1:
        batch = crop_randomly(batch, generator, train.crop)
    return jitter(batch, generator, train.jitter) if train.jitter else batch


def crop_randomly(batch: torch.Tensor, generator: torch.Generator, smallest: float) -> torch.Tensor:
    """(B, 3, H, W): of each image a random part of its own shape, enlarged; its area is uniform in [smallest, 1]."""
    area, x, y = torch.rand(3, len(batch), generator=generator, device=generator.device).to(batch.device)
    side = (smallest + (1 - smallest) * area).sqrt()  # (B,) share of each side
    theta = torch.zeros(len(batch), 2, 3, device=batch.device)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, 0, 2], theta[:, 1, 2] = (2 * x - 1) * (1 - side), (2 * y - 1) * (1 - side)
    grid = F.affine_grid(theta, list(batch.shape), align_corners=False)
    cut = F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cut.contiguous(memory_format=torch.channels_last)


def jitter(batch: torch.Tensor, generator: torch.Generator, amount: float) -> torch.Tensor:
    """(B, 3, H, W): each image's brightness and contrast times a factor in [1 - amount, 1 + amount].

    Hue and saturation stay: they are what classes of colour and texture are told apart by.
    """
    light, contrast = 1 + amount * (2 * torch.rand(2, len(batch), generator=generator, device=generator.device) - 1)
    light, contrast = (part.to(batch.device)[:, None, None, None] for part in (light, contrast))
    black = to_tensor(torch.zeros(1, 1, 1, 3, dtype=torch.uint8, device=batch.device))  # (1, 3, 1, 1), normalised
    bright = (batch - black) * light
    mean = bright.mean(dim=(2, 3), keepdim=True)
    return (bright - mean) * contrast + mean + black


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
