"""The losses, on one batch that holds supervision for every attribute and class at once.

An anchor is a pair (image, class it carries). Its positives carry that class too; its negatives are known under the
class's attribute and do not carry it. Images unknown under an attribute take no part in it and get no gradient from it.
Letters: B images, N attributes, M classes, A anchors.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 2**24  # cosines made at a time, 64 MB


class Anchors(NamedTuple):
    image: Tensor  # (A,) int64
    class_id: Tensor  # (A,) int64
    positives: Tensor  # (A, B) bool, never the anchor itself
    negatives: Tensor  # (A, B) bool


class Batch(NamedTuple):
    index: Tensor  # (B,) int64 into the training images
    labels: Tensor  # (B, M) bool: what the losses may know of them
    anchors: Anchors

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.index, self.labels.to(device), Anchors(*(part.to(device) for part in self.anchors)))


def find_anchors(labels: Tensor, attribute_of_class: Tensor) -> Anchors:
    """Every (image, class) of a batch that has at least one positive and one negative.

    labels: (B, M) bool; attribute_of_class: (M,) int64.
    """
    known = known_attributes(labels, attribute_of_class)[:, attribute_of_class]  # (B, M)
    image, class_id = labels.nonzero(as_tuple=True)
    positives = labels.T[class_id].clone()  # (A, B)
    positives[torch.arange(len(image), device=image.device), image] = False
    negatives = (known & ~labels).T[class_id]  # (A, B)
    usable = positives.any(dim=1) & negatives.any(dim=1)
    return Anchors(image[usable], class_id[usable], positives[usable], negatives[usable])


def known_attributes(labels: Tensor, attribute_of_class: Tensor) -> Tensor:
    """(B, N) bool: whether the image carries any class of the attribute."""
    num_attributes = int(attribute_of_class[-1]) + 1
    count = labels.new_zeros(len(labels), num_attributes, dtype=torch.float32)
    return count.index_add_(1, attribute_of_class, labels.float()) > 0


def draw(similarity: Tensor, allowed: Tensor, hardness: float, generator: torch.Generator) -> Tensor:
    """(A,) one allowed column per row, drawn with probability proportional to exp(hardness * similarity).

    Gumbel's trick: the argmax of the logits plus Gumbel noise is a draw from their softmax. hardness 0 draws uniformly.
    """
    uniform = torch.rand(similarity.shape, generator=generator, device=generator.device).to(similarity.device)
    noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
    logits = hardness * similarity + noise
    return logits.masked_fill(~allowed, -torch.inf).argmax(dim=1)


class Triplets(NamedTuple):
    """The drawn triplets: the anchors' unit rows (A, d), and their cosines (A,) to a positive and to a negative."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor


def draw_triplets(
    embedding: Tensor, space: Tensor, anchors: Anchors, hardness: float, generator: torch.Generator
) -> Triplets:
    """One positive and one negative per anchor, compared in the anchor's space alone.

    embedding: (B, S, d), unit rows in S spaces; space: (A,) int64. All pairs are compared without a gradient; only the
    pairs drawn get one, so that what backward keeps is A rows and not every pair of every space.
    """
    alike = similarity(embedding, anchors.image, space)
    positive = draw(-alike, anchors.positives, hardness, generator)
    negative = draw(alike, anchors.negatives, hardness, generator)
    rows = embedding[torch.stack([anchors.image, positive, negative]), space]  # (3, A, d)
    return Triplets(rows[0], (rows[0] * rows[1]).sum(dim=1), (rows[0] * rows[2]).sum(dim=1))


@torch.no_grad()
def similarity(embedding: Tensor, image: Tensor, space: Tensor) -> Tensor:
    """(A, B) cosine of each anchor to the batch in its own space, over the spaces that have anchors.

    embedding: (B, S, d), unit; image, space: (A,) int64. Anchors of one space share a matrix product; the products are
    made in blocks of at most BLOCK cosines (or one space), whatever the number of spaces.
    """
    size, alike = len(embedding), embedding.new_empty(len(image), len(embedding))
    for part in space.argsort(stable=True).split(max(1, BLOCK // size**2)):
        spaces, which = space[part].unique_consecutive(return_inverse=True)
        rows = embedding[:, spaces]  # (B, s, d)
        gram = torch.einsum("isd,jsd->sij", rows, rows)  # (s, B, B)
        alike[part] = gram[which, image[part]]
    return alike


def triplet_loss(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """mean max(0, margin - s(a, p) + s(a, n)); 0 where there is no triplet (ASEN, eq. for T in its code)."""
    if not len(positive):
        return positive.sum()
    return F.relu(margin - positive + negative).mean()


def center_cosines(embedding: Tensor, centers: Tensor, attribute_of_class: Tensor) -> Tensor:
    """(B, M) cosine of each image to each class center in the class's attribute space.

    embedding: (B, N, D), unit; centers: (M, D), unit.
    """
    return (embedding[:, attribute_of_class] * centers).sum(dim=2)


def center_loss(cosines: Tensor, labels: Tensor, seen: Tensor, attribute_of_class: Tensor, margin: float) -> Tensor:
    """MODC's cluster loss: mean over (image, class m) of max(0, margin - cos(f, K_m) + max over m' of cos(f, K_m')).

    m' runs over the attribute's other classes that the image does not carry. Pairs whose center, or all of whose
    rivals' centers, are yet unknown take no part. cosines: (B, M) from `center_cosines`; labels: (B, M) bool;
    seen: (M,) bool.
    """
    image, class_id = labels.nonzero(as_tuple=True)  # (A,), (A,)
    siblings = attribute_of_class[class_id][:, None] == attribute_of_class  # (A, M)
    rivals = siblings & ~labels[image] & seen  # (A, M)
    usable = seen[class_id] & rivals.any(dim=1)
    image, class_id, rivals = image[usable], class_id[usable], rivals[usable]
    nearest_rival = cosines[image].masked_fill(~rivals, -torch.inf).amax(dim=1)
    return triplet_loss(cosines[image, class_id], nearest_rival, margin)


def align_loss(attribute: Tensor, local: Tensor, known: Tensor) -> Tensor:
    """ASEN++: mean of max(0, 1 - cos(g, l)) between the two branches, over known (image, attribute) pairs.

    attribute, local: (B, N, D), unit; known: (B, N) bool. The gradient reaches both branches. The released code takes
    the mean for anchors, positives and negatives apart and adds the three; over one batch this is three times the mean.
    """
    distance = F.relu(1 - (attribute * local).sum(dim=2))[known]
    return 3 * distance.mean() if len(distance) else distance.sum()


def pseudo_labels(cosines: Tensor, labels: Tensor, attribute_of_class: Tensor, multi: Tensor, margin: float) -> Tensor:
    """(I, M) bool: the nearest center's class, for images unknown under an attribute, where it is near and clearly so.

    Near: its cosine reaches the median of labelled images to their own centers. Clearly: it leads the second by
    `margin`. Attributes with several classes per image (multi: (N,) bool) get none: there, no label may mean no class.
    cosines: (I, M); labels: (I, M) bool.
    """
    found = torch.zeros_like(labels)
    for n in (~multi).nonzero().flatten().tolist():
        own = (attribute_of_class == n).nonzero().flatten()  # (M_n,)
        near, truth = cosines[:, own], labels[:, own]
        if not truth.any():
            continue
        best, second = near.topk(2, dim=1).values.T
        sure = (best >= near[truth].median()) & (best - second >= margin) & ~truth.any(dim=1)
        found[sure.nonzero().flatten(), own[near.argmax(dim=1)[sure]]] = True
    return found


def classification_loss(logits: Tensor, labels: Tensor, positive_weight: Tensor, attribute_of_class: Tensor) -> Tensor:
    """Loss 1 (M3-Net's poster): -(1/M_n) sum over m of w_p y log x + (1 - y) log(1 - x), x = sigmoid(logit).

    Averaged over the known (image, attribute) pairs. The poster prints the second term with the other sign, a misprint.
    logits: (B, M); labels: (B, M) bool; positive_weight: (M,).
    """
    known = known_attributes(labels, attribute_of_class)[:, attribute_of_class]  # (B, M)
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
    negatives = known_attributes(labels, attribute_of_class).sum(dim=0)[attribute_of_class].float() - positives
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
    def set(self, sums: Tensor, counts: Tensor) -> None:
        """Place every class that has images at their mean; sums: (M, d) of unit embeddings, counts: (M,)."""
        present = counts > 0
        self.value[present] = F.normalize(sums[present], dim=1)
        self.seen |= present

    @torch.no_grad()
    def update(self, embedding: Tensor, labels: Tensor, classes: Tensor | None = None) -> None:
        """Move each center towards the batch mean of its class.

        embedding: (B, K, d) of some classes (K,), by default all M; labels: (B, M) bool.
        """
        classes = torch.arange(len(self.seen), device=labels.device) if classes is None else classes
        own, value, seen = labels[:, classes], self.value[classes], self.seen[classes]
        present = own.any(dim=0)  # (K,)
        mean = F.normalize(torch.einsum("bk,bkd->kd", own.float(), embedding.float()), dim=1)
        momentum = torch.where(seen, self.momentum, 0.0)[:, None]  # the first sight sets the center
        moved = F.normalize(momentum * value + (1 - momentum) * mean, dim=1)
        self.value[classes] = torch.where(present[:, None], moved, value)
        self.seen[classes] = seen | present
