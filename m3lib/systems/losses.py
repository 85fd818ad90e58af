"""The losses, on one batch with labels of all attributes and classes.

An anchor is a pair (image, class that the image carries). Positives carry the class too; negatives have a label for the
class's attribute but do not carry the class. An image without a label for an attribute ("unknown") is left out of that
attribute's losses and gets no gradient from them. In params.yaml the losses of a paper are named after it;
`objective.py` maps these names to the functions here.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

MAX_COSINES = 2**24  # computed at once: 64 MB


class Anchors(NamedTuple):
    image: Tensor  # (A,) int64, row of the batch
    class_id: Tensor  # (A,) int64
    positives: Tensor  # (A, B) bool, never the anchor itself
    negatives: Tensor  # (A, B) bool


class Batch(NamedTuple):
    index: Tensor  # (B,) int64, row of the training images
    labels: Tensor  # (B, M) bool
    anchors: Anchors

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.index, self.labels.to(device), Anchors(*(field.to(device) for field in self.anchors)))


def find_anchors(labels: Tensor, attribute_of_class: Tensor) -> Anchors:
    """Return every (image, class) of labels (B, M) bool that has at least one positive and one negative."""
    known = known_attributes(labels, attribute_of_class)[:, attribute_of_class]  # (B, M)
    image, class_id = labels.nonzero(as_tuple=True)
    positives = labels.T[class_id].clone()  # (A, B)
    positives[torch.arange(len(image), device=image.device), image] = False
    negatives = (known & ~labels).T[class_id]  # (A, B)
    usable = positives.any(dim=1) & negatives.any(dim=1)
    return Anchors(image[usable], class_id[usable], positives[usable], negatives[usable])


def known_attributes(labels: Tensor, attribute_of_class: Tensor) -> Tensor:
    """Return (B, N) bool: whether an image carries any class of an attribute; labels: (B, M) bool."""
    num_attributes = int(attribute_of_class[-1]) + 1
    count = labels.new_zeros(len(labels), num_attributes, dtype=torch.float32)
    return count.index_add_(1, attribute_of_class, labels.float()) > 0


def sample_triplets(
    embedding: Tensor, space: Tensor, anchors: Anchors, hardness: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Sample one positive and one negative per anchor, compared in the anchor's space.

    Returns the anchors' cosines to the positives (A,) and to the negatives (A,).
    embedding: (B, S, d), unit rows in S spaces; space: (A,) int64. Far positives and near negatives are more likely as
    `hardness` grows. Cosines of all pairs are computed without a gradient; only the sampled pairs get one.
    """
    with torch.no_grad():
        cosines = anchor_cosines(embedding, anchors.image, space)  # (A, B)
    positive = sample_by_hardness(-cosines, anchors.positives, hardness, generator)
    negative = sample_by_hardness(cosines, anchors.negatives, hardness, generator)
    rows = embedding[torch.stack([anchors.image, positive, negative]), space]  # (3, A, d)
    return (rows[0] * rows[1]).sum(dim=1), (rows[0] * rows[2]).sum(dim=1)


def sample_by_hardness(similarity: Tensor, allowed: Tensor, hardness: float, generator: Generator) -> Tensor:
    """Sample one allowed column per row of (A, B), with probability proportional to exp(hardness * similarity).

    Gumbel's trick: the argmax of logits plus Gumbel noise is a sample from their softmax.
    """
    uniform = torch.rand(similarity.shape, generator=generator, device=generator.device).to(similarity.device)
    noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
    logits = hardness * similarity + noise
    return logits.masked_fill(~allowed, -torch.inf).argmax(dim=1)


def anchor_cosines(embedding: Tensor, image: Tensor, space: Tensor) -> Tensor:
    """Return (A, B): the cosines of each anchor to all images of the batch, in the anchor's space.

    embedding: (B, S, d), unit; image, space: (A,) int64. Anchors of one space share a matrix product, and at most
    MAX_COSINES are computed at once.
    """
    size, cosines = len(embedding), embedding.new_empty(len(image), len(embedding))
    for rows in space.argsort(stable=True).split(max(1, MAX_COSINES // size**2)):
        spaces, position = space[rows].unique_consecutive(return_inverse=True)
        vectors = embedding[:, spaces]  # (B, s, d)
        gram = torch.einsum("isd,jsd->sij", vectors, vectors)  # (s, B, B)
        cosines[rows] = gram[position, image[rows]]
    return cosines


def triplet_loss(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """ASEN's triplet loss, and M3-Net's Loss 2 in class-specific spaces: mean max(0, margin - s(a, p) + s(a, n)).

    positive, negative: (A,) cosines. 0 without triplets.
    """
    return F.relu(margin - positive + negative).sum() / max(1, len(positive))


def contrast_loss(cosines: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Supervised contrast of all pairs (Khosla et al. 2020, equation 2), each anchor in its own space.

    The mean over anchors of: the mean over positives p of -log(e_p / sum of e_j over positives and negatives j), where
    e_j = exp(cosine to j / temperature). cosines: (A, B); positives, negatives: (A, B) bool, a positive in each row. 0
    without anchors.
    """
    logits = cosines / temperature
    all_pairs = logits.masked_fill(~(positives | negatives), -torch.inf).logsumexp(dim=1)  # (A,)
    positive_pairs = (logits * positives).sum(dim=1) / positives.sum(dim=1)  # (A,)
    return (all_pairs - positive_pairs).sum() / max(1, len(cosines))


def align_loss(attribute: Tensor, local: Tensor, known: Tensor) -> Tensor:
    """ASEN++: 3 * mean of max(0, 1 - cos(g, l)) over known (image, attribute) pairs of the two branches.

    attribute, local: (B, N, D), unit; known: (B, N) bool. The factor is the released code's, which adds the means of
    anchors, positives and negatives.
    """
    distance = F.relu(1 - (attribute * local).sum(dim=2))[known]
    return 3 * (distance.sum() / max(1, len(distance)))


def center_cosines(embedding: Tensor, centers: Tensor, attribute_of_class: Tensor) -> Tensor:
    """Return (B, M): the cosine of each image to each class center, in the space of the class's attribute.

    embedding: (B, N, D), unit; centers: (M, D), unit.
    """
    return (embedding[:, attribute_of_class] * centers).sum(dim=2)


def center_loss(cosines: Tensor, labels: Tensor, seen: Tensor, attribute_of_class: Tensor, margin: float) -> Tensor:
    """MODC's cluster loss: mean over (image, class m) of max(0, margin - cos(f, K_m) + max over m' of cos(f, K_m')).

    K_m is the center of class m; m' runs over the attribute's other classes that the image does not carry. Pairs
    without a center, or without any center m', are left out. cosines: (B, M); labels: (B, M) bool; seen: (M,) bool.
    """
    image, class_id = labels.nonzero(as_tuple=True)  # (A,), (A,)
    siblings = attribute_of_class[class_id][:, None] == attribute_of_class  # (A, M)
    rivals = siblings & ~labels[image] & seen  # (A, M)
    usable = seen[class_id] & rivals.any(dim=1)
    image, class_id, rivals = image[usable], class_id[usable], rivals[usable]
    nearest_rival = cosines[image].masked_fill(~rivals, -torch.inf).amax(dim=1)
    return triplet_loss(cosines[image, class_id], nearest_rival, margin)


def pseudo_labels(cosines: Tensor, labels: Tensor, attribute_of_class: Tensor, multi: Tensor, margin: float) -> Tensor:
    """Return MODC's pseudo-labels, (I, M) bool: the class of the nearest center, for images unknown under an attribute.

    The center must be near (a cosine of at least the median of labelled images to the centers of their classes) and
    clearly nearest (ahead of the second by `margin`). Attributes with several classes per image, multi (N,) bool, get
    none: there a missing label may be a true negative. cosines: (I, M); labels: (I, M) bool.
    """
    pseudo = torch.zeros_like(labels)
    for n in (~multi).nonzero().flatten().tolist():
        classes = (attribute_of_class == n).nonzero().flatten()  # (M_n,)
        near, truth = cosines[:, classes], labels[:, classes]
        best, second = near.topk(2, dim=1).values.T
        # without labelled images the median is NaN, and nothing reaches it
        sure = (best >= near[truth].median()) & (best - second >= margin) & ~truth.any(dim=1)
        pseudo[sure.nonzero().flatten(), classes[near.argmax(dim=1)[sure]]] = True
    return pseudo


def classification_loss(
    logits: Tensor, labels: Tensor, multi: Tensor, attribute_of_class: Tensor, positive_weight: Tensor | None = None
) -> Tensor:
    """The usual classification loss of each attribute, averaged over known (image, attribute) pairs.

    One class per image: softmax cross-entropy; the target of an image that carries several is uniform over them.
    Several classes per image, multi (N,) bool: sigmoid binary cross-entropy, mean over the attribute's classes.
    positive_weight: (M,), of the positive terms of sigmoids. With M3-Net's weights, this is Loss 1 for the attributes
    with several classes per image (Duet). logits: (B, M); labels: (B, M) bool.
    """
    known = known_attributes(labels, attribute_of_class)  # (B, N)
    sizes, weight = torch.bincount(attribute_of_class).tolist(), positive_weight
    weight = logits.new_ones(len(attribute_of_class)) if weight is None else weight
    columns = (x.split(sizes, dim=-1) for x in (logits, labels.to(logits.dtype), weight))
    values = torch.stack([attribute_loss(*column) for column in zip(*columns, multi.tolist(), strict=True)], dim=1)
    return (values * known).sum() / known.sum().clamp(min=1)  # values: (B, N)


def attribute_loss(logits: Tensor, y: Tensor, weight: Tensor, multi: bool) -> Tensor:
    """Return (B,): one attribute's term of `classification_loss`; logits, y: (B, M_n); weight: (M_n,)."""
    if multi:
        return F.binary_cross_entropy_with_logits(logits, y, pos_weight=weight, reduction="none").mean(dim=1)
    return F.cross_entropy(logits, y / y.sum(dim=1, keepdim=True).clamp(min=1), reduction="none")


def m3_classification_loss(
    logits: Tensor, labels: Tensor, positive_weight: Tensor, attribute_of_class: Tensor
) -> Tensor:
    """M3-Net's Loss 1: -(1/M_n) sum over m of w_m y log x + (1 - y) log(1 - x), with x = sigmoid(logit).

    Averaged over known (image, attribute) pairs. The poster prints the second term with the other sign, a misprint.
    logits: (B, M); labels: (B, M) bool; positive_weight: (M,).
    """
    known = known_attributes(labels, attribute_of_class)[:, attribute_of_class]  # (B, M)
    sizes = torch.bincount(attribute_of_class).to(logits.dtype)[attribute_of_class]  # (M,) M_n of each class
    y = labels.to(logits.dtype)
    terms = F.binary_cross_entropy_with_logits(logits, y, pos_weight=positive_weight, reduction="none")
    pairs = (known / sizes).sum().clamp(min=1)
    return (terms * known / sizes).sum() / pairs


def positive_weights(labels: Tensor, attribute_of_class: Tensor, power: float) -> Tensor:
    """Return w (M,) = (negatives / positives) ** power, at least 1; 1 for a class without positives.

    Counted over the training images, labels (I, M) bool, that are known under the class's attribute.
    """
    positives = labels.sum(dim=0).float()
    negatives = known_attributes(labels, attribute_of_class).sum(dim=0)[attribute_of_class].float() - positives
    ratio = torch.where(positives > 0, negatives / positives.clamp(min=1), torch.ones_like(positives))
    return ratio.pow(power).clamp(min=1)


class Centers(nn.Module):
    """Class centers, moving averages of unit embeddings (M3-Net's Loss 3, MODC); buffers without a gradient."""

    def __init__(self, num_classes: int, dim: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(num_classes, dim))  # (M, d), unit rows where seen
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    @torch.no_grad()
    def set(self, sums: Tensor, counts: Tensor) -> None:
        """Set the centers of classes with images to their means; sums: (M, d) of unit embeddings, counts: (M,)."""
        present = counts > 0
        self.value[present] = F.normalize(sums[present], dim=1)
        self.seen |= present

    @torch.no_grad()
    def update(self, embedding: Tensor, labels: Tensor, class_ids: Tensor | None = None) -> None:
        """Move each center towards the batch mean of its class; a class seen for the first time starts at that mean.

        embedding: (B, K, d) of the classes class_ids (K,), by default all M; labels: (B, M) bool.
        """
        class_ids = torch.arange(len(self.seen), device=labels.device) if class_ids is None else class_ids
        carried, value, seen = labels[:, class_ids], self.value[class_ids], self.seen[class_ids]
        present = carried.any(dim=0)  # (K,)
        mean = F.normalize(torch.einsum("bk,bkd->kd", carried.float(), embedding.float()), dim=1)
        momentum = torch.where(seen, self.momentum, 0.0)[:, None]
        moved = F.normalize(momentum * value + (1 - momentum) * mean, dim=1)
        self.value[class_ids] = torch.where(present[:, None], moved, value)
        self.seen[class_ids] = seen | present
