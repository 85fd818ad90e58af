"""Read batches of images from a store, one batch ahead of the computation, and convert them to network input."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import TypeVar

import numpy as np
import torch

from m3lib.data.store import JpegStore

Item = TypeVar("Item")


def prefetch(items: Iterable[Item], read: Callable[[Item], torch.Tensor]) -> Iterator[tuple[Item, torch.Tensor]]:
    """Yield each item with `read(item)`; a thread reads the next item while the caller works on this one.

    Items are drawn in the calling thread, so random state does not depend on thread timing.
    """
    with ThreadPoolExecutor(1) as pool:
        submitted = ((item, pool.submit(read, item)) for item in items)
        for (item, future), _ in pairwise(chain(submitted, [None])):
            yield item, future.result()


def read(images: np.ndarray | JpegStore, rows: np.ndarray, pin: bool = False) -> torch.Tensor:
    """Return the given rows of an image store, (B, H, W, 3) uint8, or of stored outputs, (B, h, w, c) float16.

    As many threads as torch uses decode JPEGs.

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


def to_tensor(stored: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Convert rows of a store to network input, float32 in channels_last order.

    (B, H, W, 3) uint8, pixels: (B, 3, H, W) in [0, 1]. (B, h, w, c) float16, the output of frozen blocks: (B, c, h, w).
    """
    stored = torch.as_tensor(stored)
    x = stored.permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last)
    return x.div_(255) if stored.dtype == torch.uint8 else x
