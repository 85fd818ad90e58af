"""The losses, on one batch that holds supervision for every attribute and class at once.

An anchor is a pair (image, class it carries). Its positives carry that class too; its negatives are known under the
class's attribute and do not carry it. Images unknown under an attribute take no part in it and get no gradient from it.
Letters: B images, N attributes, M classes, A anchors.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Anchors(NamedTuple):
    image: Tensor  # (A,) int64
    class_id: Tensor  # (A,) int64
    positives: Tensor  # (A, B) bool, never the anchor itself
    negatives: Tensor  # (A, B) bool


def find_anchors(labels: Tensor, attribute_of_class: Tensor) -> Anchors:
    """Every (image, class) of a batch that has at least one positive and one negative.

    labels: (B, M) bool; attribute_of_class: (M,) int64.
    """
    known = known_classes(labels, attribute_of_class)  # (B, M)
    image, class_id = labels.nonzero(as_tuple=True)
    positives = labels.T[class_id].clone()  # (A, B)
    positives[torch.arange(len(image), device=image.device), image] = False
    negatives = (known & ~labels).T[class_id]  # (A, B)
    usable = positives.any(dim=1) & negatives.any(dim=1)
    return Anchors(image[usable], class_id[usable], positives[usable], negatives[usable])


def known_classes(labels: Tensor, attribute_of_class: Tensor) -> Tensor:
    """(B, M) bool: whether the image carries any class of the attribute that the column belongs to."""
    num_attributes = int(attribute_of_class[-1]) + 1
    count = labels.new_zeros(len(labels), num_attributes, dtype=torch.float32)
    count.index_add_(1, attribute_of_class, labels.float())
    return (count > 0)[:, attribute_of_class]


def draw(similarity: Tensor, allowed: Tensor, hardness: float, generator: torch.Generator) -> Tensor:
    """(A,) one allowed column per row, drawn with probability proportional to exp(hardness * similarity).

    Gumbel's trick: the argmax of the logits plus Gumbel noise is a draw from their softmax. hardness 0 draws uniformly.
    """
    uniform = torch.rand(similarity.shape, generator=generator, device=generator.device).to(similarity.device)
    noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
    logits = hardness * similarity.detach() + noise
    return logits.masked_fill(~allowed, -torch.inf).argmax(dim=1)


class Triplets(NamedTuple):
    """Cosine similarities of the drawn triplets: anchor to positive and anchor to negative, (A,) each."""

    positive: Tensor
    negative: Tensor


def draw_triplets(similarity: Tensor, anchors: Anchors, hardness: float, generator: torch.Generator) -> Triplets:
    """One positive and one negative per anchor; similarity: (A, B), of the anchors to every image of the batch."""
    positive = draw(-similarity, anchors.positives, hardness, generator)
    negative = draw(similarity, anchors.negatives, hardness, generator)
    return Triplets(
        similarity.gather(1, positive[:, None]).squeeze(1), similarity.gather(1, negative[:, None]).squeeze(1)
    )


def triplet_loss(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """mean max(0, margin - s(a, p) + s(a, n)); 0 where there is no triplet (ASEN, eq. for T in its code)."""
    if not len(positive):
        return positive.sum()
    return F.relu(margin - positive + negative).mean()


def attribute_similarity(embedding: Tensor, anchors: Anchors, attribute_of_class: Tensor) -> Tensor:
    """(A, B) cosine of each anchor to the batch in its attribute's space; embedding: (B, N, D), unit."""
    gram = torch.einsum("ind,jnd->nij", embedding, embedding)  # (N, B, B)
    return gram[attribute_of_class[anchors.class_id], anchors.image]


def class_similarity(embedding: Tensor, anchors: Anchors) -> Tensor:
    """(A, B) cosine of each anchor to the batch in its class's space; embedding: (B, M, d), unit."""
    gram = torch.einsum("imd,jmd->mij", embedding, embedding)  # (M, B, B)
    return gram[anchors.class_id, anchors.image]


def classification_loss(logits: Tensor, labels: Tensor, positive_weight: Tensor, attribute_of_class: Tensor) -> Tensor:
    """Loss 1 (M3-Net's poster): -(1/M_n) sum over m of w_p y log x + (1 - y) log(1 - x), x = sigmoid(logit).

    Averaged over the known (image, attribute) pairs. The poster prints the second term with the other sign, a misprint.
    logits: (B, M); labels: (B, M) bool; positive_weight: (M,).
    """
    known = known_classes(labels, attribute_of_class)
    sizes = torch.bincount(attribute_of_class).to(logits.dtype)[attribute_of_class]  # (M,) M_n of each class
    terms = F.binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype), pos_weight=positive_weight, reduction="none"
    )
    pairs = (known / sizes).sum().clamp(min=1)
    return (terms * known / sizes).sum() / pairs


def positive_weights(labels: Tensor, attribute_of_class: Tensor, power: float) -> Tensor:
    """(M,) w_p = (negatives / positives) ** power, at least 1; a class without a positive gets 1.

    Counted over the images known under the class's attribute; labels: (I, M) bool of the training images.
    """
    positives = labels.sum(dim=0).float()
    negatives = known_classes(labels, attribute_of_class).sum(dim=0).float() - positives
    ratio = torch.where(positives > 0, negatives / positives.clamp(min=1), torch.ones_like(positives))
    return ratio.pow(power).clamp(min=1)


class Centers(nn.Module):
    """Class centers as moving averages of unit embeddings (M3-Net's Loss 3, MODC): buffers, never trained."""

    def __init__(self, num_classes: int, dim: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(num_classes, dim))  # (M, d), unit rows once seen
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    @torch.no_grad()
    def update(self, embedding: Tensor, labels: Tensor) -> None:
        """Move each center towards the batch mean of its class; embedding: (B, M, d), labels: (B, M) bool."""
        present = labels.any(dim=0)
        weight = labels.float()
        mean = F.normalize(torch.einsum("bm,bmd->md", weight, embedding.float()), dim=1)
        momentum = torch.where(self.seen, self.momentum, 0.0)[:, None]  # the first sight sets the center
        moved = F.normalize(momentum * self.value + (1 - momentum) * mean, dim=1)
        self.value.copy_(torch.where(present[:, None], moved, self.value))
        self.seen |= present
