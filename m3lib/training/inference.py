"""Apply a trained network: embeddings, in memory or written to a file, and attention maps."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m3lib.data import batches, files
from m3lib.data.manifest import Prepared
from m3lib.retrieval.embeddings import KINDS, Embeddings
from m3lib.systems.base import Outputs, System
from m3lib.training import devices

EMBED_BATCH, GPU_BATCH = 64, 256  # images; only speed depends on it


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Compute the matrix products of the forward pass in bf16; losses and norms stay in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=devices.precision(precision, device) == "bf16")


@torch.no_grad()
def predict(system: System, stored: Tensor, precision: str) -> Outputs:
    """Return the outputs for rows of a store (see `batches.to_tensor`), in evaluation mode, on the network's device."""
    device = system.attribute_of_class.device
    system.eval()
    with autocast(precision, device):
        return system(batches.to_tensor(stored.to(device, non_blocking=True)))


def attention_maps(system: System, prepared: Prepared, rows: np.ndarray, precision: str) -> dict[str, Tensor]:
    """Return attention at image size, (B, N, H, W) float32, under the keys "attribute", "class" and "another class".

    "class": of the image's first class of each attribute, 0 if the image has none. "another class": of the class that
    the network finds most probable among those that the image does not have. Each map sums to about 1. A network
    without attention has no keys.
    """
    outputs, maps = predict(system, batches.read(prepared.images, rows), precision), {}
    if outputs.attribute_maps is not None:
        maps["attribute"] = outputs.attribute_maps.cpu()
    if outputs.class_maps is not None:
        labels = torch.from_numpy(prepared.labels[rows]).split(system.class_counts, dim=1)  # N of (B, M_n)
        class_maps = outputs.class_maps.cpu().split(system.class_counts, dim=1)  # N of (B, M_n, P)
        probable = system.class_probabilities(outputs).cpu().split(system.class_counts, dim=1)  # N of (B, M_n)
        others = [p.masked_fill(y, -1).argmax(dim=1) for p, y in zip(probable, labels, strict=True)]
        known = torch.stack([y.any(dim=1)[:, None] for y in labels], dim=1)  # (B, N, 1)
        for key, chosen in {"class": [y.int().argmax(dim=1) for y in labels], "another class": others}.items():
            of_class = [map_[range(len(rows)), m] for m, map_ in zip(chosen, class_maps, strict=True)]
            maps[key] = torch.stack(of_class, dim=1) * known  # (B, N, P)
    images = batches.to_tensor(prepared.images[rows[:1]])
    return {name: upsample_attention(system, images, value) for name, value in maps.items()}


@torch.no_grad()
def upsample_attention(system: System, images: Tensor, maps: Tensor) -> Tensor:
    """Enlarge maps (B, K, P) to the sides of images (_, 3, H, W): (B, K, H, W), with the same sum per map."""
    device = system.attribute_of_class.device
    sides, grid = images.shape[2:], system.backbone.features(images[:1].to(device)).shape[2:]
    return grid.numel() / sides.numel() * F.interpolate(maps.unflatten(2, grid), sides, mode="bilinear")


def embed(
    system: System, prepared: Prepared, rows: np.ndarray, precision: str, outputs: np.ndarray | None = None
) -> Embeddings:
    """Return the embeddings of manifest rows (ascending), in evaluation mode, half precision, on the CPU.

    Those of a network with two `views` are the mean of an image and its mirror image.
    outputs: the stored outputs of the network's frozen blocks (`activations.stored`), read instead of the images.
    """
    arrays: dict[str, Tensor] = {}
    for block, values in iter_embeddings(system, prepared, rows, precision, outputs):
        for name, value in values.items():
            if name not in arrays:  # allocated once, because concatenating blocks would need twice the memory
                arrays[name] = value.new_empty(len(rows), *value.shape[1:])
            arrays[name][block] = value
    return Embeddings(torch.from_numpy(rows), *(arrays.get(name) for name in KINDS))


def embed_to_file(
    path: Path,
    system: System,
    prepared: Prepared,
    rows: np.ndarray,
    precision: str,
    outputs: np.ndarray | None = None,
) -> None:
    """Write the file that `embed(...).save(path)` writes, block by block, so that memory holds one block."""
    blocks = (
        {"rows": rows[block], **{name: value.numpy() for name, value in values.items()}}
        for block, values in iter_embeddings(system, prepared, rows, precision, outputs)
    )
    files.write_tensors(path, len(rows), blocks)


def iter_embeddings(
    system: System, prepared: Prepared, rows: np.ndarray, precision: str, outputs: np.ndarray | None = None
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Yield (slice of the rows, its embeddings by name) in half precision on the CPU, and read one block ahead."""
    on_gpu, waiting = system.attribute_of_class.device.type == "cuda", []

    def read(block: slice) -> list[Tensor]:
        if outputs is not None:
            return [batches.read(outputs[:, view], rows[block], on_gpu) for view in range(system.views)]
        images = batches.read(prepared.images, rows[block], on_gpu)  # (b, H, W, 3)
        return [images, images.flip(2)] if system.views == 2 else [images]

    blocks = slices(len(rows), on_gpu)
    # A thread for one block would have nothing to overlap with, and its start costs a query milliseconds.
    loaded = batches.prefetch(blocks, read) if len(blocks) > 1 else ((block, read(block)) for block in blocks)
    for block, views in loaded:
        named = zip(KINDS, zip(*(kinds_of(system, view, precision) for view in views), strict=True), strict=True)
        values = {name: mean_of(values, name).half() for name, values in named if values[0] is not None}
        if not on_gpu:
            yield block, values
            continue
        # a block is copied while the GPU computes the next one
        copies, done = {name: value.to("cpu", non_blocking=True) for name, value in values.items()}, torch.cuda.Event()
        done.record()
        waiting.append((block, copies, done))
        if len(waiting) == 2:
            yield copied(*waiting.pop(0))
    for last in waiting:
        yield copied(*last)


def slices(count: int, on_gpu: bool) -> list[slice]:
    """The rows 0 to count - 1, as many at a time as a device embeds at once."""
    size = GPU_BATCH if on_gpu else EMBED_BATCH
    return [slice(start, start + size) for start in range(0, count, size)]


def copied(block: slice, values: dict[str, Tensor], done: torch.cuda.Event) -> tuple[slice, dict[str, Tensor]]:
    """A block, once its copy to the CPU is complete."""
    done.synchronize()
    return block, values


@torch.no_grad()
def kinds_of(system: System, stored: Tensor, precision: str) -> tuple[Tensor | None, ...]:
    """Return the embeddings KINDS of rows of a store; None for a kind that the network does not have."""
    outputs = predict(system, stored, precision)
    return system.retrieval_embedding(outputs), system.class_probabilities(outputs), outputs.classes


def mean_of(views: tuple[Tensor, ...], kind: str) -> Tensor:
    """Return the mean of the views of images; that of unit vectors is scaled to length 1."""
    if len(views) == 1:
        return views[0]
    mean = torch.stack(views).float().mean(dim=0)
    return mean if kind == "posterior" else F.normalize(mean, dim=-1)
