"""Metrics class by class: which classes are hard, and whether these are the rare ones."""

import numpy as np
import pandas as pd

from m3lib.data.manifest import Prepared
from m3lib.retrieval.metrics import QueryMetrics, expected_random_ap
from m3lib.taxonomy import Taxonomy

BANDS = ("rare", "middle", "frequent")  # thirds of an attribute's classes


def class_means(prepared: Prepared, results: dict[str, QueryMetrics]) -> dict[str, float]:
    """Return the mean AP@all of each class with queries, as a fraction, by its name "attribute: class"."""
    means = {}
    for n, of_attribute in enumerate(results.values()):
        start = int(prepared.taxonomy.offsets[n])
        for m, ap in pd.Series(of_attribute.ap_all).groupby(of_attribute.class_id).mean().items():
            means[prepared.taxonomy.full_name(start + m)] = float(ap)
    return means


def class_table(prepared: Prepared, split: str, results: dict[str, QueryMetrics]) -> pd.DataFrame:
    """Return one row per class with queries, of the attributes that can be measured.

    Columns attribute, class_, images (training images), band (see `frequency_bands`), AP@all and its random floor in %.
    """
    taxonomy, blocks = prepared.taxonomy, []
    candidates = prepared.labels[prepared.rows(split, "candidate")]
    asks_all = bool(np.isin(prepared.rows(split, "query"), prepared.rows(split, "candidate")).any())
    for n, of_attribute in enumerate(results.values()):
        classes = taxonomy.classes_of(n)
        offered = int(candidates[:, classes].any(axis=1).sum()) - asks_all  # a query is no candidate for itself
        floor = 100 * expected_random_ap(of_attribute.relevant, offered)
        class_id, ap = of_attribute.class_id + classes.start, 100 * of_attribute.ap_all
        pairs = pd.DataFrame({"class_id": class_id, "ap": ap, "floor": floor})
        blocks.append(pairs if of_attribute.relevant.any() else pairs[:0])
    table = pd.concat(blocks).groupby("class_id", as_index=False).mean()
    counts = prepared.labels[prepared.rows("train")].sum(axis=0)  # (M,)
    table["attribute"] = np.array(taxonomy.names)[taxonomy.attribute_of_class[table["class_id"]]]
    table["class_"] = [taxonomy.class_name(m) for m in table["class_id"]]
    table["images"] = counts[table["class_id"]]
    table["band"] = frequency_bands(counts, taxonomy)[table["class_id"]]
    return table[["attribute", "class_", "images", "band", "ap", "floor"]]


def frequency_bands(counts: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """(M,) the third of its attribute's classes in which each class is, by its training images, counts (M,).

    "rare", "middle" or "frequent"; "unseen" without a training image. Of two classes, one is rare and one frequent.
    """
    bands = np.full(len(counts), "unseen", dtype=object)
    for n in range(taxonomy.num_attributes):
        classes = taxonomy.classes_of(n)
        seen = classes.start + np.flatnonzero(counts[classes])
        rising = seen[np.argsort(counts[seen], kind="stable")]
        bands[rising] = np.array(BANDS)[(3 * np.arange(len(rising)) + 1) // max(len(rising), 1)]
    return bands


def band_means(table: pd.DataFrame, column: str = "ap") -> dict[str, float]:
    """Return means over classes of a column of `class_table`, as fractions: of "all" classes, and of each band's.

    Every class counts once, whatever its number of queries; NaN for a band without classes.
    """
    by_band = table.groupby("band")[column].mean().reindex([*BANDS, "unseen"])
    return {"all": float(table[column].mean() / 100)} | {name: float(mean / 100) for name, mean in by_band.items()}
