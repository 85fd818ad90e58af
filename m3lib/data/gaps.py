"""What a data set's labels do not allow: attributes and classes that can't be trained, validated or evaluated.

None of these stops the pipeline: what can't be measured is NaN (null in JSON, "-" in tables), and these sentences say
why. Letters: I images, N attributes, M classes.
"""

from collections.abc import Sequence

import numpy as np

from m3lib.data.manifest import Prepared, known_attributes

LISTED = 8  # names in a sentence
NO_TRIPLET = "no class has two training images, and a third image to tell them from"
OUTCOME = {"valid": "validated", "test": "evaluated"}


def describe(prepared: Prepared) -> list[str]:
    """Return sentences on everything that the labels do not allow; none for a complete data set."""
    return [*of_training(prepared), *of_split(prepared, "valid"), *of_split(prepared, "test")]


def of_training(prepared: Prepared) -> list[str]:
    """Return sentences on attributes and classes that training images do not show, or do not show twice."""
    taxonomy, labels = prepared.taxonomy, prepared.labels[prepared.rows("train")]
    counts, sentences = labels.sum(axis=0), []  # (M,)
    known = known_attributes(labels, taxonomy).any(axis=0)  # (N,)
    if unknown := [name for name, any_label in zip(taxonomy.names, known, strict=True) if not any_label]:
        sentences.append(f"not trained, since no training image has a label: {listed(unknown)}")
    unseen = np.flatnonzero((counts == 0) & known[taxonomy.attribute_of_class])
    if len(unseen):
        names = [taxonomy.full_name(m) for m in unseen]
        sentences.append(f"classes without a training image ({len(names)}): {listed(names)}")
    alike = [taxonomy.names[n] for n in np.flatnonzero(known & ~comparable(prepared))]
    if alike:
        sentences.append(f"losses that compare images can't train {listed(alike)}: {NO_TRIPLET}")
    return sentences


def comparable(prepared: Prepared) -> np.ndarray:
    """(N,) bool: whether training images allow a triplet, two images of a class and a known one without it."""
    taxonomy, labels = prepared.taxonomy, prepared.labels[prepared.rows("train")]
    known = known_attributes(labels, taxonomy).sum(axis=0)[taxonomy.attribute_of_class]  # (M,)
    counts = labels.sum(axis=0)
    return np.logical_or.reduceat((counts >= 2) & (counts < known), taxonomy.offsets[:-1])


def of_split(prepared: Prepared, split: str) -> list[str]:
    """Return sentences on what can't be measured on valid or test, why, and which scores tell nothing."""
    taxonomy = prepared.taxonomy
    queries, candidates = (prepared.labels[prepared.rows(split, role)] for role in ("query", "candidate"))
    in_queries, in_candidates = queries.any(axis=0), candidates.any(axis=0)  # (M,)
    unmeasured: dict[str, list[str]] = {}
    constant, unanswered = [], []
    for n, name in enumerate(taxonomy.names):
        classes = taxonomy.classes_of(n)
        asked, offered = in_queries[classes], in_candidates[classes]
        if not (asked & offered).any():
            unmeasured.setdefault(why_unmeasured(asked, offered), []).append(name)
            continue
        known = candidates[:, classes].any(axis=1)
        if candidates[known][:, classes][:, asked].all():
            constant.append(name)
        unanswered += [taxonomy.full_name(classes.start + m) for m in np.flatnonzero(asked & ~offered)]
    sentences = [f"not {OUTCOME[split]}, since {why}: {listed(names)}" for why, names in unmeasured.items()]
    if split == "valid" and sum(map(len, unmeasured.values())) == taxonomy.num_attributes:
        sentences.append("nothing can be validated, so that each training keeps its last epoch")
    if constant:
        sentences.append(f"all {split} candidates share the class, so every ranking scores 100 %: {listed(constant)}")
    if unanswered:
        what = f"classes with {split} queries and no {split} candidate; these queries score 0"
        sentences.append(f"{what} ({len(unanswered)}): {listed(unanswered)}")
    return sentences


def why_unmeasured(asked: np.ndarray, offered: np.ndarray) -> str:
    """asked, offered: (M_n,) bool, the classes of an attribute that queries and candidates have; they share none."""
    if asked.any() and offered.any():
        return "no query has a relevant candidate"
    return "no candidate has a label" if asked.any() else "no query has a label"


def listed(names: Sequence[str]) -> str:
    """Join names with commas; of many, the first and how many more there are."""
    more = [f"and {len(names) - LISTED} more"] if len(names) > LISTED else []
    return ", ".join([*names[:LISTED], *more])
