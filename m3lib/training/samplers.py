"""Which images form a batch, and which of them are compared (train.sampler).

uniform: an epoch shuffles the images; every (image, class) of a batch is an anchor, with triplets of all attributes.
balanced: as uniform, but a quarter of each batch is pairs of images of rare classes, which would otherwise rarely meet.
asen, asen_pp, asen_pp_exact: triplets of one attribute each, as in the released code of the ASEN family.
"""

import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from m3lib.compatibility import losses_of
from m3lib.config import Train, Variant
from m3lib.data import gaps
from m3lib.data.manifest import Prepared, hold_out
from m3lib.errors import InputError
from m3lib.systems.losses import Anchors, Batch, find_anchors

IMAGE_SAMPLERS = ("uniform", "balanced")  # train.batch counts images; for the other samplers, triplets
TRIPLET_LOSSES = ("asen_triplet", "asen_pp_local", "m3_instance", "m3_cluster")  # they compare images of a class
RARE_PAIR_SHARE = 0.25  # of a `balanced` batch


def steps_per_epoch(num_images: int, train: Train) -> int:
    return max(1, (num_images if train.sampler in IMAGE_SAMPLERS else train.triplets) // train.batch)


def epoch(labels: Tensor, attribute_of_class: Tensor, train: Train, generator: Generator) -> Iterator[Batch]:
    """Return the batches of one epoch; labels: (I, M) bool of the training images."""
    if train.sampler in IMAGE_SAMPLERS:
        draw = uniform if train.sampler == "uniform" else balanced
        return draw(labels, attribute_of_class, train.batch, generator)
    return TripletSampler(labels, attribute_of_class, train.sampler).epoch(train, generator)


def check_batch(labels: Tensor, train: Train) -> None:
    """Raise InputError if a batch of images has less than one pair of images of a class, where a larger one has more.

    If no two training images share a class, no batch helps (see `idle_losses`).
    """
    counts, size = labels.sum(dim=0).double(), len(labels)
    shared = float((counts * (counts - 1)).sum()) / max(1, size * (size - 1))  # mean classes that two images share
    pairs = shared * train.batch * (train.batch - 1) / 2
    if train.sampler not in IMAGE_SAMPLERS or pairs >= 1 or not shared:
        return
    least = math.ceil(0.5 + math.sqrt(0.25 + 2 / shared))  # shared * b * (b - 1) = 2
    problem = f"train.batch {train.batch} holds {pairs:.2g} pairs of images of one class on average"
    raise InputError(f"{problem}; set it to {least} or more")


def idle_losses(prepared: Prepared, variant: Variant) -> list[str]:
    """Return sentences on the losses of a row that find nothing to learn from in the training images."""
    prepared = hold_out(prepared, variant.train.held_out)
    active, comparable = losses_of(variant), gaps.comparable(prepared)
    losses = [name for name in active if name in TRIPLET_LOSSES]
    if not losses or comparable.all():
        return []
    names = [name for name, any_pair in zip(prepared.taxonomy.names, comparable, strict=True) if not any_pair]
    about = f"about {gaps.listed(names)}" if comparable.any() else "from these images"
    sentences = [f"{', '.join(losses)} can't learn anything {about}: {gaps.NO_TRIPLET}."]
    if not comparable.any() and losses == active:
        sentences.append("This row has no other loss: its network keeps the weights that it started with.")
    return sentences


def make_batch(index: Tensor, labels: Tensor, attribute_of_class: Tensor) -> Batch:
    """Return the batch of some rows (B,) of the training images, with every usable anchor."""
    index = index.sort().values  # ascending rows are read from the memory map in one sweep
    return Batch(index, labels[index], find_anchors(labels[index], attribute_of_class))


def with_copies(batch: Batch) -> Batch:
    """Return a batch of 2 B images, each followed by a copy with the same labels and anchors.

    The copy carries the classes of its image, so that each is a positive of the other.
    """
    index, labels, (image, class_id, *masks) = batch
    image = (2 * image[:, None] + torch.arange(2)).flatten()  # (2 A,)
    positives, negatives = (mask.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1) for mask in masks)
    positives[torch.arange(len(image)), image ^ 1] = True
    anchors = Anchors(image, class_id.repeat_interleave(2), positives, negatives)
    return Batch(index.repeat_interleave(2), labels.repeat_interleave(2, dim=0), anchors)


def uniform(labels: Tensor, attribute_of_class: Tensor, batch: int, generator: Generator) -> Iterator[Batch]:
    """Yield batches that contain every image once, except a last incomplete batch."""
    order = torch.randperm(len(labels), generator=generator)
    for index in order[: max(1, len(labels) // batch) * batch].split(batch):
        yield make_batch(index, labels, attribute_of_class)


def balanced(labels: Tensor, attribute_of_class: Tensor, batch: int, generator: Generator) -> Iterator[Batch]:
    """Yield as many images as `uniform`; a quarter of each batch is pairs of images of rare classes.

    A class is rare if a batch contains fewer than two of its images on average; classes of one image have no pair. Rare
    classes take turns in random order. The rest of a batch is images that the epoch has not used yet, in random order.
    No image is twice in a batch.
    """
    order = torch.randperm(len(labels), generator=generator)
    class_id, images = labels.T.nonzero(as_tuple=True)  # sorted by class
    counts = torch.bincount(class_id, minlength=labels.shape[1])  # (M,)
    starts = counts.cumsum(0) - counts
    rare = ((counts >= 2) & (counts * batch < 2 * len(labels))).nonzero().flatten()
    size, pairs = min(batch, len(labels)), min(int(RARE_PAIR_SHARE * batch / 2), len(rare))
    steps = max(1, len(labels) // batch)
    rounds = -(-steps * pairs // max(1, len(rare)))
    turns = [rare[torch.randperm(len(rare), generator=generator)] for _ in range(rounds)]
    for classes in torch.cat([*turns, rare[:0]])[: steps * pairs].view(steps, pairs):
        position = torch.rand(2, pairs, generator=generator, dtype=torch.float64)
        a, b = (position * torch.stack([counts[classes], counts[classes] - 1])).long()  # (pairs,) each
        b += b >= a  # any image of the class except a
        paired = images[starts[classes] + torch.stack([a, b])].unique()
        order = order[~torch.isin(order, paired)]
        rest, order = order[: size - len(paired)], order[size - len(paired) :]
        yield make_batch(torch.cat([paired, rest]), labels, attribute_of_class)


class TripletSampler:
    """Triplets as the ASEN family's code draws them: a random attribute, a random class of it, two of its images.

    The negative, by sampler (github.com/Maryeon/asen and asenpp):
    asen: a random (image, other class) pair of the attribute, so that frequent classes are more likely;
    asen_pp: a random other class, and a random image of it;
    asen_pp_exact: as asen_pp, but never an image that also carries the anchor's class, which the other two allow if
    images have several classes.
    Classes with fewer than two images are never anchors. Labels of other attributes are hidden in a triplet. If there
    is no triplet at all, a batch is random images, for the losses that need none.
    """

    def __init__(self, labels: Tensor, attribute_of_class: Tensor, kind: str):
        self.labels, self.attribute_of_class, self.kind = labels, attribute_of_class, kind
        self.images = [column.nonzero().flatten() for column in labels.T]  # M of (images of the class,)
        self.classes = []  # of each usable attribute: (classes for anchors, classes with any image)
        for n in range(int(attribute_of_class[-1]) + 1):
            present = [m for m in (attribute_of_class == n).nonzero().flatten().tolist() if len(self.images[m])]
            usable = [m for m in present if len(self.images[m]) >= 2 and len(self.negatives(m, present))]
            if usable:
                self.classes.append((usable, present))

    def negatives(self, m: int, classes: list[int]) -> Tensor:
        """Return the images of the classes that may be a negative for class m; an image appears once per class."""
        images = torch.cat([self.images[other] for other in classes if other != m] or [self.images[m][:0]])
        return images[~self.labels[images, m]] if self.kind == "asen_pp_exact" else images

    def epoch(self, train: Train, generator: Generator) -> Iterator[Batch]:
        """Yield batches of T = train.batch triplets: all anchors, then all positives, then all negatives."""
        T = train.batch
        positives, negatives = (torch.eye(T, 3 * T, dtype=torch.bool).roll(k * T, dims=1) for k in (1, 2))
        for _ in range(steps_per_epoch(len(self.labels), train)):
            if not self.classes:
                yield self.random_images(3 * T, generator)
                continue
            *images, class_id = torch.tensor([self.draw(generator) for _ in range(T)]).T.contiguous()  # (T,) each
            index = torch.cat(images)
            same_attribute = self.attribute_of_class[class_id].repeat(3)[:, None] == self.attribute_of_class  # (3 T, M)
            anchors = Anchors(torch.arange(T), class_id, positives, negatives)
            yield Batch(index, self.labels[index] & same_attribute, anchors)

    def random_images(self, size: int, generator: Generator) -> Batch:
        """Return a batch of random images without an anchor."""
        index, none = torch.randint(len(self.labels), (size,), generator=generator), torch.empty(0, dtype=torch.int64)
        nothing = torch.empty(0, size, dtype=torch.bool)
        return Batch(index, self.labels[index], Anchors(none, none, nothing, nothing))

    def draw(self, generator: Generator) -> tuple[int, int, int, int]:
        """Return anchor, positive and negative image, and the class of the first two."""
        while True:  # with asen_pp_exact, all images of the drawn other class may carry the anchor's class too
            usable, present = pick(self.classes, generator)
            m = pick(usable, generator)
            images = self.images[m]
            anchor, positive = images[torch.randperm(len(images), generator=generator)[:2]].tolist()
            if self.kind != "asen":
                present = [pick([other for other in present if other != m], generator)]
            negatives = self.negatives(m, present)
            if len(negatives):
                return anchor, positive, int(pick(negatives, generator)), m


def pick(items: list | Tensor, generator: Generator):
    """Return one of the items, uniformly at random."""
    return items[int(torch.randint(len(items), (1,), generator=generator))]
