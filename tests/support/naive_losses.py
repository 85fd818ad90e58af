"""Losses as loops written from their formulas, in float64."""

import math
import statistics

import numpy as np
import torch
from torch import Tensor

from m3lib.systems import losses
from tiny import OWN, TAXONOMY, random_labels, unit_rows

KINDS = ["single", "multi", "partial"]
B, N, M, D = 9, TAXONOMY.num_attributes, TAXONOMY.num_classes, 5
MARGIN = 0.3
MULTI = torch.tensor([attribute.multi for attribute in TAXONOMY.attributes])


def draw_labels(kind: str, seed: int = 0, size: int = B) -> Tensor:
    return torch.from_numpy(random_labels(kind, size, np.random.default_rng(seed)))


def is_known(labels: Tensor, image: int, class_id: int) -> bool:
    return any(bool(labels[image, m]) for m in range(M) if OWN[m] == OWN[class_id])


def naive_anchors(labels: Tensor) -> list[tuple[int, int, set[int], set[int]]]:
    found = []
    for i in range(len(labels)):
        for m in range(M):
            others = [j for j in range(len(labels)) if j != i]
            positives = {j for j in others if labels[j, m]}
            negatives = {j for j in others if not labels[j, m] and is_known(labels, j, m)}
            if labels[i, m] and positives and negatives:
                found.append((i, m, positives, negatives))
    return found


def columns(row: Tensor) -> set[int]:
    return set(row.nonzero().flatten().tolist())


def naive_classification(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> float:
    """The mean over known (image, attribute) pairs of each pair's cross-entropy; weight: of a sigmoid's positives."""
    pairs = []
    for i in range(len(labels)):
        for n, attribute in enumerate(TAXONOMY.attributes):
            own = [m for m in range(M) if OWN[m] == n]
            carried = [m for m in own if labels[i, m]]
            e = {m: math.exp(float(logits[i, m])) for m in own}
            if carried and attribute.multi:
                w = {m: float(weight[m]) if weight is not None and labels[i, m] else 1.0 for m in own}
                pairs.append(-sum(w[m] * math.log((e[m] if labels[i, m] else 1) / (1 + e[m])) for m in own) / len(own))
            elif carried:
                pairs.append(-sum(math.log(e[m] / sum(e.values())) for m in carried) / len(carried))
    return sum(pairs) / len(pairs)


def naive_m3_classification(logits: Tensor, labels: Tensor, weight: Tensor) -> float:
    """Loss 1, the mean over known (image, attribute) pairs of its mean over the attribute's classes."""
    pairs = []
    for i in range(len(labels)):
        for n in range(N):
            own = [m for m in range(M) if OWN[m] == n]
            if not any(labels[i, m] for m in own):
                continue
            x = {m: 1 / (1 + math.exp(-float(logits[i, m]))) for m in own}
            terms = [weight[m] * math.log(x[m]) if labels[i, m] else math.log(1 - x[m]) for m in own]
            pairs.append(-float(sum(terms)) / len(own))
    return sum(pairs) / len(pairs)


def make_centers(seed: int = 3) -> losses.Centers:
    """Centers of all classes but class 1, which was never seen."""
    centers = losses.Centers(M, D, 0.7)
    centers.value.copy_(unit_rows(M, D, seed=seed))
    centers.seen.fill_(True)
    centers.seen[1] = False
    centers.value[1] = 0
    return centers


def naive_center(f: Tensor, labels: Tensor, centers: losses.Centers) -> float:
    """MODC's cluster loss of methods, section 5.2, over what has a center and a rival that has one."""
    terms = []
    for i in range(len(labels)):
        for m in range(M):
            n = int(OWN[m])
            rivals = [k for k in range(M) if OWN[k] == n and not labels[i, k] and centers.seen[k]]
            if labels[i, m] and centers.seen[m] and rivals:
                own, *others = (float(f[i, n].double() @ centers.value[k].double()) for k in [m, *rivals])
                terms.append(max(0.0, MARGIN - own + max(others)))
    return sum(terms) / len(terms) if terms else 0.0


def naive_align(g: Tensor, l: Tensor, labels: Tensor) -> float:  # noqa: E741
    first = [int((n == OWN).nonzero()[0]) for n in range(N)]
    terms = [
        max(0.0, 1 - float(g[i, n].double() @ l[i, n].double()))
        for i in range(len(labels))
        for n in range(N)
        if is_known(labels, i, first[n])
    ]
    return 3 * sum(terms) / len(terms) if terms else 0.0


def naive_pseudo(cosines: Tensor, labels: Tensor, margin: float) -> set[tuple[int, int]]:
    found = set()
    for n, attribute in enumerate(TAXONOMY.attributes):
        own = [m for m in range(M) if OWN[m] == n]
        theirs = [float(cosines[i, m]) for i in range(len(labels)) for m in own if labels[i, m]]
        if attribute.multi or not theirs:
            continue
        for i in range(len(labels)):
            best, second = sorted(own, key=lambda m: -float(cosines[i, m]))[:2]
            near = float(cosines[i, best]) >= statistics.median_low(theirs)
            clear = float(cosines[i, best] - cosines[i, second]) >= margin
            if not is_known(labels, i, best) and near and clear:
                found.add((i, best))
    return found


def naive_cluster(phi: Tensor, rows: list[tuple[int, int, float]], centers: losses.Centers) -> float:
    """Loss 3 of (image, class, cosine to the negative): the positive is the class center; classes never seen wait."""
    terms = [
        max(0.0, MARGIN - float(phi[i, m].double() @ centers.value[m].double()) + worst)
        for i, m, worst in rows
        if centers.seen[m]
    ]
    return sum(terms) / len(terms) if terms else 0.0
