"""The data sets that the search (`tune`) and the record (`record`) share, prepared once per seed in data/work/sets.

A seed draws the images of a drawn set anew, and the splits of a set of photos. The photos lie in PHOTOS, a folder with
catalogue/catalogue.csv, street/street.csv and tees/tees.csv; `../shared` unless the environment says otherwise.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from m3lib import config, prepare
from m3lib.config import Settings
from m3lib.data import manifest
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.pipeline.convert_weights import convert_all
from m3lib.prepare import pack, splits
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
    "asen_v2_contrast", "modc_contrast", "asen_v2_l1", "asen_v2_l1_softmax", "asen_v2_softmax", "m3_softmax",
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


def open_set(name: str, seed: int) -> tuple[Settings, Prepared, Path]:
    """The settings and the images of a set, prepared if need be, and the folder for the outputs of frozen blocks."""
    settings = settings_of(name, seed)
    torch.set_num_threads(settings.threads)
    work = config.find_root() / "data" / "work" / "sets"
    of_images = f"{SAME_IMAGES.get(name, name)}-{seed}"
    folder, unfinished = work / of_images, work / f"{of_images}.part"
    if not folder.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        source = splits.draw(pack.pack(prepare.read(settings), unfinished, settings.images), settings.split)
        manifest.save(source, unfinished)
        unfinished.rename(folder)
    if not (config.find_root() / "data" / "imagenet").exists():
        convert_all(settings)
    return settings, manifest.open_prepared(folder), folder


def third(prepared: Prepared) -> Prepared:
    """The same data with every third of its training images."""
    frame, rows = prepared.manifest.copy(), prepared.rows("train")
    frame.loc[[row for i, row in enumerate(rows) if i % 3], ["split", "role"]] = ["none", "unlabelled"]
    return replace(prepared, manifest=frame)
