"""What a data set's labels do not allow: sentences on small literal cases, and triplets against the losses' anchors."""

import numpy as np
import pytest
import torch

from m3lib.data import gaps
from m3lib.data.manifest import Prepared
from m3lib.systems.losses import find_anchors
from tiny import OWN, TAXONOMY, make_prepared, random_labels

TRAIN, QUERY, CANDIDATE = ("train", ""), ("test", "query"), ("test", "candidate")
NOTHING_VALIDATED = [
    "not validated, since no query has a label: colour, details, sleeve",
    "nothing can be validated, so that each training keeps its last epoch",
]


def case(*images: tuple[tuple[str, str], list[int]]) -> Prepared:
    """One image per (part, class ids)."""
    labels = np.zeros((len(images), TAXONOMY.num_classes), bool)
    for row, (_, ids) in enumerate(images):
        labels[row, ids] = True
    return make_prepared(labels, [part for part, _ in images])


def complete(split: str) -> list[tuple[tuple[str, str], list[int]]]:
    """Every class twice as query and twice as candidate; classes 0 to 2, 3 to 6, 7 and 8 are those of an attribute."""
    return [((split, role), [m % 3, 3 + m % 4, 7 + m % 2]) for role in ("query", "candidate") for m in range(12)]


FULL = [(TRAIN, ids) for _, ids in complete("test")] + complete("valid")


def test_a_complete_data_set_has_no_gap():
    assert gaps.describe(case(*FULL, *complete("test"))) == []


def test_attributes_and_classes_that_training_does_not_show():
    images = [(TRAIN, [0, 7]), (TRAIN, [0, 7]), (TRAIN, [1, 7]), *complete("valid"), *complete("test")]
    assert gaps.describe(case(*images)) == [
        "not trained, since no training image has a label: details",
        "classes without a training image (2): colour: blue, sleeve: short",
        f"losses that compare images can't train sleeve: {gaps.NO_TRIPLET}",
    ]


@pytest.mark.parametrize(
    ("images", "sentences"),
    [
        ([(QUERY, [0, 7]), (CANDIDATE, [0, 3, 8])], [
            "not evaluated, since no query has a label: details",
            "not evaluated, since no query has a relevant candidate: sleeve",
            "all test candidates share the class, so every ranking scores 100 %: colour",
        ]),
        ([(QUERY, [0, 3]), (QUERY, [1]), (CANDIDATE, [0]), (CANDIDATE, [2])], [
            "not evaluated, since no candidate has a label: details",
            "not evaluated, since no query has a label: sleeve",
            "classes with test queries and no test candidate; these queries score 0 (1): colour: green",
        ]),
        ([(QUERY, [0]), (CANDIDATE, [1])], [
            "not evaluated, since no query has a relevant candidate: colour",
            "not evaluated, since no query has a label: details, sleeve",
        ]),
    ],
    ids=["two test images", "one class unanswered", "nothing"],
)  # fmt: skip
def test_what_cannot_be_evaluated(images, sentences):
    assert gaps.describe(case(*FULL, *images)) == sentences


def test_without_validation_images_the_last_epochs_are_kept():
    trained = [image for image in FULL if image[0] == TRAIN]
    assert gaps.describe(case(*trained, *complete("test"))) == NOTHING_VALIDATED
    assert gaps.describe(case(*trained, *complete("test"), (("valid", "candidate"), [0, 3, 7]))) == NOTHING_VALIDATED


def test_unlabelled_images_count_for_nothing():
    images = [*FULL, *complete("test")]
    more = [(("none", "unlabelled"), []), (("none", "rare"), [])]
    assert gaps.describe(case(*images, *more)) == gaps.describe(case(*images)) == []


@pytest.mark.parametrize("kind", ["single", "multi", "partial"])
def test_comparable_attributes_are_those_with_an_anchor(kind):
    for seed in range(30):
        labels = random_labels(kind, 1 + seed % 5, np.random.default_rng(seed))
        anchors = find_anchors(torch.from_numpy(labels), OWN)
        expected = np.isin(range(TAXONOMY.num_attributes), OWN[anchors.class_id])
        assert gaps.comparable(make_prepared(labels, [TRAIN] * len(labels))).tolist() == expected.tolist()


def test_a_long_list_is_cut():
    names = [f"class {i}" for i in range(20)]
    assert gaps.listed(names[:8]) == ", ".join(names[:8])
    assert gaps.listed(names) == ", ".join([*names[:8], "and 12 more"])
