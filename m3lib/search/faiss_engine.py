"""The engine `faiss`: embeddings in one mapped file, and a faiss index per attribute; the same bytes every time.

It is made once and can't be changed. In the folder of the index:

images.parquet           one row per image: image (name), tie (see retrieval.metrics)
embeddings.safetensors   as in data/embeddings: manifest rows, f_n, class probabilities and phi_m in half precision
<n>.faiss                the faiss index of attribute n, see vector_index
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from m3lib import config
from m3lib.errors import InputError
from m3lib.retrieval import scores
from m3lib.retrieval.embeddings import Embeddings
from m3lib.search import vector_index
from m3lib.search.catalogue import Catalogue, Found
from m3lib.taxonomy import Taxonomy

READ_ONLY = (
    "an index of the engine faiss can't be {}: set index.engine to lancedb (params.yaml), then `dvc repro index`"
)


@dataclass(frozen=True)
class FaissEngine:
    """A catalogue, and one faiss index per attribute with the length of its shortlist (`vector_index.rank`)."""

    folder: Path
    catalogue: Catalogue
    score: str
    indexes: list[faiss.Index]
    shortlists: list[int]

    @classmethod
    def build(
        cls, folder: Path, catalogue: Catalogue, score: str, settings: config.Index, seed: int, *_: object
    ) -> dict:
        """Write the files of an index; returns what `open` needs beside them."""
        pq.write_table(pa.table({"image": catalogue.names, "tie": catalogue.ties}), folder / "images.parquet")
        shortlists = []
        for n in range(catalogue.taxonomy.num_attributes):
            vectors = catalogue.vectors(scores.candidate_vectors, score, n)
            queries = catalogue.vectors(scores.query_vectors, score, n)
            dims = vectors(np.array([0])).shape[1]
            index, shortlist = vector_index.build(vectors, queries, len(catalogue), dims, settings.kind, seed)
            faiss.write_index(index, str(folder / f"{n}.faiss"))
            shortlists.append(shortlist)
        return {"shortlists": shortlists}

    @classmethod
    def open(cls, folder: Path, content: dict, taxonomy: Taxonomy, score: str) -> "FaissEngine":
        table = pq.read_table(folder / "images.parquet", memory_map=True).combine_chunks()
        names, ties = (table.column(name).combine_chunks() for name in ("image", "tie"))
        catalogue = Catalogue(taxonomy, names, ties.to_numpy(), Embeddings.load(folder / "embeddings.safetensors"))
        indexes = [faiss.read_index(str(folder / f"{n}.faiss")) for n in range(taxonomy.num_attributes)]
        if {len(catalogue.rows), *(index.ntotal for index in indexes)} != {len(catalogue)}:
            raise InputError("its files are of different indexes")
        return cls(folder, catalogue, score, indexes, content["shortlists"])

    def __len__(self) -> int:
        return len(self.catalogue)

    @cached_property
    def images(self) -> pd.Series:
        """The names of all images, indexed by their manifest rows."""
        return pd.Series(self.catalogue.names.to_pylist(), self.catalogue.rows, dtype=object)

    @property
    def kinds(self) -> set[str]:
        """The kinds of embeddings that the images have."""
        return {*self.catalogue.embeddings.tensors} - {"rows"}

    def sizes(self) -> list[tuple[int, str, float]]:
        """Of each attribute: the dimensions of its vectors, exact or compressed, bytes per image."""
        kinds = ["exact" if isinstance(index, faiss.IndexFlat) else "compressed" for index in self.indexes]
        bytes_ = [(self.folder / f"{n}.faiss").stat().st_size / len(self) for n in range(len(self.indexes))]
        return [(index.d, *rest) for index, *rest in zip(self.indexes, kinds, bytes_, strict=True)]

    def stored(self, name: str | None, row: int | None = None) -> Embeddings | None:
        """The embeddings of the image with a name, or of a manifest row; None if there is none."""
        number = self.catalogue.position(name) if name is not None else self.catalogue.position_of_row(row)
        return None if number < 0 else self.catalogue.embeddings.at(np.array([number]))

    def by_attribute(self, vector: np.ndarray, n: int, k: int, where: str) -> Found:
        self.refuse_filter(where)
        vectors = self.catalogue.vectors(scores.candidate_vectors, self.score, n)
        ranked = vector_index.rank(self.indexes[n], vectors, vector, self.catalogue.ties, k, self.shortlists[n])
        return self.found(n, *ranked)

    def by_classes(self, query: Embeddings, n: int, classes: list[int], k: int, where: str) -> Found:
        self.refuse_filter(where)
        return self.found(n, *self.catalogue.rank_by_classes(query, n, classes, k))

    def found(self, n: int, items: np.ndarray, scores: np.ndarray) -> Found:
        names = [self.catalogue.names[i].as_py() for i in items.tolist()]
        return Found(names, self.catalogue.rows[items].tolist(), scores, self.catalogue.for_attribute(items, n))

    def refuse_filter(self, where: str) -> None:
        if where:
            raise InputError(READ_ONLY.format("filtered by columns"))

    def add(self, name: str, embeddings: Embeddings, columns: dict) -> None:
        raise InputError(READ_ONLY.format("changed"))

    def delete(self, name: str) -> None:
        raise InputError(READ_ONLY.format("changed"))
