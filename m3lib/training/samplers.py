"""Which images make a batch, and which of them are compared.

`uniform`: an epoch shuffles the images; every (image, class) of a batch is an anchor, with triplets of all attributes.
`balanced`: the same, but a part of each batch is pairs of images of rare classes, which chance would leave alone in it.
The others draw triplets of one attribute each, as the released code of the ASEN family does. Letters as in losses.py.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from m3lib.config import Train
from m3lib.errors import InputError
from m3lib.systems.losses import Anchors, Batch, find_anchors

WHOLE = ("uniform", "balanced")  # samplers whose batch is of images, with triplets of all attributes
PAIRED = 0.25  # of a `balanced` batch, the share that is pairs of rare classes


def steps_per_epoch(num_images: int, train: Train) -> int:
    return max(1, (num_images if train.sampler in WHOLE else train.triplets) // train.batch)


def epoch(labels: Tensor, attribute_of_class: Tensor, train: Train, generator: torch.Generator) -> Iterator[Batch]:
    """The batches of one epoch; labels: (I, M) bool of all training images. Raises InputError if none can be drawn."""
    if train.sampler in WHOLE:
        draw = shuffled if train.sampler == "uniform" else balanced
        return draw(labels, attribute_of_class, train.batch, generator)
    return Triplets(labels, attribute_of_class, train.sampler).epoch(train, generator)


def check_batch(labels: Tensor, train: Train) -> None:
    """Raise InputError where a batch of images holds less than one pair of a class on average: nothing to compare."""
    counts, size = labels.sum(dim=0).double(), len(labels)
    alike = float((counts * (counts - 1)).sum()) / max(
        1, size * (size - 1)
    )  # classes that two images share, on average
    if train.sampler not in WHOLE or alike * train.batch * (train.batch - 1) >= 2:
        return
    least = next((b for b in range(train.batch, size + 1) if alike * b * (b - 1) >= 2), None)
    advice = "no two training pictures share a class" if least is None else f"set it to {least} or more"
    pairs = f"{alike * train.batch * (train.batch - 1) / 2:.2g}"
    raise InputError(f"train.batch {train.batch} holds {pairs} pairs of pictures of one class on average; {advice}")


def shuffled(labels: Tensor, attribute_of_class: Tensor, batch: int, generator: torch.Generator) -> Iterator[Batch]:
    """Every image once, but for the rest that fills no batch (unless the set is smaller than one batch)."""
    order = torch.randperm(len(labels), generator=generator)
    if len(labels) >= batch:
        order = order[: len(labels) - len(labels) % batch]
    for index in order.split(batch):
        yield batch_of(index, labels, attribute_of_class)


def batch_of(index: Tensor, labels: Tensor, attribute_of_class: Tensor) -> Batch:
    index = index.sort().values  # rising rows read the memory map in one sweep
    return Batch(index, labels[index], find_anchors(labels[index], attribute_of_class))


def balanced(labels: Tensor, attribute_of_class: Tensor, batch: int, generator: torch.Generator) -> Iterator[Batch]:
    """As many images as `shuffled`, a quarter of each batch being pairs of images of rare classes, by turns.

    A class is rare if a batch holds fewer than two of its images on average; classes of one image have no pair. The
    rest of a batch is the images that have not yet been seen, in random order; none is twice in a batch.
    """
    order = torch.randperm(len(labels), generator=generator)
    class_id, carriers = labels.T.nonzero(as_tuple=True)  # by class
    counts = torch.bincount(class_id, minlength=labels.shape[1])  # (M,)
    starts = counts.cumsum(0) - counts
    rare = ((counts >= 2) & (counts * batch < 2 * len(labels))).nonzero().flatten()
    size, pairs = min(batch, len(labels)), min(int(PAIRED * batch / 2), len(rare))
    steps = max(1, len(labels) // batch)
    turns = [
        rare[torch.randperm(len(rare), generator=generator)] for _ in range(-(-steps * pairs // max(1, len(rare))))
    ]
    asked = torch.cat(turns)[: steps * pairs].view(steps, pairs) if turns else rare.new_empty(steps, 0)
    for classes in asked:
        share = torch.rand(2, pairs, generator=generator, dtype=torch.float64)
        first, second = (share * torch.stack([counts[classes], counts[classes] - 1])).long()  # (pairs,) each
        second += second >= first  # any other than the first
        paired = carriers[starts[classes] + torch.stack([first, second])].unique()
        order = order[~torch.isin(order, paired)]
        fresh, order = order[: size - len(paired)], order[size - len(paired) :]
        yield batch_of(torch.cat([paired, fresh]), labels, attribute_of_class)


class Triplets:
    """Triplets as the released code draws them: an attribute, then a class of it, both uniform; two of its images.

    The negative, by name of the sampler (methods of github.com/Maryeon/asen and asenpp):
    asen: any (image, other class) pair of the attribute, so that negatives follow the classes' frequency;
    asen_pp: another class, uniform, and any image of it;
    asen_pp_exact: as asen_pp, but never an image that carries the anchor's class too, which with several classes per
    image the other two allow.
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
        return bool(others) and (self.kind != "asen_pp_exact" or not bool(self.labels[torch.cat(others), m].all()))

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
            if self.kind == "asen_pp_exact":
                images = images[~self.labels[images, m]]
        return int(pick(images, generator)) if len(images) else None


def pick(items: list | Tensor, generator: torch.Generator):
    """One of the items, each as likely."""
    return items[int(torch.randint(len(items), (1,), generator=generator))]
