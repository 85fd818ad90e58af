"""The engine `lancedb`: a LanceDB table in the folder of the index or in an object store, which single photos change.

One row per image: image (name), row (in the prepared manifest; null for an image that was added later), tie (see
retrieval.metrics), vector_<n> (float32: its inner product with a query's vector is the score by attribute n), posterior
(float32), embedding (float16: f_n, class probabilities and phi_m, flat), and the columns of `index.columns`.

LanceDB commits every change as a new version of the table: once its call returns, the change survives a kill of the
process (not a power cut: LanceDB does not wait for the disk), and readers see whole versions only. New rows are
compared one by one until `tidy` takes them into the indexes. LanceDB computes on threads of its own, so an open index
must not be forked. Why LanceDB, and what it costs: data/results/engines.md.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from lancedb.index import BTree
from lancedb.table import Table

from m3lib import config
from m3lib.data.files import digest
from m3lib.errors import InputError
from m3lib.retrieval import metrics
from m3lib.retrieval.embeddings import KINDS, Embeddings
from m3lib.retrieval.scores import candidate_vectors, query_vectors
from m3lib.search.catalogue import MAX_AGREEMENT, Catalogue, Found
from m3lib.search.lance_table import SMALL, add_index, nearest, own_columns, told
from m3lib.search.vector_index import CALIBRATION_QUERIES
from m3lib.taxonomy import Taxonomy

RESULT = ["image", "row", "tie", "embedding", "_distance"]
BLOCK = 4096  # images that are written at once
MORE = 20  # images beyond the k best, among which those that tie with the k-th are ranked
TIDY = 64  # versions of the table after which new rows go into the indexes
KEEP = timedelta(hours=1)  # how long an old version stays, for readers that use it
FRESH = timedelta(seconds=1)  # after which a reader sees the changes of other processes


@dataclass(frozen=True)
class LanceEngine:
    """An open table; shapes: of an image's embeddings by kind; probes: of each attribute, (cells, refine) or None."""

    table: Table
    place: str
    taxonomy: Taxonomy
    score: str
    shapes: dict[str, tuple[int, ...]]
    probes: list[tuple[int, int] | None]

    @classmethod
    def build(
        cls,
        folder: Path,
        catalogue: Catalogue,
        score: str,
        settings: config.Index,
        seed: int,
        columns: pd.DataFrame,
        mark: str,
    ) -> dict:
        """Write the table and its indexes; returns what `open` needs beside them.

        columns: one row per image; mark: a digest of the model and the catalogue, which names the table with the score
        and the taxonomy. So a table of another model stays, and one of the same model is replaced, with the photos
        that were added to it. Raises InputError if the place can't be written to.
        """
        uri = settings.uri if "://" in settings.uri or not settings.uri else str(config.data_path(settings.uri))
        place, own, taxonomy = uri or str(folder / "lance"), catalogue.embeddings, catalogue.taxonomy
        name = f"images-{digest(mark, score, repr(taxonomy))[:16]}"
        with told(place):
            names = catalogue.names.to_pylist()
            parts = (slice(start, start + BLOCK) for start in range(0, len(names), BLOCK))
            batches = (
                batch(names[part], catalogue.rows[part].tolist(), own.at(part), columns.iloc[part], taxonomy, score)
                for part in parts
            )
            first = next(batches)
            data = chain([first], batches)
            database = lancedb.connect(place)
            database.drop_table(name, ignore_missing=True)
            table = database.create_table(name, data, schema=first.schema)
            table.set_unenforced_primary_key("image")  # LanceDB then looks for conflicts of names, if not for all
            table.create_index("image", config=BTree())
            probes, sample = [], np.sort(np.random.default_rng(seed).permutation(len(names))[:CALIBRATION_QUERIES])
            for n in range(taxonomy.num_attributes):
                wanted = settings.kind == "compressed" or (settings.kind == "auto" and len(names) > SMALL)
                queries = catalogue.vectors(query_vectors, score, n)(sample)
                probes.append(add_index(table, n, queries) if wanted else None)
        (folder / "embeddings.safetensors").unlink()  # the table has them
        shapes = {kind: tuple(getattr(own, kind).shape[1:]) for kind in kinds_of(own)}
        return {"uri": uri, "table": name, "shapes": shapes, "probes": probes}

    @classmethod
    def open(cls, folder: Path, content: dict, taxonomy: Taxonomy, score: str) -> "LanceEngine":
        """Raises InputError if the table of this model, score and taxonomy is not there."""
        place = content["uri"] or str(folder / "lance")
        with told(place):
            table = lancedb.connect(place, read_consistency_interval=FRESH).open_table(content["table"])
        probes = [None if pair is None else tuple(pair) for pair in content["probes"]]
        shapes = {kind: tuple(shape) for kind, shape in content["shapes"].items()}
        return cls(table, place, taxonomy, score, shapes, probes)

    def __len__(self) -> int:
        with told(self.place):
            return self.table.count_rows()

    @property
    def images(self) -> pd.Series:
        """The names of all images, indexed by their manifest rows; those added later last, with the row -1."""
        with told(self.place):
            found = self.table.search().select(["image", "row"]).to_arrow()
        names = pd.Series(found["image"].to_pylist(), found["row"].fill_null(-1).to_numpy(), dtype=object)
        known = names[names.index >= 0].sort_index()
        return pd.concat([known, names[names.index < 0]])

    @property
    def kinds(self) -> set[str]:
        return {*self.shapes}

    def sizes(self) -> list[tuple[int, str, float]]:
        """Of each attribute: the dimensions of its vectors, exact or compressed, bytes per image."""
        dims = [self.table.schema.field(f"vector_{n}").type.list_size for n in range(len(self.probes))]
        return [
            (size, "exact" if probe is None else "compressed", 4.0 * size + (0 if probe is None else size))
            for size, probe in zip(dims, self.probes, strict=True)
        ]

    def stored(self, name: str | None, row: int | None = None) -> Embeddings | None:
        """The embeddings of the image with a name, or of a manifest row; None if there is none."""
        where = f"image = {quoted(name)}" if name is not None else f"row = {row}"
        try:
            where.encode()
        except UnicodeEncodeError:  # of a name that no file can have
            return None
        with told(self.place):
            found = self.table.search().where(where).select(["row", "embedding"]).limit(1).to_arrow()
        if not found.num_rows and name is None:
            raise InputError(f"the index holds no image of row {row} of the manifest: name another one")
        return self.unpacked(found) if found.num_rows else None

    def by_attribute(self, vector: np.ndarray, n: int, k: int, where: str) -> Found:
        """The k images with the largest inner products; where: an SQL condition on the columns, or ''."""
        with told(self.place, where, self.table):
            found = nearest(self.table, vector, f"vector_{n}", k + MORE, RESULT, self.probes[n], where)
        scores = 1 - found["_distance"].to_numpy().astype(np.float64)
        order = np.lexsort((found["tie"].to_numpy(), -scores))[:k]
        return self.found(found.take(order), scores[order], n)

    def by_classes(self, query: Embeddings, n: int, classes: list[int], k: int, where: str) -> Found:
        """The k best by `Catalogue.rank_by_classes`, among the images whose probabilities allow it.

        The mean of p_m bounds a score from above, and LanceDB lists images by it: the list grows until its last image
        can't be among the best.
        """
        wanted = np.zeros(self.taxonomy.num_classes, np.float32)
        wanted[self.taxonomy.classes_of(n).start + np.array(classes)] = 1 / len(classes)
        depth = max(1024, 4 * k)
        while True:
            with told(self.place, where, self.table):
                found = nearest(self.table, wanted, "posterior", depth, RESULT, where=where)
            if not found.num_rows:
                return self.found(found, np.zeros(0), n)
            names, ties = found["image"].combine_chunks(), found["tie"].to_numpy()
            listed = Catalogue(self.taxonomy, names, ties, self.unpacked(found))
            items, scores = listed.rank_by_classes(query, n, classes, min(k, len(names)))
            bound = MAX_AGREEMENT * (1 - found["_distance"].to_numpy()[-1])
            if found.num_rows < depth or (len(scores) == k and bound < scores[-1]):
                return self.found(found.take(items), scores, n)
            depth *= 4

    def found(self, found: pa.Table, scores: np.ndarray, n: int) -> Found:
        embeddings = self.unpacked(found).of_attribute(n, self.taxonomy)
        return Found(found["image"].to_pylist(), found["row"].to_pylist(), scores, embeddings)

    def add(self, name: str, embeddings: Embeddings, columns: dict[str, Any]) -> None:
        """Add an image, in place of one of the same name; embeddings: of this image alone."""
        own = own_columns(self.table)
        if unknown := [column for column in columns if column not in own]:
            listed = ", ".join(own) or "none (index.columns)"
            raise InputError(f"the index has no column {unknown[0]!r}; its columns: {listed}")
        try:
            cells = pd.DataFrame([columns], columns=own, dtype=object)
            rows = pa.Table.from_batches([batch([name], [None], embeddings, cells, self.taxonomy, self.score)])
            row = rows.cast(self.table.schema.remove_metadata())
        except (pa.ArrowException, TypeError) as error:
            raise InputError(f"a value of {columns} does not fit its column: {error}") from None
        with told(self.place), one_writer(self.place):
            self.table.checkout_latest()  # which may hold the name already
            self.table.merge_insert("image").when_matched_update_all().when_not_matched_insert_all().execute(row)
        self.tidy()

    def delete(self, name: str) -> None:
        with told(self.place):
            if not self.table.count_rows(f"image = {quoted(name)}"):
                raise InputError(f"{name!r} is not the name of an image of the index")
            self.table.delete(f"image = {quoted(name)}")
        self.tidy()

    def tidy(self) -> None:
        """Every TIDY versions, take new rows into the indexes, and join the small files that single changes leave."""
        if self.table.version % TIDY == 0:
            with suppress(Exception):  # another process changes the table, and LanceDB gives up: later, then
                self.table.optimize(cleanup_older_than=KEEP)

    def unpacked(self, found: pa.Table) -> Embeddings:
        """The embeddings of images of the table, in the order given; their rows are 0, 1, ..."""
        length = sum(map(prod, self.shapes.values()))
        flat = found["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, length)
        parts = torch.from_numpy(flat.copy()).split([prod(shape) for shape in self.shapes.values()], dim=1)
        kinds = {kind: part.unflatten(1, shape) for (kind, shape), part in zip(self.shapes.items(), parts, strict=True)}
        return Embeddings(torch.arange(found.num_rows), **kinds)


def batch(
    names: list[str],
    rows: list[int | None],
    embeddings: Embeddings,
    columns: pd.DataFrame,
    taxonomy: Taxonomy,
    score: str,
) -> pa.RecordBatch:
    """The rows of some images as a table stores them."""
    fields: dict[str, pa.Array] = {
        "image": pa.array(names, pa.string()),
        "row": pa.array(rows, pa.int64()),
        "tie": pa.array(metrics.tie_keys(names).numpy()),
    }
    for n in range(taxonomy.num_attributes):
        vectors = candidate_vectors(score, embeddings.of_attribute(n, taxonomy))
        fields[f"vector_{n}"] = rows_of(vectors.numpy())
    if embeddings.posterior is not None:
        fields["posterior"] = rows_of(embeddings.posterior.float().numpy())
    flat = [getattr(embeddings, kind).flatten(1) for kind in kinds_of(embeddings)]
    fields["embedding"] = rows_of(torch.cat(flat, dim=1).half().numpy())
    for name in columns:
        numeric, added = pd.api.types.is_numeric_dtype(columns[name]), rows == [None]
        kind = None if added else pa.float64() if numeric else pa.string()  # what is added is cast to the table's
        fields[name] = pa.array(columns[name], kind, from_pandas=True)
    schema = pa.schema([pa.field(name, values.type, nullable=name != "image") for name, values in fields.items()])
    return pa.RecordBatch.from_arrays(list(fields.values()), schema=schema)


@contextmanager
def one_writer(place: str) -> Iterator[None]:
    """Let the processes of this machine add to a folder one after the other; LanceDB may leave two rows of one name."""
    if "://" in place:
        yield
        return
    with (Path(place) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def kinds_of(embeddings: Embeddings) -> list[str]:
    """The kinds that the column `embedding` holds, in its order."""
    return [kind for kind in KINDS if getattr(embeddings, kind) is not None]


def rows_of(values: np.ndarray) -> pa.FixedSizeListArray:
    """(B, L) as a column of lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
