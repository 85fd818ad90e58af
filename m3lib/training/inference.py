"""What a trained network says of images: embeddings, in memory or streamed to a file, and where it looks."""

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

EMBED_BATCH = 256  # images; only speed depends on it


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """bf16 for the matrix products of the forward pass; losses and norms stay in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=devices.precision(precision, device) == "bf16")


@torch.no_grad()
def forward(system: System, prepared: Prepared, rows: np.ndarray, precision: str) -> Outputs:
    """The network's outputs for a few manifest rows, in evaluation mode, on the CPU."""
    outputs = see(system, batches.read(prepared.images, rows), precision)
    return Outputs(*(part if part is None else part.cpu() for part in outputs))


@torch.no_grad()
def see(system: System, pixels: Tensor, precision: str) -> Outputs:
    """The network's outputs for (B, H, W, 3) uint8 pixels, in evaluation mode, on the network's own device."""
    device = system.attribute_of_class.device
    system.eval()
    with autocast(precision, device):
        return system(batches.to_tensor(pixels.to(device, non_blocking=True)))


def look(system: System, prepared: Prepared, rows: np.ndarray, precision: str) -> dict[str, Tensor]:
    """Where a network looks in some pictures: (B, N, H, W) float32 attention at pixel size, by whose it is.

    "attribute": of every attribute; "class": of the first class that the picture carries under each attribute, 0 where
    it is unknown. Sums over pixels are about 1. Empty for a network without attention.
    """
    outputs, found = forward(system, prepared, rows, precision), {}
    if outputs.attribute_maps is not None:
        found["attribute"] = outputs.attribute_maps
    if outputs.class_maps is not None:
        labels = torch.from_numpy(prepared.labels[rows])  # (B, M)
        groups = zip(labels.split(system.sizes, 1), outputs.class_maps.split(system.sizes, 1), strict=True)
        first = [(own.int().argmax(dim=1), own.any(dim=1), maps) for own, maps in groups]
        found["class"] = torch.stack([maps[range(len(rows)), m] * known[:, None] for m, known, maps in first], dim=1)
    pictures = batches.to_tensor(prepared.images[rows[:1]])
    return {name: at_pixels(system, pictures, maps) for name, maps in found.items()}


@torch.no_grad()
def at_pixels(system: System, pictures: Tensor, maps: Tensor) -> Tensor:
    """(B, K, H, W): maps (B, K, P) over the positions that the backbone makes of pictures (_, 3, H, W), enlarged.

    Each pixel gets its share of a position's weight.
    """
    device = system.attribute_of_class.device
    sides, grid = pictures.shape[2:], system.backbone.features(pictures[:1].to(device)).shape[2:]
    share = grid.numel() / sides.numel()
    return share * F.interpolate(maps.unflatten(2, grid), sides, mode="bilinear")


def embed(system: System, prepared: Prepared, rows: np.ndarray, precision: str) -> Embeddings:
    """The embeddings of some manifest rows (rising), in evaluation mode and half precision, on the CPU."""
    whole: dict[str, Tensor] = {}
    for part, found in embedded(system, prepared, rows, precision):
        for name, value in found.items():
            if name not in whole:  # made once: gathered parts would be held twice
                whole[name] = value.new_empty(len(rows), *value.shape[1:])
            whole[name][part] = value
    return Embeddings(torch.from_numpy(rows), *(whole.get(name) for name in KINDS))


def embed_to_file(path: Path, system: System, prepared: Prepared, rows: np.ndarray, precision: str) -> None:
    """Write the file that `embed(...).save(path)` writes, block by block, so that memory holds one block."""
    blocks = (
        {"rows": rows[part], **{name: value.numpy() for name, value in block.items()}}
        for part, block in embedded(system, prepared, rows, precision)
    )
    files.write_tensors(path, len(rows), blocks)


def embedded(
    system: System, prepared: Prepared, rows: np.ndarray, precision: str
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """(part of the rows, its embeddings in half precision, on the CPU); the next part is read while one is computed."""
    pin = system.attribute_of_class.device.type == "cuda"
    parts = [slice(start, start + EMBED_BATCH) for start in range(0, len(rows), EMBED_BATCH)]
    for part, pixels in batches.prefetch(parts, lambda part: batches.read(prepared.images, rows[part], pin)):
        outputs = see(system, pixels, precision)
        with torch.no_grad():
            found = (system.stored_attribute(outputs), system.posterior(outputs), outputs.classes)
        named = zip(KINDS, found, strict=True)
        yield part, {name: value.half().cpu() for name, value in named if value is not None}
