"""A LanceDB table: the query for the nearest vectors, an index of measured recall, one sentence for a failure."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from lancedb.index import IvfSq
from lancedb.query import LanceVectorQueryBuilder
from lancedb.table import Table

from m3lib.errors import InputError

OWN = ("image", "row", "tie", "posterior", "embedding")  # columns beside vector_<n> that no column of a person can be
SMALL = 20_000  # images up to which every vector is compared: some 10 ms
QUERIES, RECALL, DEPTH = 64, 0.98, 100  # the recall of the true best DEPTH that an index must reach on sampled queries


def near(
    table: Table, vector: np.ndarray, column: str, count: int, probes: tuple[int, int] | None, where: str = ""
) -> LanceVectorQueryBuilder:
    """The query for the largest inner products of a column; probes: (cells, refine), None compares all vectors.

    So does a condition that leaves few images, which the cells that are read may not hold.
    """
    query = table.search(vector, vector_column_name=column).distance_type("dot").limit(count)
    if where:
        query = query.where(where, prefilter=True)
        probes = None if probes and table.count_rows(where) <= SMALL else probes
    return query.bypass_vector_index() if probes is None else query.nprobes(probes[0]).refine_factor(probes[1])


def add_index(table: Table, n: int, queries: np.ndarray) -> tuple[int, int] | None:
    """Index the vectors of attribute n; returns (cells, refine) that a search needs for RECALL, None if none does.

    cells: how many of the index a search reads; refine: how many times the wanted images are compared by their full
    vectors. Both are the smallest powers of two that suffice on the queries (Q, V).
    """
    column, items = f"vector_{n}", table.count_rows()
    cells, depth = max(1, round(items**0.5)), min(DEPTH, items)
    table.create_index(column, config=IvfSq(distance_type="dot", num_partitions=cells))

    def distances(query: np.ndarray, probes: tuple[int, int] | None) -> np.ndarray:
        found = near(table, query, column, depth, probes).select(["_distance"]).to_arrow()
        return found["_distance"].to_numpy()

    last = [distances(query, None).max() for query in queries]

    def recall(*probes: int) -> float:
        found = [(distances(q, probes) <= d + 1e-6 * max(1, abs(d))).sum() for q, d in zip(queries, last, strict=True)]
        return sum(found) / (depth * len(found))

    refine = next((r for r in (1, 4, 16) if recall(cells, r) >= RECALL), None)
    if refine is None:
        return None
    return next((2**i for i in range(cells.bit_length()) if recall(2**i, refine) >= RECALL), cells), refine


@contextmanager
def told(place: str, where: str = "", table: Table | None = None) -> Iterator[None]:
    """One sentence for what LanceDB reports: a place that is not there, a condition that is wrong."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # LanceDB raises ValueError, RuntimeError and OSError, with many lines
        reason = re.sub(r",? /\S+\.rs\S*", "", " ".join(str(error).split()))[:300]  # without lines of LanceDB's source
        if where and isinstance(error, ValueError):
            listed = ", ".join(own_columns(table)) or "none (index.columns)"
            raise InputError(f"the condition {where!r} can't be used ({reason}); the columns: {listed}") from None
        raise InputError(
            f"the table in {place} can't be used ({reason}): is it there, and can it be reached?"
        ) from None


def own_columns(table: Table) -> list[str]:
    """The columns of `index.columns`."""
    return [field.name for field in table.schema if field.name not in OWN and not field.name.startswith("vector_")]
