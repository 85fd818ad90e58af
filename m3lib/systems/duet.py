"""Duet, the system of this repository: class evidence and an open embedding from one space per attribute."""

from m3lib.config import Variant
from m3lib.systems.asen import ASENv2
from m3lib.taxonomy import Taxonomy


class Duet(ASENv2):
    """ASEN_v2's attention, trained by classes and by contrast at once, and read as the mean of two views.

    h_n = ASEN_v2's pooled, gated features of attribute n           (`AttributeAttention`)
    p_m = softmax or sigmoid of w_m . h_n + b_m                     class evidence
    f_n = L2(h_n)                                                   attribute embedding
    loss = duet_classification(p) + contrast of all pairs of a batch(f)
    p and f are averaged over an image and its mirror image, then compared by the score `open`:
    sum_m p_m(q) p_m(c) + 0.3 cos(f(q), f(c))

    Why these parts: relevance is sharing a class, so the best ranking among trained classes is by the probability of
    sharing one, and class-specific embeddings can only repeat it. What remains to be gained are better probabilities:
    a softmax where an image has one class and Loss 1 where it has several, a contrast that shapes the same features,
    and two views. Classes that were never trained on have no probability; there the embedding decides.
    """

    outputs = {"attribute"}
    losses = {"asen_triplet", "classification", "m3_classification", "duet_classification"}
    settings = {"attention_width", "queries", "attention_batch_norm", "views"}

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        self.views = variant.model.views
