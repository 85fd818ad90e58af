"""Small search indexes for tests: images of noise, tiny networks, and catalogues of random embeddings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from m3lib import config
from m3lib.data.manifest import Prepared
from m3lib.retrieval import metrics
from m3lib.retrieval.embeddings import Embeddings
from m3lib.search import build
from m3lib.search.catalogue import Catalogue
from m3lib.search.index import Index
from tiny import SETTINGS, TAXONOMY, generator, make_prepared, make_system, make_variant, random_labels, unit_rows

SIDE = 32
IMAGE_SETTINGS = replace(SETTINGS.images, height=SIDE, width=SIDE, fit="pad", format="raw")


def noise_images(size: int = 40) -> Prepared:
    """Images of coarse noise with partial labels, in turn a test query, a test candidate and a training image."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (size, 4, 4, 3), dtype=np.uint8)
    roles = [("test", "query"), ("test", "candidate"), ("train", "")]
    images = coarse.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)
    return make_prepared(random_labels("partial", size, rng), [roles[i % 3] for i in range(size)], images)


def build_index(folder: Path, prepared: Prepared, network: str = "m3", score: str | None = None, **settings) -> Index:
    """Build folder/index with a tiny network of random weights; settings: of params.yaml's section index."""
    folder.mkdir(exist_ok=True)
    model = folder / f"{network}.safetensors"
    save_file(make_system(network).state_dict(), model)
    columns = settings.pop("columns", None)  # a table
    index = config.Index(**vars(SETTINGS.index) | {"variant": network} | settings)
    variant = make_variant(network, score)
    return build.build(
        folder / "index", prepared, model, variant, IMAGE_SETTINGS, index, seed=0, threads=1, columns=columns
    )


def random_embeddings(items: int, d: int = 6) -> Embeddings:
    """Return embeddings of the form that a network computes, in half precision."""
    N, M = TAXONOMY.num_attributes, TAXONOMY.num_classes
    posterior = torch.rand(items, M, generator=generator()) ** 2
    attribute, classes = unit_rows(items, N, d, seed=1), unit_rows(items, M, d, seed=2)
    return Embeddings(torch.arange(items), attribute.half(), posterior.half(), classes.half())


def catalogue_of(embeddings: Embeddings) -> Catalogue:
    names = [f"{i}.jpg" for i in range(len(embeddings.rows))]
    return Catalogue(TAXONOMY, pa.array(names), metrics.tie_keys(names).numpy(), embeddings)
