"""Example rankings and attention maps of the report."""

from collections.abc import Mapping

import numpy as np

from m3lib.data.manifest import Prepared
from m3lib.retrieval.ranking import Ranking


def median_frequency_class(prepared: Prepared, split: str, attribute: str) -> str:
    """Return the class of median frequency among the split's queries; rare classes (under 3 queries) do not count."""
    classes = prepared.taxonomy.classes_of(prepared.taxonomy.names.index(attribute))
    counts = prepared.labels[prepared.rows(split, "query"), classes].sum(axis=0)
    present = np.flatnonzero(counts >= min(3, counts.max()))
    middle = present[np.argsort(-counts[present], kind="stable")[len(present) // 2]]
    return prepared.taxonomy.class_name(classes.start + int(middle))


def retrieval_examples(
    prepared: Prepared,
    ranking: Ranking,
    attribute: int,
    class_: str | None = None,
    rows: int = 3,
    top: int = 10,
    among: np.ndarray | None = None,
) -> tuple[list[np.ndarray], list[list[np.ndarray]], np.ndarray, list[str]]:
    """Return what `panels.retrieval_panel` draws: query images, their top results, which are relevant, and captions.

    With a class, the queries carry it and results that carry it are relevant. Without, the queries are the first of
    different classes, and results that share a class with their query are relevant. among: if given, manifest rows
    that are all used as queries.
    """
    taxonomy, classes = prepared.taxonomy, prepared.taxonomy.classes_of(attribute)
    names = np.array(taxonomy.attributes[attribute].classes)
    query_labels, candidate_labels = ranking.labels(prepared, classes)
    if class_ is not None:
        only = np.arange(len(names)) == taxonomy.class_id(taxonomy.names[attribute], class_) - classes.start
        query_labels, candidate_labels = query_labels & only, candidate_labels & only
    queries = np.flatnonzero(query_labels.any(axis=1))
    if among is not None:
        queries, rows = queries[np.isin(ranking.query_rows[queries], among)], len(among)
    elif class_ is None:
        first_class = np.argmax(query_labels[queries], axis=1)
        queries = queries[np.sort(np.unique(first_class, return_index=True)[1])]
    queries = queries[:rows]
    results = ranking.order(queries)[:, :top].numpy()  # (rows, top)
    relevant = (query_labels[queries][:, None] & candidate_labels[results]).any(axis=2)
    images = [prepared.images[row] for row in ranking.query_rows[queries]]
    result_images = [[prepared.images[row] for row in ranking.candidate_rows[line]] for line in results]
    return images, result_images, relevant, [" + ".join(names[labels]) for labels in query_labels[queries]]


def attention_examples(
    prepared: Prepared, split: str, attribute: int, stored: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return queries with a known label for an attribute and a stored attention map, and their maps.

    stored: "rows" (manifest rows) and (I, N, H, W) attention maps by name, as 02_train writes them. Returns (R,) rising
    manifest rows, and (R, H, W) maps by name.
    """
    rows = stored["rows"]
    usable = prepared.labels[rows][:, prepared.taxonomy.classes_of(attribute)].any(axis=1)
    usable &= np.isin(rows, prepared.rows(split, "query"))
    return rows[usable], {name: maps[usable, attribute] for name, maps in stored.items() if name != "rows"}
