"""Embed a catalogue by any number of processes or machines, each a share: `python -m m3lib.search.shares 2/8`.

The images are cut into blocks of BLOCK. Share i of n embeds every n-th block and writes each to a file of its own,
whole or not at all, so that a stopped share goes on with its next block, and shares need neither a coordinator nor each
other. The files lie in a folder that is named after everything that decides their bytes (`folder_of`). The stage
`index` gathers them, embeds those that are missing, and removes the folder when the index is complete. Blocks are the
same whatever the number of shares, so an index has the same bytes with one process or many on machines of one kind.
"""

import argparse
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from m3lib import config, systems
from m3lib.config import Variant
from m3lib.data import code, files, manifest
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.search.index import load_system
from m3lib.systems.base import System
from m3lib.training import devices, inference, trainer

BLOCK = 4096  # images, a multiple of the images that a device embeds at once
SAMPLE = 20_000  # images whose pixels the fingerprint covers: all of ten million would take an hour to read


def rows_of(prepared: Prepared, settings: config.Index) -> np.ndarray:
    """(I,) rising: the rows of the manifest that are indexed. Raises InputError if there are none."""
    rows = np.arange(len(prepared.images)) if settings.images == "all" else prepared.rows("test")
    if not len(rows):
        raise InputError("there is no image to index: the catalogue is empty (params.yaml, index.images)")
    return rows


def fingerprint(prepared: Prepared, rows: np.ndarray, variant: Variant, model: Path, device: torch.device) -> str:
    """A digest of the network, its code, the arithmetic, and the images: their names, and pixels of at most SAMPLE."""
    sample = rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int))]
    pixels = (np.ascontiguousarray(prepared.images[part]).tobytes() for part in np.array_split(sample, 16))
    names = "\n".join(prepared.manifest["image"].iloc[rows])
    arithmetic = f"{device.type} {devices.precision(variant.train.precision, device)} {torch.get_num_threads()} {BLOCK}"
    modules = code.imported_files(inference.__name__, systems.module_of(variant.network))
    return files.digest(f"{variant.network} {asdict(variant.model)} {arithmetic}", names, *pixels, model, *modules)


def blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]


def folder_of(data: Path, mark: str) -> Path:
    """Where the blocks of an index lie, in the folder data/ of the repository."""
    return data / "work" / "shares" / mark[:16]


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{number:06}.safetensors"


def embed(
    folder: Path, system: System, prepared: Prepared, rows: np.ndarray, precision: str, mark: str, share: int, of: int
) -> None:
    """Embed and write the blocks share, share + of, ... that are missing; mark: the fingerprint.

    Raises InputError if a block of another network, of other images, or a damaged one lies in the folder. Two processes
    that embed the same block write the same file.
    """
    own = list(enumerate(blocks(rows)))[share::of]
    missing = [(number, block) for number, block in own if not is_whole(path_of(folder, number), mark)]
    for number, block in tqdm(missing, desc="embed", unit="blocks", disable=len(blocks(rows)) == 1):
        tensors = inference.embed(system, prepared, block, precision).tensors
        own = path_of(folder, number).with_suffix(f".{uuid.uuid4().hex}")  # no other process has this name
        with files.atomic(own) as temporary:
            save_file({name: tensor.numpy() for name, tensor in tensors.items()}, temporary, {"fingerprint": mark})
        os.replace(own, path_of(folder, number))


def is_whole(path: Path, mark: str) -> bool:
    """Whether there is a block. Raises InputError if it is not one of this index."""
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="numpy") as file:
            found = (file.metadata() or {}).get("fingerprint")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} can't be read ({error}): remove it, and its share will embed it again") from None
    if found != mark:
        problem = "was embedded by another network or from other images than this index"
        raise InputError(f"{path} {problem}: remove {path.parent}, or bring the machine that wrote it up to date")
    return True


def gather(path: Path, folder: Path, rows: np.ndarray, mark: str) -> None:
    """Write one file of embeddings from the blocks of all shares."""

    def parts() -> Iterator[dict[str, np.ndarray]]:
        for number, _ in enumerate(blocks(rows)):
            if not is_whole(path_of(folder, number), mark):
                raise InputError(f"{path_of(folder, number)} has gone: run the stage `index` again")
            yield load_file(path_of(folder, number))

    files.write_tensors(path, len(rows), parts())


def share_of(text: str) -> tuple[int, int]:
    """`2/8` as (1, 8). Raises InputError for anything else."""
    share, slash, of = text.partition("/")
    if not (slash and share.isdecimal() and of.isdecimal() and 1 <= int(share) <= int(of)):
        raise InputError(f"{text!r} is no share: write 2/8 for the second of eight")
    return int(share) - 1, int(of)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m m3lib.search.shares")
    parser.add_argument("share", help="such as 2/8, the second of eight")
    try:
        share, of = share_of(parser.parse_args().share)
        root = config.find_root()
        settings, prepared = config.load(root / "params.yaml"), manifest.open_prepared(root / "data" / "prepared")
        variant = settings.variant(settings.index.variant or settings.variants[-1])
        rows = rows_of(prepared, settings.index)
        model = root / "data" / "models" / f"{variant.name}.safetensors"
        trainer.make_deterministic(settings.seed, settings.threads)
        precision = variant.train.precision
        device = devices.choose(settings.accelerator, precision)
        system = load_system(variant, prepared.taxonomy, model).to(device)
        mark = fingerprint(prepared, rows, variant, model, device)
        embed(folder_of(root / "data", mark), system, prepared, rows, precision, mark, share, of)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
