"""Read batches of images from a store, one batch ahead of the computation, and convert them to network input."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import TypeVar

import numpy as np
import torch

from m3lib.data.store import JpegStore

Item = TypeVar("Item")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def prefetch(items: Iterable[Item], read: Callable[[Item], torch.Tensor]) -> Iterator[tuple[Item, torch.Tensor]]:
    """Yield each item with `read(item)`; a thread reads the next item while the caller works on this one.

    Items are drawn in the calling thread, so random state does not depend on thread timing.
    """
    with ThreadPoolExecutor(1) as pool:
        submitted = ((item, pool.submit(read, item)) for item in items)
        for (item, future), _ in pairwise(chain(submitted, [None])):
            yield item, future.result()


def read(images: np.ndarray | JpegStore, rows: np.ndarray, pin: bool = False) -> torch.Tensor:
    """Return (B, H, W, 3) uint8, the given rows of an image store; as many threads as torch uses decode JPEGs.

    pin: use page-locked memory, from which a GPU can copy while it computes.
    """
    if isinstance(images, JpegStore):
        groups = np.array_split(rows, torch.get_num_threads())
        with ThreadPoolExecutor(len(groups)) as pool:
            pixels = np.concatenate(list(pool.map(images.__getitem__, groups)))
    else:
        pixels = images[rows]
    pixels = torch.from_numpy(np.ascontiguousarray(pixels))
    return pixels.pin_memory() if pin else pixels


def to_tensor(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Convert (B, H, W, 3) uint8 to (B, 3, H, W) float32 in channels_last order, normalised by ImageNet statistics."""
    x = torch.as_tensor(images).permute(0, 3, 1, 2).float()
    mean = torch.tensor(IMAGENET_MEAN, device=x.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=x.device)[:, None, None]
    return x.sub_(255 * mean).div_(255 * std).contiguous(memory_format=torch.channels_last)
