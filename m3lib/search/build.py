"""Embed the catalogue with a trained network and write an index folder."""

import shutil
from dataclasses import asdict
from pathlib import Path

import faiss
import numpy as np

from m3lib import config
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.search import index_files, vector_index
from m3lib.search.index import Index
from m3lib.search.index_files import Catalogue
from m3lib.training import inference, trainer

CHECK_BLOCK = 1 << 14  # images whose embeddings are checked at once


def build(
    folder: Path,
    prepared: Prepared,
    model: Path,
    variant: config.Variant,
    images: config.Images,
    settings: config.Index,
    seed: int,
    threads: int,
) -> Index:
    """Embed the catalogue with a trained network and write an index folder, which replaces an older one when complete.

    Equal settings and threads give equal bytes on one kind of machine. Raises InputError if there is no image, or if an
    embedding is NaN or infinite.
    """
    trainer.make_deterministic(seed, threads)
    faiss.omp_set_num_threads(threads)
    rows = np.arange(len(prepared.images)) if settings.gallery == "all" else prepared.rows("test")
    names = prepared.manifest["image"].iloc[rows].tolist()
    if not names:
        raise InputError("there is no image to index: the catalogue is empty (params.yaml, index.gallery)")
    system = index_files.load_system(variant, prepared.taxonomy, model)
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    shutil.copyfile(model, temporary / "model.safetensors")
    inference.embed_to_file(temporary / "embeddings.safetensors", system, prepared, rows, variant.train.precision)
    index_files.save_images(temporary, names, prepared.taxonomy)
    catalogue = index_files.load_catalogue(temporary)
    for start in range(0, len(names), CHECK_BLOCK):
        block = slice(start, start + CHECK_BLOCK)
        index_files.check_finite(catalogue.embeddings.at(block), names[block])
    for n in range(prepared.taxonomy.num_attributes):
        faiss_index = build_faiss(catalogue, variant.score, n, settings.kind, seed)
        faiss.write_index(faiss_index, str(temporary / f"{n}.faiss"))
    index_files.write_manifest(temporary, {"variant": asdict(variant), "images": asdict(images)})
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return Index.open(folder)


def build_faiss(catalogue: Catalogue, score: str, n: int, kind: vector_index.Kind, seed: int) -> faiss.Index:
    """Return the faiss index of attribute n."""
    vectors, queries = (catalogue.vectors(score, side, n) for side in ("candidate", "query"))
    dims = vectors(np.array([0])).shape[1]
    return vector_index.build(vectors, queries, len(catalogue), dims, kind, seed)
