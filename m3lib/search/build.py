"""Embed the catalogue with a trained network and write an index folder, which can be moved:

index.json               format, settings of the variant and of the images; the last file to be written
taxonomy.json            attributes and classes
model.safetensors        the network's weights
images.parquet           one row per image: image (name), tie (see retrieval.metrics)
embeddings.safetensors   as in data/embeddings: manifest rows, f_n, class probabilities and phi_m in half precision
<n>.faiss                the faiss index of attribute n, see vector_index
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m3lib import config
from m3lib.data.manifest import Prepared
from m3lib.retrieval import metrics, scores
from m3lib.retrieval.embeddings import Embeddings
from m3lib.search import shares, vector_index
from m3lib.search.catalogue import Catalogue
from m3lib.search.index import FORMAT, Index, load_system
from m3lib.training import devices, trainer


def build(
    folder: Path,
    prepared: Prepared,
    model: Path,
    variant: config.Variant,
    images: config.Images,
    settings: config.Index,
    seed: int,
    threads: int,
    accelerator: str = "cpu",
) -> Index:
    """Embed the catalogue with a trained network and write an index folder, in place of an older one.

    Blocks of images that shares have embedded (`shares`) lie in the folder work/shares beside the index; the others are
    embedded here, and all are removed in the end. Equal settings and threads give equal bytes on one kind of machine.
    Raises InputError if there is no image, or if the model is missing or of another network.
    """
    trainer.make_deterministic(seed, threads)
    faiss.omp_set_num_threads(threads)
    rows = shares.rows_of(prepared, settings)
    names, taxonomy = prepared.manifest["image"].iloc[rows].tolist(), prepared.taxonomy
    precision = variant.train.precision
    system = load_system(variant, taxonomy, model).to(devices.choose(accelerator, precision))
    embedded, mark = folder.parent / "work" / "shares", shares.fingerprint(prepared, rows, variant, model)
    shares.embed(embedded, system, prepared, rows, precision, mark, 0, 1)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(model, folder / "model.safetensors")
    taxonomy.save(folder / "taxonomy.json")
    ties = metrics.tie_keys(names).numpy()
    pq.write_table(pa.table({"image": names, "tie": ties}), folder / "images.parquet")
    shares.gather(folder / "embeddings.safetensors", embedded, rows, mark)
    embeddings = Embeddings.load(folder / "embeddings.safetensors")
    catalogue = Catalogue(taxonomy, pa.array(names), ties, embeddings)
    for n in range(taxonomy.num_attributes):
        vectors = catalogue.vectors(scores.candidate_vectors, variant.score, n)
        queries = catalogue.vectors(scores.query_vectors, variant.score, n)
        dims = vectors(np.array([0])).shape[1]
        faiss_index = vector_index.build(vectors, queries, len(names), dims, settings.kind, seed)
        faiss.write_index(faiss_index, str(folder / f"{n}.faiss"))
    content = {"format": FORMAT, "variant": asdict(variant), "images": asdict(images)}
    (folder / "index.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    shutil.rmtree(embedded)
    return Index.open(folder)
