"""`make bench WHAT=load`: what each step takes on a catalogue of 200,000 images: read, pack, train, evaluate.

The photos are a few images repeated by hard link, so that the disk holds them once while every one is read and decoded;
the labels are random. Each step runs in a new process with one thread, which measures its peak memory. Training is one
epoch of a fixed number of steps (train.sampler asen).
"""

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file
from tqdm import tqdm

from m3lib import config, systems
from m3lib import prepare as sources
from m3lib.data import manifest
from m3lib.prepare import pack, splits
from m3lib.retrieval import metrics, ranking
from m3lib.retrieval.embeddings import Embeddings
from m3lib.training import checkpoint, inference
from m3lib.training.run import fit
from tests.bench.measure import in_new_process

PHOTOS, DISTINCT, SIDE, STEPS = 200_000, 500, 48, 100
ATTRIBUTES = {"colour": 12, "neckline": 20, "sleeve": 6}
VARIANT = "m3"


def make_catalogue(folder: Path, photos: int) -> None:
    """JPEGs of smooth noise, hard links to them, and a CSV; one photo in ten is unknown under each attribute."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for i in range(DISTINCT):
        small = Image.fromarray(rng.integers(0, 256, (16, 12, 3), dtype=np.uint8))
        small.resize((96, 128), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
    names = [f"photos/{i:06}.jpg" for i in range(photos)]
    for i, name in enumerate(tqdm(names, desc="links")):
        os.link(folder / f"{i % DISTINCT}.jpg", folder / name)
    table = pd.DataFrame({"image": names, "product": np.arange(photos)})
    for name, classes in ATTRIBUTES.items():
        labels = (classes * rng.random(photos) ** 2).astype(int)
        table[name] = np.where(rng.random(photos) < 0.1, "", [f"{name} {m}" for m in labels])
    table.to_csv(folder / "catalogue.csv", index=False)


def settings_for(folder: Path) -> config.Settings:
    settings = config.load(config.find_root() / "params.yaml")
    table = {"table": str(folder / "catalogue.csv"), "attributes": list(ATTRIBUTES), "group_column": "product"}
    packed = replace(settings.images, height=SIDE, width=SIDE)
    return replace(settings, source="csv", csv=replace(settings.csv, **table), images=packed, threads=1)


def prepare(folder: Path, settings: config.Settings) -> str:
    source = sources.read(settings)
    prepared = folder / "prepared"
    prepared.mkdir()
    packed = pack.pack(source, prepared, settings.images, workers=1)
    manifest.save(splits.draw(packed, settings.split), prepared)
    return f"{len(source.manifest):,} photos at {SIDE} px"


def variant_of(settings: config.Settings) -> config.Variant:
    variant = settings.variant(VARIANT)
    train = replace(variant.train, epochs=1, sampler="asen", batch=21, triplets=21 * STEPS)  # 63 images per step
    stages = tuple(replace(stage, train=train) for stage in variant.stages)
    return replace(variant, train=train, stages=stages)


def train(folder: Path, settings: config.Settings) -> str:
    prepared, variant = manifest.open_prepared(folder / "prepared"), variant_of(settings)
    system, _ = fit(prepared, variant, 0, 1, folder / "checkpoint.safetensors")
    checkpoint.save_tensors(folder / "model.safetensors", system.state_dict())
    return f"{STEPS} steps, validation on {len(prepared.rows('valid')):,} photos"


def embed(folder: Path, settings: config.Settings) -> str:
    prepared, variant = manifest.open_prepared(folder / "prepared"), variant_of(settings)
    system = systems.build(variant, prepared.taxonomy)
    system.load_state_dict(load_file(folder / "model.safetensors"))
    rows = prepared.rows("test")
    inference.embed_to_file(folder / "embeddings.safetensors", system, prepared, rows, variant.train.precision)
    return f"{len(rows):,} test photos"


def evaluate(folder: Path, settings: config.Settings) -> str:
    prepared = manifest.open_prepared(folder / "prepared")
    embeddings = Embeddings.load(folder / "embeddings.safetensors")
    summary = metrics.summarise(ranking.evaluate(prepared, "test", variant_of(settings).score, embeddings))
    pairs = sum(summary["queries"].values())
    return f"{pairs:,} queries, MAP@all {100 * summary['map_all']['overall_by_query']:.2f}"


STEPS_OF = {"prepare": prepare, "train": train, "embed": embed, "evaluate": evaluate}


def step(name: str, folder: str) -> str:
    """Run one step and return what it did."""
    torch.set_num_threads(1)
    return STEPS_OF[name](Path(folder), settings_for(Path(folder)))


def main() -> int:
    with tempfile.TemporaryDirectory(dir=config.find_root() / "data") as folder:
        make_catalogue(Path(folder), PHOTOS)
        rows = {name: in_new_process("load.step", name, folder) for name in STEPS_OF}
        print(pd.DataFrame(rows).T.to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
