"""Which images make a batch, and which of them are compared.

`batch`: an epoch shuffles the images; every (image, class) of a batch is an anchor, with triplets of all attributes.
The others draw triplets of one attribute each, as the released code of the ASEN family does. Letters as in losses.py.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from m3lib.config import Train
from m3lib.errors import InputError
from m3lib.losses import Anchors, find_anchors


class Batch(NamedTuple):
    index: Tensor  # (B,) int64 into the training images
    labels: Tensor  # (B, M) bool: what the losses may know of them
    anchors: Anchors


def steps_per_epoch(num_images: int, train: Train) -> int:
    return max(1, (num_images if train.sampler == "batch" else train.triplets) // train.batch)


def epoch(labels: Tensor, attribute_of_class: Tensor, train: Train, generator: torch.Generator) -> Iterator[Batch]:
    """The batches of one epoch; labels: (I, M) bool of all training images. Raises InputError if none can be drawn."""
    if train.sampler == "batch":
        return shuffled(labels, attribute_of_class, train.batch, generator)
    return Triplets(labels, attribute_of_class, train.sampler).epoch(train, generator)


def shuffled(labels: Tensor, attribute_of_class: Tensor, batch: int, generator: torch.Generator) -> Iterator[Batch]:
    """Every image once, but for the rest that fills no batch (unless the set is smaller than one batch)."""
    order = torch.randperm(len(labels), generator=generator)
    if len(labels) >= batch:
        order = order[: len(labels) - len(labels) % batch]
    for index in order.split(batch):
        index = index.sort().values  # rising rows read the memory map in one sweep
        yield Batch(index, labels[index], find_anchors(labels[index], attribute_of_class))


class Triplets:
    """Triplets as the released code draws them: an attribute, then a class of it, both uniform; two of its images.

    The negative, by name of the sampler (methods of github.com/Maryeon/asen and asenpp):
    asen: any (image, other class) pair of the attribute, so that negatives follow the classes' frequency;
    asen_pp: another class, uniform, and any image of it;
    checked: as asen_pp, but never an image that carries the anchor's class too, which with several classes per image
    the other two allow.
    Classes with fewer than two images are never anchors. The other attributes of a triplet's images are left unknown.
    """

    def __init__(self, labels: Tensor, attribute_of_class: Tensor, kind: str):
        self.labels, self.own, self.kind = labels, attribute_of_class, kind
        self.images = [column.nonzero().flatten() for column in labels.T]  # M of (images of the class,)
        self.classes = []  # of each usable attribute: (classes to ask for, classes with any image)
        for n in range(int(attribute_of_class[-1]) + 1):
            own = (attribute_of_class == n).nonzero().flatten().tolist()
            present = [m for m in own if len(self.images[m])]
            asked = [m for m in present if len(self.images[m]) >= 2 and self.has_negative(m, present)]
            if asked:
                self.classes.append((asked, present))
        if not self.classes:
            raise InputError(
                f"train.sampler {kind}: no attribute has a class with two images and another to tell it from"
            )

    def has_negative(self, m: int, present: list[int]) -> bool:
        """Whether an image of another class may stand against class m."""
        others = [self.images[other] for other in present if other != m]
        return bool(others) and (self.kind != "checked" or not bool(self.labels[torch.cat(others), m].all()))

    def epoch(self, train: Train, generator: torch.Generator) -> Iterator[Batch]:
        for _ in range(steps_per_epoch(len(self.labels), train)):
            drawn = [self.draw(generator) for _ in range(train.batch)]
            index, class_id = torch.tensor([d[:3] for d in drawn]).T.flatten(), torch.tensor([d[3] for d in drawn])
            T = len(drawn)  # anchors first, then positives, then negatives
            same = self.own[class_id].repeat(3)[:, None] == self.own  # (3 T, M)
            positives, negatives = (torch.eye(T, 3 * T, dtype=torch.bool).roll(k * T, dims=1) for k in (1, 2))
            anchors = Anchors(torch.arange(T), class_id, positives, negatives)
            yield Batch(index, self.labels[index] & same, anchors)

    def draw(self, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Anchor, positive, negative, and the class that the first two share."""
        while True:  # a rival class may lie inside the anchor's, and has no checked negative then
            asked, present = pick(self.classes, generator)
            m = pick(asked, generator)
            images = self.images[m]
            first, second = torch.randperm(len(images), generator=generator)[:2].tolist()
            negative = self.draw_negative(m, [other for other in present if other != m], generator)
            if negative is not None:
                return int(images[first]), int(images[second]), negative, m

    def draw_negative(self, m: int, others: list[int], generator: torch.Generator) -> int | None:
        if self.kind == "asen":
            images = torch.cat([self.images[other] for other in others])
        else:
            images = self.images[pick(others, generator)]
            if self.kind == "checked":
                images = images[~self.labels[images, m]]
        return int(pick(images, generator)) if len(images) else None


def pick(items: list | Tensor, generator: torch.Generator):
    """One of the items, each as likely."""
    return items[int(torch.randint(len(items), (1,), generator=generator))]
