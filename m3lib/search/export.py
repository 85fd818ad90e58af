"""Export the vectors of an index for other databases: `python -m m3lib.search.export FOLDER [INDEX]`.

For each attribute n of the index (default: data/index) it writes FOLDER/<n>.parquet, with one row per image (name, row
in the prepared manifest, and vector, float32 of fixed size), and FOLDER/<n>.faiss, whose ids are row numbers of the
Parquet file; vectors.json names the attributes. The inner product of such a vector with `Index.query_vector` of a photo
is the score of a search.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m3lib.errors import InputError
from m3lib.search import vector_index
from m3lib.search.index import Index


def export(index: Index, folder: Path) -> None:
    """Write the files named above, block by block, so that memory stays small."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    attributes = []
    for n, name in enumerate(index.attributes):
        files = {"vectors": f"{n}.parquet", "faiss": f"{n}.faiss"}
        dims = export_vectors(index, n, folder / files["vectors"])
        shutil.copyfile(index.folder / files["faiss"], folder / files["faiss"])
        attributes.append({"attribute": name, **files, "dims": dims})
    content = {"score": index.variant.score, "items": len(index), "attributes": attributes}
    (folder / "vectors.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def export_vectors(index: Index, n: int, path: Path) -> int:
    """Write the Parquet file of attribute n and return the size of its vectors."""
    catalogue = index.catalogue
    vectors = catalogue.vectors(index.variant.score, "candidate", n)
    dims = vectors(np.array([0])).shape[1]
    schema = pa.schema({"name": pa.string(), "row": pa.int64(), "vector": pa.list_(pa.float32(), dims)})
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        for block in vector_index.blocks(len(index), dims):
            values = pa.FixedSizeListArray.from_arrays(pa.array(vectors(block).ravel()), dims)
            columns = [catalogue.names.take(pa.array(block)), pa.array(catalogue.rows[block]), values]
            file.write_table(pa.table(columns, schema=schema))
    return dims


def main(arguments: Sequence[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m m3lib.search.export FOLDER [INDEX]", file=sys.stderr)
        return 2
    try:
        index = Index.open(*arguments[1:])
        export(index, Path(arguments[0]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(index)} images, {len(index.attributes)} attributes: {arguments[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
