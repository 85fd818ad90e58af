"""A LanceDB table: the query for the nearest vectors, an index of measured recall, one sentence for a failure."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
from lancedb.index import IvfSq
from lancedb.table import Table

from m3lib.errors import InputError
from m3lib.search.vector_index import CALIBRATION_RECALL, DEPTH
from m3lib.validation import RESERVED

TEXT = re.compile(r"'(?:[^']|'')*'")  # of a condition
SMALL = 20_000  # images up to which a table has no index: every vector is compared, in some 10 ms
FILTERED = 200_000  # images up to which every vector that a condition leaves is compared: some 0.2 s


def nearest(
    table: Table,
    vector: np.ndarray,
    column: str,
    count: int,
    select: list[str],
    probes: tuple[int, int] | None = None,
    where: str = "",
) -> pa.Table:
    """The rows with the largest inner products of a column, at most `count`; where: an SQL condition, or ''.

    probes: (cells, refine) of an index; None compares all vectors. The cells hold less of what a condition leaves, and
    may hold too little for a large count: then more of them are read, or all vectors compared.
    """
    if ";" in TEXT.sub("", where):
        raise ValueError("a condition has no semicolon")
    query = table.search(vector, vector_column_name=column).distance_type("dot").limit(count).select(select)
    left = table.count_rows()
    if where:
        query, total, left = query.where(where, prefilter=True), left, table.count_rows(where)
        if probes is not None and left:
            probes = None if left <= FILTERED else (probes[0] * -(-total // left), probes[1])
    if probes is None:
        return query.bypass_vector_index().to_arrow()
    found = query.nprobes(probes[0]).refine_factor(probes[1]).to_arrow()
    return found if found.num_rows >= min(count, left) else query.bypass_vector_index().to_arrow()


def add_index(table: Table, n: int, queries: np.ndarray) -> tuple[int, int] | None:
    """Index the vectors of attribute n; returns (cells, refine) that a search needs for RECALL, None if none does.

    cells: how many of the index a search reads; refine: how many times the wanted images are compared by their full
    vectors. Both are the smallest powers of two that suffice on the queries (Q, V). An index that finds too few of the
    true best with all its cells is dropped.
    """
    column, items = f"vector_{n}", table.count_rows()
    cells, depth = max(1, round(items**0.5)), min(DEPTH, items)
    table.create_index(column, config=IvfSq(distance_type="dot", num_partitions=cells))

    def distances(query: np.ndarray, probes: tuple[int, int] | None) -> np.ndarray:
        return nearest(table, query, column, depth, ["_distance"], probes)["_distance"].to_numpy()

    last = [distances(query, None).max() for query in queries]

    def recall(*probes: int) -> float:
        found = [(distances(q, probes) <= d + 1e-6 * max(1, abs(d))).sum() for q, d in zip(queries, last, strict=True)]
        return sum(found) / (depth * len(found))

    refine = next((r for r in (1, 2, 4, 8, 16) if recall(cells, r) >= CALIBRATION_RECALL), None)
    if refine is None:
        table.drop_index(f"{column}_idx")
        print(f"{column}: every vector is compared, since an index finds too few of the true best")
        return None
    return next((2**i for i in range(cells.bit_length()) if recall(2**i, refine) >= CALIBRATION_RECALL), cells), refine


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
    return [field.name for field in table.schema if not RESERVED.fullmatch(field.name)]
