"""The output of a backbone's frozen blocks, computed once per image, kept in a file and mapped into memory.

The file has a row for every image and zeros for those of no split: (I, 2, h, w, c) float16. Index 1 of the second axis
is the mirrored image, for training and for networks that embed two views. It is a cache, in data/work: named by all
that decides its content, made by the first training that needs it, and made again if it is missing.
"""

import fcntl
from pathlib import Path

import numpy as np
import timm
import torch
from tqdm import tqdm

from m3lib.config import Train, Variant
from m3lib.data import batches, files
from m3lib.data.manifest import Prepared
from m3lib.data.store import JpegStore
from m3lib.errors import InputError
from m3lib.systems import backbone as backbone_module
from m3lib.systems.backbone import Backbone
from m3lib.systems.base import System
from m3lib.training import devices
from m3lib.training.inference import EMBED_BATCH, autocast

KEPT = 2  # files of other backbones or data that are not removed


def fits(train: Train) -> bool:
    """Whether the augmentation leaves nothing to a training's images but being mirrored."""
    return not train.shift and train.crop == 1 and not train.jitter


def stored(system: System, prepared: Prepared, variant: Variant, folder: Path) -> np.ndarray | None:
    """Return the outputs of the frozen blocks, (I, 2, h, w, c) float16; computes them if the folder lacks them.

    None if no block is frozen or `model.cache_frozen` is off, or if a network reads pixels anyway. Raises InputError if
    the disk has no room for them.
    """
    backbone = system.backbone
    if not backbone.frozen_blocks or not variant.model.cache_frozen or system.reads_pixels():
        return None
    path = folder / f"{key(backbone, prepared, variant)}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # the processes of one training share the file
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            remove_old(folder)
            write(path, system, prepared, variant)
        path.touch()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def key(backbone: Backbone, prepared: Prepared, variant: Variant) -> str:
    """A digest of the frozen blocks, of the images and their splits, of the arithmetic, and of the code."""
    structure = [f"{name}: {backbone.trunk.get_submodule(name)}" for name in backbone.frozen_blocks]
    frozen = tuple(f"{name}." if name else "" for name in backbone.frozen_blocks)
    weights = [v.cpu().numpy().tobytes() for k, v in backbone.trunk.state_dict().items() if k.startswith(frozen)]
    store = prepared.images
    images = store.path if isinstance(store, JpegStore) else np.ascontiguousarray(store).reshape(-1).data
    device = backbone.mean.device
    arithmetic = (device.type, devices.precision(variant.train.precision, device), torch.get_num_threads())
    normalisation = (backbone.scale, backbone.mean.tolist(), backbone.std.tolist())
    rest = map(str, (*store.shape, *normalisation, *arithmetic, torch.__version__, timm.__version__))
    code = [Path(module) for module in (__file__, batches.__file__, backbone_module.__file__)]
    splits = prepared.manifest["split"].str.cat(sep=" ")
    return files.digest(*structure, *weights, images, splits, *rest, *code)


def remove_old(folder: Path) -> None:
    """Remove all but the files that were used last, and what a killed process left."""
    paths = sorted(folder.glob("*.npy"), key=lambda path: path.stat().st_mtime)
    for path in [*paths[: max(0, len(paths) - KEPT)], *folder.glob("*.part")]:
        path.unlink()


def write(path: Path, system: System, prepared: Prepared, variant: Variant) -> None:
    """Compute the outputs in blocks of images and write them; an interrupted file is removed."""
    count, split = len(prepared.images), prepared.manifest["split"].to_numpy()
    first = frozen_output(system, prepared, np.arange(min(1, count)), variant)  # (1, h, w, c)
    shape = (count, 2, *first.shape[1:])
    advice = "free some space, or set model.cache_frozen to false"
    what = "the outputs of the backbone's frozen blocks take"
    files.require_space(path.parent, 2.0 * np.prod(shape, dtype=np.float64), what, advice)
    bar = tqdm(total=count, desc="frozen blocks", unit="images")
    with files.atomic(path) as temporary, temporary.open("wb") as file, bar:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, EMBED_BATCH):
            rows = np.arange(start, min(start + EMBED_BATCH, count))
            block = np.zeros((len(rows), *shape[1:]), np.float16)
            if (wanted := split[rows] != "none").any():
                for mirrored in (0, 1):
                    block[wanted, mirrored] = frozen_output(system, prepared, rows[wanted], variant, bool(mirrored))
            if not np.isfinite(block).all():
                raise InputError("the backbone's frozen blocks exceed half precision: set model.trainable to all")
            file.write(block.tobytes())
            bar.update(len(rows))


@torch.no_grad()
def frozen_output(
    system: System, prepared: Prepared, rows: np.ndarray, variant: Variant, mirrored: bool = False
) -> np.ndarray:
    """(B, h, w, c) float16: the frozen blocks' output for manifest rows."""
    backbone = system.backbone
    images = batches.to_tensor(batches.read(prepared.images, rows).to(backbone.mean.device))
    with autocast(variant.train.precision, images.device):
        output = backbone.frozen_output(images.flip(3) if mirrored else images)
    return output.permute(0, 2, 3, 1).half().cpu().numpy()
