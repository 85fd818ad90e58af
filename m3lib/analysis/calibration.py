"""Are class probabilities right as often as they say?"""

import numpy as np

from m3lib.data.manifest import Prepared
from m3lib.retrieval.embeddings import Embeddings

BINS = 15


def expected_calibration_error(p: np.ndarray, is_right: np.ndarray) -> float:
    """Return the mean over BINS bins of |mean probability - share that is right|, in [0, 1]; NaN without predictions.

    p: (K,) probabilities; is_right: (K,) bool. The bins have equal numbers of predictions of rising probability, so
    that a few confident ones do not fill most bins (Nguyen and O'Connor 2015). Each bin counts by its predictions.
    """
    if not len(p):
        return np.nan
    order = np.argsort(p, kind="stable")
    bins = zip(np.array_split(p[order], BINS), np.array_split(is_right[order], BINS), strict=True)
    return float(sum(abs(p_bin.sum() - right.sum()) for p_bin, right in bins) / len(p))


def by_attribute(prepared: Prepared, split: str, embeddings: Embeddings) -> dict[str, float]:
    """Return the calibration error of a network's class probabilities by attribute; empty if it has none.

    Over the split's images with a known label: of the most probable class where images have one class, and of every
    class where they may have several.
    """
    errors: dict[str, float] = {}
    if embeddings.posterior is None:
        return errors
    rows = prepared.rows(split)
    for n, attribute in enumerate(prepared.taxonomy.attributes):
        labels = prepared.labels[rows, prepared.taxonomy.classes_of(n)]  # (I, M_n)
        known = labels.any(axis=1)
        of_images = embeddings.of_attribute(n, prepared.taxonomy).take(rows[known])
        p, labels = of_images.posterior.double().numpy(), labels[known]
        if not attribute.multi:
            top = p.argmax(axis=1)[:, None]
            p, labels = np.take_along_axis(p, top, axis=1), np.take_along_axis(labels, top, axis=1)
        errors[attribute.name] = expected_calibration_error(p.ravel(), labels.ravel())
    return errors
