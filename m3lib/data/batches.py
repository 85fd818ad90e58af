"""Images as tensors, read ahead of their use, and as training sees them."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from m3lib.config import Train
from m3lib.data.store import JpegStore

Item = TypeVar("Item")


class Share(NamedTuple):
    """The part of a whole batch that is at hand: what is drawn is drawn for all of it, whoever else has the rest."""

    size: int
    part: slice


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def ahead(items: Iterable[Item], read: Callable[[Item], torch.Tensor]) -> Iterator[tuple[Item, torch.Tensor]]:
    """Each item with what `read` makes of it; a thread reads the next item's while this one is worked on.

    The items are drawn in this thread, the next one before this one is worked on: their order in the generator that
    they come from hangs on no timing.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for item in items:
            coming = item, pool.submit(read, item)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def read(images: np.ndarray | JpegStore, rows: np.ndarray, pin: bool = False) -> torch.Tensor:
    """(B, H, W, 3) uint8 of some rows of an image store; JPEGs are decoded by as many threads as torch uses.

    pin: in memory that a GPU can copy from while it computes.
    """
    if isinstance(images, JpegStore):
        parts = np.array_split(rows, torch.get_num_threads())
        with ThreadPoolExecutor(len(parts)) as pool:
            pixels = np.concatenate(list(pool.map(images.__getitem__, parts)))
    else:
        pixels = images[rows]
    pixels = torch.from_numpy(np.ascontiguousarray(pixels))
    return pixels.pin_memory() if pin else pixels


def to_tensor(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) float32 in channels_last order, normalised by ImageNet's statistics, from (B, H, W, 3) uint8."""
    x = torch.as_tensor(images).permute(0, 3, 1, 2).float()
    mean = torch.tensor(IMAGENET_MEAN, device=x.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=x.device)[:, None, None]
    return x.sub_(255 * mean).div_(255 * std).contiguous(memory_format=torch.channels_last)


def views(batch: torch.Tensor, generator: torch.Generator, train: Train, share: Share | None = None) -> torch.Tensor:
    """(B, 3, H, W): the batch as training sees it, by the settings flip, shift, crop and jitter."""
    batch = augment(batch, generator, train.flip, train.shift, share)
    if train.crop < 1:
        batch = crop_randomly(batch, generator, train.crop, share)
    return jitter(batch, generator, train.jitter, share) if train.jitter else batch


def crop_randomly(
    batch: torch.Tensor, generator: torch.Generator, smallest: float, share: Share | None = None
) -> torch.Tensor:
    """(B, 3, H, W): of each image a random part of its own shape, enlarged; its area is uniform in [smallest, 1]."""
    whole, part = share or (len(batch), slice(None))
    area, x, y = torch.rand(3, whole, generator=generator, device=generator.device)[:, part].to(batch.device)
    side = (smallest + (1 - smallest) * area).sqrt()  # (B,) share of each side
    theta = torch.zeros(len(batch), 2, 3, device=batch.device)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, 0, 2], theta[:, 1, 2] = (2 * x - 1) * (1 - side), (2 * y - 1) * (1 - side)
    grid = F.affine_grid(theta, list(batch.shape), align_corners=False)
    cut = F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cut.contiguous(memory_format=torch.channels_last)


def jitter(batch: torch.Tensor, generator: torch.Generator, amount: float, share: Share | None = None) -> torch.Tensor:
    """(B, 3, H, W): each image's brightness and contrast times a factor in [1 - amount, 1 + amount].

    Hue and saturation stay: they are what classes of colour and texture are told apart by.
    """
    whole, part = share or (len(batch), slice(None))
    drawn = torch.rand(2, whole, generator=generator, device=generator.device)[:, part]
    light, contrast = 1 + amount * (2 * drawn - 1)
    light, contrast = (part.to(batch.device)[:, None, None, None] for part in (light, contrast))
    black = to_tensor(torch.zeros(1, 1, 1, 3, dtype=torch.uint8, device=batch.device))  # (1, 3, 1, 1), normalised
    bright = (batch - black) * light
    mean = bright.mean(dim=(2, 3), keepdim=True)
    return (bright - mean) * contrast + mean + black


def augment(
    batch: torch.Tensor, generator: torch.Generator, flip: bool, shift: float, share: Share | None = None
) -> torch.Tensor:
    """(B, 3, H, W) like the batch: each image mirrored by a coin, then moved by up to shift * side each way.

    What a move uncovers repeats the border. The draws are the generator's, made on its own device; the rest is done on
    the batch's.
    """
    size, _, height, width = batch.shape
    whole, part = share = share or Share(size, slice(None))
    rows = moved(batch, height, shift, generator, share)  # (B, H)
    columns = moved(batch, width, shift, generator, share)  # (B, W)
    if flip:
        mirrored = torch.rand(whole, 1, generator=generator, device=generator.device)[part].to(batch.device) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    image = torch.arange(size, device=batch.device)[:, None, None]
    pixel = (image * height + rows[:, :, None]) * width + columns[:, None, :]  # (B, H, W)
    pixels = batch.permute(0, 2, 3, 1).reshape(-1, 3).index_select(0, pixel.flatten())
    return pixels.view(size, height, width, 3).permute(0, 3, 1, 2)


def moved(batch: torch.Tensor, side: int, shift: float, generator: torch.Generator, share: Share) -> torch.Tensor:
    """(B, side) int64: where each pixel of a side comes from, after one random move per image."""
    reach = int(shift * side)
    move = torch.randint(-reach, reach + 1, (share.size, 1), generator=generator, device=generator.device)[share.part]
    return (torch.arange(side, device=batch.device) + move.to(batch.device)).clamp(0, side - 1)
