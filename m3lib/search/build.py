"""Make a search index of a prepared set, and hand its vectors to other databases.

`python -m m3lib.search.build export FOLDER [INDEX]` writes, for each attribute n of the index (default: data/index),
FOLDER/<n>.parquet with a row per picture (name, row, and vector: float32 of fixed size) and FOLDER/<n>.faiss, whose ids
are the Parquet file's row numbers; vectors.json says which attribute is which. The inner product of such a vector with
`Index.query_vector` of a photo is the score that a search gives.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m3lib import config, systems
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.retrieval.ranking import Embeddings
from m3lib.search import index_files, vector_index
from m3lib.search.index import Index, load_system
from m3lib.training import inference, trainer

BATCH = 1024  # pictures embedded before they are written


def build(
    folder: Path,
    prepared: Prepared,
    model: Path,
    variant: config.Variant,
    pictures: config.Images,
    wanted: config.Index,
    seed: int,
    threads: int,
) -> Index:
    """Embed the catalogue with a trained model, and write an index folder in place of any other one.

    The folder appears when it is whole. Equal settings and threads give equal bytes on one kind of machine.
    """
    trainer.make_deterministic(seed, threads)
    faiss.omp_set_num_threads(threads)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    rows = np.arange(len(prepared.images)) if wanted.gallery == "all" else prepared.rows("test")
    system = load_system(variant, prepared.taxonomy, model)
    items = prepared.manifest["image"].iloc[rows].to_frame().assign(row=rows)
    index_files.write(part, items, embed_all(system, prepared, rows, variant.train.precision), prepared.taxonomy)
    shutil.copyfile(model, part / "model.safetensors")
    settings = {"variant": asdict(variant), "pictures": asdict(pictures)}
    made = Index(part, settings)
    for n in range(len(made.attributes)):
        faiss.write_index(faiss_of(made, n, wanted.kind, seed), str(part / f"{n}.faiss"))
    index_files.seal(part, settings)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return Index.open(folder)


def embed_all(system: systems.System, prepared: Prepared, rows: np.ndarray, precision: str) -> Iterator[Embeddings]:
    for start in range(0, len(rows), BATCH):
        yield inference.embed(system, prepared, rows[start : start + BATCH], precision)


def faiss_of(index: Index, n: int, kind: vector_index.Kind, seed: int) -> faiss.Index:
    """The faiss index of attribute n, built from the embeddings of an index's pictures."""
    vectors, queries = (index.gallery.vectors(index.variant.score, side, n) for side in ("candidate", "query"))
    dims = vectors(np.array([0])).shape[1]
    return vector_index.build(vectors, queries, len(index), dims, kind, seed)


def compare(index: Index, attribute: str, rows: np.ndarray, seed: int) -> dict[str, int | float]:
    """What compressing an attribute's vectors saves and costs, by the pictures of some manifest rows as queries.

    items, dims; exact and compressed: bytes per item of either kind; recall@10 and @100, as fractions, of the
    compressed kind against the exact one, after its finds are scored by their own vectors.
    """
    n = index.number(attribute)
    exact, compressed = (faiss_of(index, n, kind, seed) for kind in ("exact", "compressed"))
    vectors, queries = (index.gallery.vectors(index.variant.score, side, n) for side in ("candidate", "query"))
    asked = queries(np.searchsorted(index.gallery.rows, rows))
    result = {"items": len(index), "dims": asked.shape[1]}
    result |= {"exact": vector_index.size(exact) / len(index), "compressed": vector_index.size(compressed) / len(index)}
    for k in (10, 100):
        found, truth = (
            [vector_index.rank(kind, vectors, q, index.gallery.ties, min(k, len(index)))[0] for q in asked]
            for kind in (compressed, exact)
        )
        result[f"recall@{k}"] = vector_index.recall(found, truth)
    return result


def export(index: Index, folder: Path) -> None:
    """Write an index's vectors and faiss files for other databases; block by block, so that memory stays small."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    about = {"score": index.variant.score, "items": len(index), "attributes": []}
    for n, name in enumerate(index.attributes):
        vectors = index.gallery.vectors(index.variant.score, "candidate", n)
        dims = vectors(np.array([0])).shape[1]
        columns = {"name": pa.string(), "row": pa.int64(), "vector": pa.list_(pa.float32(), dims)}
        with pq.ParquetWriter(folder / f"{n}.parquet", pa.schema(columns), compression="zstd") as file:
            for items in vector_index.blocks(len(index), dims):
                values = pa.FixedSizeListArray.from_arrays(pa.array(vectors(items).ravel()), dims)
                names = index.gallery.names.take(pa.array(items))
                file.write_table(
                    pa.table([names, pa.array(index.gallery.rows[items]), values], schema=pa.schema(columns))
                )
        shutil.copyfile(index.folder / f"{n}.faiss", folder / f"{n}.faiss")
        about["attributes"].append({"attribute": name, "vectors": f"{n}.parquet", "faiss": f"{n}.faiss", "dims": dims})
    (folder / "vectors.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def main(arguments: Sequence[str]) -> int:
    if not 2 <= len(arguments) <= 3 or arguments[0] != "export":
        print("usage: python -m m3lib.search.build export FOLDER [INDEX]", file=sys.stderr)
        return 2
    try:
        index = Index.open(*arguments[2:])
        export(index, Path(arguments[1]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(index)} pictures, {len(index.attributes)} attributes: {arguments[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
