"""Small search indexes for tests: drawn noise, tiny networks, and galleries of random embeddings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from m3lib import config
from m3lib.data.manifest import Prepared
from m3lib.retrieval.ranking import Embeddings
from m3lib.search import build, index_files
from m3lib.search.index import Index
from m3lib.taxonomy import Taxonomy
from tiny import SETTINGS, TAXONOMY, generator, make_prepared, make_system, make_variant, random_labels, unit_rows

SIDE = 32
PICTURES = replace(SETTINGS.images, height=SIDE, width=SIDE, fit="pad", store="raw")


def noise_pictures(size: int = 40, seed: int = 0) -> Prepared:
    """Pictures of coarse noise with partial labels, test and train alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size, 4, 4, 3), dtype=np.uint8)
    parts = [("test", "query"), ("test", "candidate"), ("train", "")]
    pictures = coarse.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)
    return make_prepared(random_labels("partial", size, rng), [parts[i % 3] for i in range(size)], pictures)


def build_index(
    folder: Path, prepared: Prepared, network: str = "m3", score: str | None = None, seed: int = 0, **wanted: str
) -> Index:
    """The index folder/index of a tiny network with random weights; wanted: settings of the section index."""
    folder.mkdir(exist_ok=True)
    model = folder / f"{network}.safetensors"
    save_file(make_system(network).state_dict(), model)
    settings = config.Index(**{"variant": network, "gallery": "all", "kind": "auto"} | wanted)
    variant = make_variant(network, score)
    return build.build(folder / "index", prepared, model, variant, PICTURES, settings, seed, threads=1)


def random_embeddings(items: int, seed: int = 0, d: int = 6, taxonomy: Taxonomy = TAXONOMY) -> Embeddings:
    """Embeddings as a network might give them, in half precision."""
    N, M = taxonomy.num_attributes, taxonomy.num_classes
    posterior = torch.rand(items, M, generator=generator(seed)) ** 2
    attribute, classes = unit_rows(items, N, d, seed=seed + 1), unit_rows(items, M, d, seed=seed + 2)
    return Embeddings(torch.arange(items), attribute.half(), posterior.half(), classes.half())


def random_gallery(folder: Path, embeddings: Embeddings, taxonomy: Taxonomy = TAXONOMY) -> index_files.Gallery:
    items = np.arange(len(embeddings.rows))
    table = pd.DataFrame({"image": [f"{i}.jpg" for i in items], "row": items})
    index_files.write(folder, table, [embeddings.take(part) for part in np.array_split(items, 3)], taxonomy)
    return index_files.open_gallery(folder)
