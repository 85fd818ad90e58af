"""Duet, the system of this repository: class evidence and an open embedding from one space per attribute."""

from m3lib.config import Variant
from m3lib.systems.asen import ASENv2
from m3lib.taxonomy import Taxonomy


class Duet(ASENv2):
    """ASEN_v2's attention, trained by classes and by contrast at once, and read as the mean of two views.

    h_n = ASEN_v2's pooled, gated features of attribute n            (`AttributeAttention`)
    p_m = softmax, or sigmoid less log w_m, of w_m . h_n + b_m       class probability (`class_probabilities`)
    f_n = L2(h_n)                                                    attribute embedding
    loss = 4 duet_classification(p) + contrast of all pairs of a batch(f)
    p and f are averaged over an image and its mirror image, then compared by the score `open`:
    sum_m p_m(q) p_m(c) + 0.3 cos(f(q), f(c))

    Why these parts: a candidate is relevant if it carries the class that is asked for. Where an image has one class,
    no ranking is better than that by the true probability of sharing it, which class-specific embeddings can only
    repeat. So the gain must come from better probabilities: a softmax where an image has one class, Loss 1 where it may
    have several, a contrast that shapes the same features, and two views. A class that was never trained on has no
    probability of its own; there the embedding contributes what it knows.
    """

    outputs = {"attribute"}
    losses = {"asen_triplet", "duet_classification", "m3_classification"}
    settings = {"attention_width", "queries", "attention_batch_norm", "views"}

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        self.views = variant.model.views
