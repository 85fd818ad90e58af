"""The data sets that the search (`tune`) and the record (`record`) share, prepared once per seed.

Each seed draws other images, or other splits of the photos. The photos lie in PHOTOS, a folder with
catalogue/catalogue.csv, street/street.csv and tees/tees.csv; `../shared` unless the environment says otherwise.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from m3lib import config, prepare, systems
from m3lib.config import Settings, Variant
from m3lib.data import manifest
from m3lib.data.files import digest
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.pipeline.convert_weights import convert_all
from m3lib.prepare import pack, splits
from m3lib.systems.base import System
from m3lib.training import activations
from m3lib.training.run import fit
from m3lib.validation import read_yaml

LEFT_OUT = [
    "texture: plaid", "texture: paisley", "fabric: knit", "fabric: chiffon", "shape: bodycon", "part: bell sleeve",
    "style: glam",
]  # fmt: skip
PRODUCTS = ["gender", "category", "colour", "season", "usage"]
LEFT_OUT_PRODUCTS = [
    "category: kurtas", "category: sandals", "category: watches", "category: backpacks", "colour: navy blue",
    "colour: orange", "usage: formal",
]  # fmt: skip
SETS: dict[str, dict] = {
    "multi": {"wardrobe": {"track": "multi"}},
    "single": {"wardrobe": {"track": "single"}},
    "partial": {"wardrobe": {"track": "partial"}},
    "catalogue": {"source": "csv", "csv": {"attributes": PRODUCTS}},
    "street": {"source": "csv", "split": {"query": 1}},  # small: every test image asks all others
    "tees": {"source": "csv", "split": {"query": 1}},
    "unseen": {"train": {"held_out": LEFT_OUT}},
    "unseen-catalogue": {
        "source": "csv",
        "csv": {"attributes": PRODUCTS},
        "train": {"held_out": LEFT_OUT_PRODUCTS},
    },
    "ablation": {},
    "scratch": {"model": {"pretrained": False, "trainable": "all"}},
}
SAME_IMAGES = dict.fromkeys(("unseen", "ablation", "scratch"), "multi") | {"unseen-catalogue": "catalogue"}
ROWS = (  # those of the default run, then the controls
    "frozen", "classifier", "classifier_bce", "asen", "asen_v2", "asen_pp", "modc", "m3_a", "m3_c", "m3",
    "duet", "asen_v2_contrast", "modc_contrast", "asen_v2_l1", "asen_v2_l1_softmax", "asen_v2_softmax", "m3_softmax",
    "m3_shared",
)  # fmt: skip


def settings_of(name: str, seed: int) -> Settings:
    """params.yaml for a set and a seed, on one thread: run as many processes as there are cores."""
    if name not in SETS:
        raise InputError(f"{name} is not a data set; choose from {', '.join(SETS)}")
    values = read_yaml(config.find_root() / "params.yaml")
    for key, changes in SETS[name].items():
        values[key] = values[key] | changes if isinstance(changes, dict) else changes
    values |= {"seed": seed, "threads": 1, "accelerator": "cpu"}
    values["wardrobe"]["seed"] = values["split"]["seed"] = seed
    photos = Path(os.environ.get("PHOTOS", config.find_root().parent / "shared"))
    images = SAME_IMAGES.get(name, name)
    values["csv"] = values["csv"] | {"table": str(photos / images / f"{images}.csv")}
    return config.parse(values)


def data_settings(settings: Settings) -> str:
    """What decides the images, labels and splits of a set, as text."""
    of_source = settings.wardrobe
    if settings.source == "csv":
        of_source = replace(settings.csv, table=Path(settings.csv.table).name)  # wherever the photos are
    return f"{settings.source} {of_source} {settings.images} {settings.split}"


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock file: of all processes, one at a time."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def open_set(name: str, seed: int) -> tuple[Settings, Prepared, Path]:
    """The settings and the images of a set, prepared if need be, and the folder for the outputs of frozen blocks."""
    root, settings = config.find_root(), settings_of(name, seed)
    torch.set_num_threads(settings.threads)
    work = root / "data" / "work" / "sets"
    work.mkdir(parents=True, exist_ok=True)
    folder = work / f"{SAME_IMAGES.get(name, name)}-{seed}-{digest(data_settings(settings))[:8]}"
    with alone(folder.with_suffix(".lock")):  # one process prepares
        if not folder.exists():
            unfinished = folder.with_suffix(".part")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            source = splits.draw(pack.pack(prepare.read(settings), unfinished, settings.images), settings.split)
            manifest.save(source, unfinished)
            unfinished.rename(folder)
    with alone(work / "imagenet.lock"):
        if not (root / "data" / "imagenet").exists():
            convert_all(config.load(root / "params.yaml"))
    return settings, manifest.open_prepared(folder), folder


@contextmanager
def trained(
    settings: Settings, prepared: Prepared, row: Variant, work: Path
) -> Iterator[tuple[System, pd.DataFrame, np.ndarray | None]]:
    """Train a row; yields the network, its curves, and the stored outputs of its frozen blocks.

    `curves.attrs` has the CPU seconds of the training, without those of the stored outputs.
    """
    cache = work / "activations"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        (Path(folder) / "activations").symlink_to(cache)
        activations.stored(systems.build(row, prepared.taxonomy), prepared, row, cache)
        start = time.process_time()
        system, curves = fit(prepared, row, settings.seed, settings.threads, Path(folder) / "checkpoint.safetensors")
        curves.attrs["CPU seconds"] = time.process_time() - start
        yield system, curves, activations.stored(system, prepared, row, cache)


def third(prepared: Prepared) -> Prepared:
    """The same data with every third of its training images."""
    frame, rows = prepared.manifest.copy(), prepared.rows("train")
    frame.loc[[row for i, row in enumerate(rows) if i % 3], ["split", "role"]] = ["none", "unlabelled"]
    return replace(prepared, manifest=frame)
