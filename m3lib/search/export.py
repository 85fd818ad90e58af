"""Export the vectors of an index for other databases: `python -m m3lib.search.export FOLDER [INDEX]`.

For each attribute n of the index (default: data/index) it writes FOLDER/<n>.parquet, with one row per image (name, row
in the prepared manifest, and vector, float32 of fixed size), and FOLDER/<n>.faiss, whose ids are row numbers of the
Parquet file; vectors.json lists the attributes. The inner product of such a vector with `Index.query_vector` of a photo
is the score of a search.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from m3lib.errors import InputError
from m3lib.retrieval.scores import candidate_vectors
from m3lib.search import vector_index
from m3lib.search.index import Index


def export(index: Index, folder: Path) -> None:
    """Write the files named above, or none; raises InputError if the folder is not empty or can't be written to."""
    try:
        if folder.is_file():
            raise InputError(f"{folder} is a file: name a new folder")
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty: name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        with remove_on_error(folder):
            write(index, folder)
    except UnicodeEncodeError as error:
        problem = f"no folder can have the name {str(folder)!r}"
        raise InputError(f"{problem}, which {error.encoding}, the file system's encoding, can't write") from None
    except OSError as error:
        raise InputError(f"{folder} can't be written to ({error.strerror or error}): name another folder") from None


@contextmanager
def remove_on_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write(index: Index, folder: Path) -> None:
    """Write block by block, so that memory stays small."""
    catalogue, score = index.catalogue, index.variant.score
    for n, faiss_index in enumerate(index.faiss_indexes):
        dims, vectors = faiss_index.d, catalogue.vectors(candidate_vectors, score, n)
        schema = pa.schema({"name": pa.string(), "row": pa.int64(), "vector": pa.list_(pa.float32(), dims)})
        with pq.ParquetWriter(folder / f"{n}.parquet", schema, compression="zstd") as file:
            for block in vector_index.blocks(len(index), dims):
                values = pa.FixedSizeListArray.from_arrays(pa.array(vectors(block).ravel()), dims)
                columns = [catalogue.names.take(pa.array(block)), pa.array(catalogue.rows[block]), values]
                file.write_table(pa.table(columns, schema=schema))
        shutil.copyfile(index.folder / f"{n}.faiss", folder / f"{n}.faiss")
    (folder / "vectors.json").write_text(json.dumps({"score": score, "attributes": index.attributes}))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m m3lib.search.export")
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument("index", nargs="?", help="an index folder (default: data/index)")
    options = parser.parse_args(arguments)
    try:
        export(Index.open(options.index), options.folder)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
