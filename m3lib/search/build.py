"""Embed the catalogue with a trained network and write an index folder, which can be moved:

index.json          engine, format, settings of the variant and of the images; the last file to be written
taxonomy.json       attributes and classes
model.safetensors   the network's weights

and the files of the engine (`faiss_engine`, `lance_engine`).
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import faiss
import pandas as pd
import pyarrow as pa

from m3lib import config
from m3lib.data.manifest import Prepared
from m3lib.retrieval import metrics
from m3lib.retrieval.embeddings import Embeddings
from m3lib.search import shares
from m3lib.search.catalogue import Catalogue
from m3lib.search.index import FORMAT, Index, engine_of, load_system
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
    columns: pd.DataFrame | None = None,
) -> Index:
    """Embed the catalogue with a trained network and write an index folder, in place of an older one.

    Blocks of images that shares have embedded (`shares`) lie in work/shares beside the index; the others are embedded
    here, and all are removed in the end. columns: those that a search can filter by, one row per image of the
    manifest. With the engine faiss, equal settings and threads give equal bytes on one kind of machine. Raises
    InputError if there is no image, or if the model is missing or of another network.
    """
    trainer.make_deterministic(seed, threads)
    faiss.omp_set_num_threads(threads)
    rows = shares.rows_of(prepared, settings)
    names, taxonomy = prepared.manifest["image"].iloc[rows].tolist(), prepared.taxonomy
    precision = variant.train.precision
    device = devices.choose(accelerator, precision)
    system = load_system(variant, taxonomy, model).to(device)
    mark = shares.fingerprint(prepared, rows, variant, model, device)
    embedded = shares.folder_of(folder.parent, mark)
    shares.embed(embedded, system, prepared, rows, precision, mark, 0, 1)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(model, folder / "model.safetensors")
    taxonomy.save(folder / "taxonomy.json")
    shares.gather(folder / "embeddings.safetensors", embedded, rows, mark)
    ties, embeddings = metrics.tie_keys(names).numpy(), Embeddings.load(folder / "embeddings.safetensors")
    catalogue = Catalogue(taxonomy, pa.array(names), ties, embeddings)
    columns = pd.DataFrame(index=range(len(names))) if columns is None else columns.iloc[rows]
    engine = engine_of(settings.engine).build(folder, catalogue, variant.score, settings, seed, columns, mark)
    content = {"format": FORMAT, "engine": settings.engine, "variant": asdict(variant), "images": asdict(images)}
    (folder / "index.json").write_text(json.dumps(content | engine, indent=1, ensure_ascii=False) + "\n")
    shutil.rmtree(embedded.parent, ignore_errors=True)  # with those of older models; a share may still write
    return Index.open(folder)
