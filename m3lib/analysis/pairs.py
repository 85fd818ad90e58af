"""Which rows are compared with which, and why."""

from collections.abc import Collection
from itertools import pairwise

PUBLISHED_NAMES = {  # variant -> name in the published table, in the published order
    "asen": "ASEN",
    "asen_v2": "ASEN_v2",
    "asen_pp": "ASEN++",
    "modc": "MODC",
    "m3_a": "M3-Net_a",
    "m3_c": "M3-Net_c",
    "m3": "M3-Net",
}
PARTS = {  # what two rows differ in -> the rows without and with it
    "training the last blocks": ("frozen", "classifier"),
    "cross-entropy instead of Loss 1, classifier": ("classifier_bce", "classifier"),
    "cross-entropy instead of Loss 1, ASEN_v2": ("asen_v2_l1", "asen_v2_l1_softmax"),
    "cross-entropy instead of Loss 1, M3-Net": ("m3", "m3_softmax"),
    "attention by attribute": ("classifier", "asen_v2_softmax"),
    "triplets beside cross-entropy": ("asen_v2_softmax", "asen_v2_l1_softmax"),
    "Loss 1 beside the triplets": ("asen_v2", "asen_v2_l1"),
    "all pairs instead of a triplet, ASEN_v2": ("asen_v2", "asen_v2_contrast"),
    "all pairs instead of a triplet, ASEN++": ("asen_pp", "asen_pp_contrast"),
    "all pairs instead of a triplet, MODC": ("modc", "modc_contrast"),
    "attention by class": ("m3_a", "m3"),
    "attention by attribute, in M3-Net": ("m3_c", "m3"),
    "a projection per class, queries of equal length": ("m3_shared", "m3"),
    "M3-Net's class branch and losses": ("asen_v2_l1", "m3"),
    "Losses 2 and 3": ("m3_loss1", "m3"),
    "Duet instead of M3-Net": ("m3", "duet"),
    "Duet instead of the classifier": ("classifier", "duet"),
}
FURTHER_PAIRS = (
    *PARTS.values(), ("modc", "m3"), ("classifier_bce", "m3"), ("classifier", "m3"), ("classifier", "m3_softmax"),
    ("asen_v2_contrast", "m3"), ("modc_contrast", "m3"), ("asen_v2_l1_softmax", "m3_softmax"), ("modc_l1", "m3"),
    ("asen_pp", "asen_pp_long"),
)  # fmt: skip


def comparison_pairs(variants: Collection[str]) -> list[tuple[str, str]]:
    """Return (lower, higher) pairs of variants: neighbours in the published order, then FURTHER_PAIRS."""
    order = [name for name in PUBLISHED_NAMES if name in variants]
    further = [pair for pair in FURTHER_PAIRS if set(pair) <= set(variants)]
    return list(dict.fromkeys([*pairwise(order), *further]))
