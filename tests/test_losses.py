"""Losses against float64 loops written from their formulas, and the promise that unknown labels take no part."""

import math
import statistics
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from m3lib import config, losses, objective
from m3lib.samplers import Batch
from m3lib.system import Outputs
from reference import in_float64
from tiny import OWN, TAXONOMY, generator, make_variant, random_labels, unit_rows

KINDS = ["single", "multi", "partial"]
B, N, M, D = 9, TAXONOMY.num_attributes, TAXONOMY.num_classes, 5
MARGIN = 0.3


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_anchors_against_a_naive_loop(kind, seed):
    labels = draw_labels(kind, seed)
    found = losses.find_anchors(labels, OWN)
    got = [
        (int(i), int(m), columns(p), columns(n))
        for i, m, p, n in zip(found.image, found.class_id, found.positives, found.negatives, strict=True)
    ]
    assert len(got) > 5
    assert got == naive_anchors(labels)


@pytest.mark.parametrize("kind", KINDS)
def test_known_attributes_against_a_loop(kind):
    labels, first = draw_labels(kind), [int((n == OWN).nonzero()[0]) for n in range(N)]
    expected = [[is_known(labels, i, m) for m in first] for i in range(B)]
    assert losses.known_attributes(labels, OWN).tolist() == expected


def naive_classification(logits: Tensor, labels: Tensor, weight: Tensor) -> float:
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


@pytest.mark.parametrize("kind", KINDS)
def test_classification_loss_against_its_formula(kind):
    logits = 2 * torch.randn(B, M, generator=generator(), dtype=torch.float64)
    weight = 1 + 3 * torch.rand(M, generator=generator(1), dtype=torch.float64)
    labels = draw_labels(kind)
    got = losses.classification_loss(logits, labels, weight, OWN)
    assert float(got) == pytest.approx(naive_classification(logits, labels, weight), rel=1e-6)


def test_a_batch_that_knows_nothing_has_no_classification_loss():
    logits = torch.randn(4, M, generator=generator(), requires_grad=True)
    value = losses.classification_loss(logits, torch.zeros(4, M, dtype=torch.bool), torch.ones(M), OWN)
    value.backward()
    assert (value.item(), logits.grad.abs().max().item()) == (0, 0)


def test_triplet_loss_against_its_formula():
    positive, negative = 2 * torch.rand(2, 40, generator=generator(), dtype=torch.float64) - 1
    expected = sum(max(0.0, MARGIN - p + n) for p, n in zip(positive.tolist(), negative.tolist(), strict=True)) / 40
    assert float(losses.triplet_loss(positive, negative, MARGIN)) == pytest.approx(expected, rel=1e-12)


def test_similarities_against_a_loop():
    anchors = losses.find_anchors(draw_labels("multi"), OWN)
    f, phi = unit_rows(B, N, D, dtype=torch.float64), unit_rows(B, M, D, seed=1, dtype=torch.float64)
    by_attribute = losses.attribute_similarity(f, anchors, OWN)
    by_class = losses.class_similarity(phi, anchors)
    for a, (i, m) in enumerate(zip(anchors.image.tolist(), anchors.class_id.tolist(), strict=True)):
        n = int(OWN[m])
        assert by_attribute[a].tolist() == pytest.approx([float(f[i, n] @ f[j, n]) for j in range(B)])
        assert by_class[a].tolist() == pytest.approx([float(phi[i, m] @ phi[j, m]) for j in range(B)])


def make_centers(seed: int = 3) -> losses.Centers:
    """Centers of all classes but class 1, which was never seen."""
    centers = losses.Centers(M, D, 0.7)
    centers.value.copy_(unit_rows(M, D, seed=seed))
    centers.seen.fill_(True)
    centers.seen[1] = False
    centers.value[1] = 0
    return centers


def test_center_cosines_against_a_loop():
    f, K = unit_rows(B, N, D, dtype=torch.float64), unit_rows(M, D, seed=1, dtype=torch.float64)
    got = losses.center_cosines(f, K, OWN)
    for i in range(B):
        assert got[i].tolist() == pytest.approx([float(f[i, OWN[m]] @ K[m]) for m in range(M)])


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_center_loss_against_its_formula(kind, seed):
    labels, f, centers = draw_labels(kind, seed), unit_rows(B, N, D, seed=seed), make_centers()
    cosines = losses.center_cosines(f, centers.value, OWN)
    got = losses.center_loss(cosines, labels, centers.seen, OWN, MARGIN)
    assert float(got) == pytest.approx(naive_center(f, labels, centers), rel=1e-5)
    assert float(got) > 0


def test_center_loss_by_hand():
    """Of colour's three classes, green was never seen; a picture of all of details' classes has no rival there."""
    labels = torch.zeros(3, M, dtype=torch.bool)
    labels[0, 0] = labels[1, 1] = True  # red, green
    labels[2, 3:7] = True
    cosines = torch.tensor([[0.5, 0.9, 0.4, *[0.0] * 6]]).repeat(3, 1)
    seen = torch.tensor([True, False, *[True] * 7])
    got = losses.center_loss(cosines, labels, seen, OWN, 0.3)
    assert float(got) == pytest.approx(0.3 - 0.5 + 0.4)  # red against blue, alone
    assert float(losses.center_loss(cosines, labels, torch.zeros(M, dtype=torch.bool), OWN, 0.3)) == 0


def naive_align(g: Tensor, l: Tensor, labels: Tensor) -> float:  # noqa: E741
    first = [int((n == OWN).nonzero()[0]) for n in range(N)]
    terms = [
        max(0.0, 1 - float(g[i, n].double() @ l[i, n].double()))
        for i in range(len(labels))
        for n in range(N)
        if is_known(labels, i, first[n])
    ]
    return 3 * sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_align_loss_against_its_formula(kind):
    labels = draw_labels(kind)
    g, l = unit_rows(B, N, D), unit_rows(B, N, D, seed=1)  # noqa: E741
    got = losses.align_loss(g, l, losses.known_attributes(labels, OWN))
    assert float(got) == pytest.approx(naive_align(g, l, labels), rel=1e-5)
    assert float(losses.align_loss(g, g, torch.ones(B, N, dtype=torch.bool))) == pytest.approx(0, abs=1e-6)
    assert float(losses.align_loss(g, l, torch.zeros(B, N, dtype=torch.bool))) == 0


def test_align_loss_is_the_sum_of_its_means_over_the_three_roles():
    """As released: anchors, positives and negatives apart, each known under its triplet's attribute alone."""
    T, g, l = 4, unit_rows(12, N, D), unit_rows(12, N, D, seed=1)  # noqa: E741
    asked = torch.tensor([0, 2, 1, 2]).repeat(3)
    distance = [max(0.0, 1 - float(g[i, n] @ l[i, n])) for i, n in enumerate(asked.tolist())]
    expected = sum(sum(distance[role * T : (role + 1) * T]) / T for role in range(3))
    known = torch.nn.functional.one_hot(asked, N).bool()
    assert float(losses.align_loss(g, l, known)) == pytest.approx(expected, rel=1e-5)


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


MULTI = torch.tensor([attribute.multi for attribute in TAXONOMY.attributes])


@pytest.mark.parametrize("margin", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_pseudo_labels_against_a_loop(seed, margin):
    labels, cosines = draw_labels("partial", seed, 40), 2 * torch.rand(40, M, generator=generator(seed)) - 1
    got = losses.pseudo_labels(cosines, labels, OWN, MULTI, margin)
    assert {tuple(pair) for pair in got.nonzero().tolist()} == naive_pseudo(cosines, labels, margin)
    assert got.sum() > 3
    assert len(naive_pseudo(cosines, labels, 0.0)) > len(naive_pseudo(cosines, labels, 0.3))


def test_pseudo_labels_by_hand():
    labels = torch.zeros(7, M, dtype=torch.bool)
    labels[[0, 1, 2], [0, 1, 2]] = True  # colour: median 0.6 of own cosines 0.5, 0.6, 0.9
    cosines = torch.zeros(7, M)
    cosines[[0, 1, 2], [0, 1, 2]] = torch.tensor([0.5, 0.6, 0.9])
    cosines[3:, :3] = torch.tensor([[0.6, 0.1, 0.2], [0.59, 0.1, 0.2], [0.8, 0.9, 0.2], [0.1, 0.6, 0.9]])
    cosines[:, 3:] = torch.eye(7)[:, :6]  # nothing is labelled there
    got = losses.pseudo_labels(cosines, labels, OWN, MULTI, 0.2)
    assert got.nonzero().tolist() == [[3, 0], [6, 2]]  # image 4 is not near enough, image 5 not clear


def naive_cluster(phi: Tensor, rows: list[tuple[int, int, float]], centers: losses.Centers) -> float:
    """Loss 3 of (image, class, cosine to the negative): the positive is the class center; classes never seen wait."""
    terms = [
        max(0.0, MARGIN - float(phi[i, m].double() @ centers.value[m].double()) + worst)
        for i, m, worst in rows
        if centers.seen[m]
    ]
    return sum(terms) / len(terms) if terms else 0.0


def test_cluster_loss_against_its_formula():
    labels, phi, centers = draw_labels("partial"), unit_rows(B, M, D), make_centers()
    anchors = losses.find_anchors(labels, OWN)
    negative = 2 * torch.rand(len(anchors.image), generator=generator(2)) - 1
    rows = list(zip(anchors.image.tolist(), anchors.class_id.tolist(), negative.tolist(), strict=True))
    assert any(m == 1 for _, m, _ in rows)
    got = objective.cluster_loss(phi, anchors, negative, centers, MARGIN)
    assert float(got) == pytest.approx(naive_cluster(phi, rows, centers), rel=1e-5)


LOSSES = ["classification", "attribute", "local", "align", "center", "pseudo", "instance", "cluster"]
WEIGHTS = dict(zip(LOSSES, (2.0, 0.5, 0.7, 1.3, 1.1, 0.6, 3.0, 4.0), strict=True))
HARDEST = 1e7  # every draw is the hardest one: Gumbel's noise stays below 40


def make_loss(**changes: float) -> config.Loss:
    return replace(make_variant("m3").loss, **(WEIGHTS | {"margin": MARGIN, "hardness": HARDEST} | changes))


def stub(seed: int = 3) -> SimpleNamespace:
    """What the losses read of a system; class and attribute spaces have one size here and share their centers."""
    weight = 1 + torch.rand(M, generator=generator(5))
    return SimpleNamespace(attribute_of_class=OWN, centers=make_centers(seed), positive_weight=weight, multi=MULTI)


def random_raw(size: int = B, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Attribute and local embeddings, logits and class embeddings, before rows are brought to length 1."""
    shapes = [(size, N, D), (size, N, D), (size, M), (size, M, D)]
    return [torch.randn(*shape, generator=generator(10 * seed + k), dtype=dtype) for k, shape in enumerate(shapes)]


def outputs_of(f: Tensor, l: Tensor, logits: Tensor, phi: Tensor) -> Outputs:  # noqa: E741
    unit = torch.nn.functional.normalize
    return Outputs(unit(f, dim=-1), unit(l, dim=-1), logits, unit(phi, dim=-1))


def batch_of(labels: Tensor) -> Batch:
    return Batch(torch.arange(len(labels)), labels, losses.find_anchors(labels, OWN))


def guess(labels: Tensor, seed: int = 0) -> Tensor:
    """Pseudo-labels for half of what is unknown under the attributes with one class an image."""
    found = torch.zeros_like(labels)
    rng = np.random.default_rng(seed)
    for n in (~MULTI).nonzero().flatten().tolist():
        own = range(M)[TAXONOMY.classes_of(n)]
        for i in range(len(labels)):
            if not labels[i, list(own)].any() and rng.random() < 0.5:
                found[i, rng.choice(own)] = True
    return found


def hardest(rows: list[tuple[int, int, set[int], set[int]]], space: Tensor) -> list[tuple[float, float]]:
    """(anchor to farthest positive, anchor to nearest negative); space: (B, M, D), the anchors' class or attribute."""
    cos = lambda i, j, m: float(space[i, m].double() @ space[j, m].double())  # noqa: E731
    return [(min(cos(i, j, m) for j in p), max(cos(i, j, m) for j in n)) for i, m, p, n in rows]


def naive_triplet(pairs: list[tuple[float, float]]) -> float:
    return sum(max(0.0, MARGIN - p + n) for p, n in pairs) / len(pairs) if pairs else 0.0


def naive_total(outputs: Outputs, labels: Tensor, pseudo: Tensor, system: SimpleNamespace) -> dict[str, float]:
    rows, phi = naive_anchors(labels), outputs.classes
    f, l = (part[:, OWN] for part in (outputs.attribute, outputs.local))  # noqa: E741
    inside = hardest(rows, phi)
    guessed = [row for row in naive_anchors(labels | pseudo) if pseudo[row[0], row[1]]]
    worst = [(i, m, negative) for (i, m, *_), (_, negative) in zip(rows, inside, strict=True)]
    parts = {
        "classification": naive_classification(outputs.logits, labels, system.positive_weight),
        "attribute": naive_triplet(hardest(rows, f)),
        "local": naive_triplet(hardest(rows, l)),
        "align": naive_align(outputs.attribute, outputs.local, labels),
        "center": naive_center(outputs.attribute, labels, system.centers),
        "pseudo": WEIGHTS["attribute"] * naive_triplet(hardest(guessed, f))
        + WEIGHTS["center"] * naive_center(outputs.attribute, pseudo, system.centers),
        "instance": naive_triplet(inside),
        "cluster": naive_cluster(phi, worst, system.centers),
    }
    return {name: WEIGHTS[name] * value for name, value in parts.items()}


def values(outputs: Outputs, labels: Tensor, guessed: Tensor | None = None, **changes: float) -> dict[str, float]:
    parts = objective.total_loss(outputs, batch_of(labels), stub(), make_loss(**changes), generator(), guessed)
    return {name: value.item() for name, value in parts.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_total_loss_against_naive_loops(kind, seed):
    """Every loss with its weight, each triplet the hardest of its anchor."""
    labels, outputs = draw_labels(kind, seed), outputs_of(*random_raw(seed=seed))
    pseudo = guess(labels, seed)
    assert pseudo.any() == (kind == "partial")
    got = values(outputs, labels, pseudo)
    assert got == pytest.approx(naive_total(outputs, labels, pseudo, stub()), rel=1e-5)
    assert all(value > 0 for name, value in got.items() if name != "pseudo" or kind == "partial")


def test_without_guesses_there_is_no_pseudo_loss():
    outputs = outputs_of(*random_raw())
    assert "pseudo" not in values(outputs, draw_labels("partial"))
    assert values(outputs, draw_labels("partial"), torch.zeros(B, M, dtype=torch.bool))["pseudo"] == 0


def test_guesses_count_by_the_losses_that_they_are_for():
    labels, outputs = draw_labels("partial"), outputs_of(*random_raw())
    pseudo = guess(labels)
    whole, *parts = (values(outputs, labels, pseudo, **off)["pseudo"] for off in ({}, {"attribute": 0}, {"center": 0}))
    assert sum(parts) == pytest.approx(whole)
    assert all(part > 0 for part in parts)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_weight_zero_is_not_there(name):
    labels = draw_labels("partial")
    assert set(values(outputs_of(*random_raw()), labels, guess(labels), **{name: 0})) == set(LOSSES) - {name}


READS = {  # the embeddings that a loss trains: attribute, local, logits, classes
    "classification": [2],
    "attribute": [0],
    "local": [1],
    "align": [0, 1],
    "center": [0],
    "pseudo": [0],
    "instance": [3],
    "cluster": [3],
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_against_finite_differences(name):
    labels, system = draw_labels("partial", size=5), stub()
    system.centers.double()
    batch, pseudo, raw = batch_of(labels), guess(labels), random_raw(5)
    loss = make_loss(**dict.fromkeys(set(LOSSES) - {name, "attribute"}, 0))  # pseudo needs another one

    def value(*read: Tensor) -> Tensor:
        whole = list(raw)
        for k, part in zip(READS[name], read, strict=True):
            whole[k] = part
        return objective.total_loss(outputs_of(*whole), batch, system, loss, generator(), pseudo)[name]

    with in_float64():
        assert torch.autograd.gradcheck(value, [raw[k].clone().requires_grad_() for k in READS[name]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_a_batch_changes_no_loss(kind):
    labels, order, raw = draw_labels(kind), torch.randperm(B, generator=generator(9)), random_raw()
    pseudo = guess(labels)
    permuted = values(outputs_of(*(part[order] for part in raw)), labels[order], pseudo[order])
    assert permuted == pytest.approx(values(outputs_of(*raw), labels, pseudo), rel=1e-5)


@pytest.mark.parametrize("hardness", [0, 4])
def test_with_one_positive_and_one_negative_each_nothing_is_left_to_chance(hardness):
    """Two red pictures and a green one: uniform draws too give each loss its formula, in any order."""
    labels, raw = torch.eye(M, dtype=torch.bool)[[0, 0, 1]], random_raw(3)
    expected = naive_total(outputs_of(*raw), labels, torch.zeros_like(labels), stub())
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        got = values(outputs_of(*(part[order] for part in raw)), labels[order], hardness=hardness)
        assert got == pytest.approx({name: expected[name] for name in got}, rel=1e-5)


def draws_of(similarity: Tensor, allowed: Tensor, hardness: float, times: int = 20_000) -> np.ndarray:
    """(B,) how often each column was drawn."""
    shape = (times, len(similarity))
    drawn = losses.draw(similarity.expand(shape), allowed.expand(shape), hardness, generator(4))
    return np.bincount(drawn.numpy(), minlength=len(similarity))


@pytest.mark.parametrize("hardness", [0, 2, 8])
def test_draws_follow_the_softmax_of_hardness_times_similarity(hardness):
    similarity = torch.tensor([0.5, -0.9, 0.1, 0.9, -0.2, 0.3])
    allowed = torch.tensor([True, True, False, True, True, False])
    found = draws_of(similarity, allowed, hardness)
    share = np.where(allowed, np.exp(hardness * similarity.double().numpy()), 0)
    share /= share.sum()
    assert (found[~allowed.numpy()] == 0).all()
    kept = allowed.numpy()
    assert stats.chisquare(found[kept], found.sum() * share[kept]).pvalue > 1e-4


@pytest.mark.parametrize("hardness", [0, 5])
def test_triplets_are_allowed_and_lean_the_hard_way(hardness):
    labels, phi = draw_labels("partial", 2, 16), unit_rows(16, M, D)
    anchors = losses.find_anchors(labels, OWN)
    alike = losses.class_similarity(phi, anchors)
    drawn = [losses.draw_triplets(alike, anchors, hardness, generator(s)) for s in range(300)]
    for positive, negative in drawn:
        assert ((alike == positive[:, None]) & anchors.positives).any(dim=1).all()
        assert ((alike == negative[:, None]) & anchors.negatives).any(dim=1).all()
    for name, allowed, sign in [("positive", anchors.positives, -1), ("negative", anchors.negatives, 1)]:
        logits = (sign * hardness * alike).masked_fill(~allowed, -torch.inf)
        expected = float((logits.softmax(dim=1) * alike).sum(dim=1).mean())
        assert np.mean([float(getattr(d, name).mean()) for d in drawn]) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_an_image_unknown_under_an_attribute_gets_no_gradient_from_it(name, seed):
    """Where there is a guess, pseudo is the loss that may use it, and none but it."""
    labels = draw_labels("partial", seed, 14)
    pseudo, raw = guess(labels, seed), [part.requires_grad_() for part in random_raw(14, seed)]
    parts = objective.total_loss(outputs_of(*raw), batch_of(labels), stub(), make_loss(hardness=2), generator(), pseudo)
    parts[name].backward()
    known = losses.known_attributes(labels | pseudo if name == "pseudo" else labels, OWN)
    by_class = known[:, OWN]
    assert [k for k, part in enumerate(raw) if part.grad is not None] == READS[name]
    for part, seen in zip(raw, (known, known, by_class, by_class), strict=True):
        if part.grad is not None:
            assert (part.grad[~seen] == 0).all()
            assert (part.grad[seen] != 0).any()


@pytest.mark.parametrize("n", range(N))
def test_an_attribute_without_labels_gets_no_gradient(n):
    labels, raw = draw_labels("multi"), [part.requires_grad_() for part in random_raw()]
    labels[:, n == OWN] = False
    pseudo = guess(labels) & (n != OWN)
    parts = objective.total_loss(outputs_of(*raw), batch_of(labels), stub(), make_loss(), generator(), pseudo)
    sum(parts.values()).backward()
    for part, unused in zip(raw, [*[torch.arange(N) == n] * 2, *[n == OWN] * 2], strict=True):
        assert (part.grad[:, unused] == 0).all()
        assert (part.grad[:, ~unused] != 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_any_label_change_no_loss(kind):
    labels, raw, more = draw_labels(kind, 1), random_raw(), random_raw(4, 7)
    pseudo, empty = guess(labels), torch.zeros(4, M, dtype=torch.bool)
    padded = outputs_of(*(torch.cat(pair) for pair in zip(raw, more, strict=True)))
    got = values(padded, torch.cat([labels, empty]), torch.cat([pseudo, empty]))
    assert got == pytest.approx(values(outputs_of(*raw), labels, pseudo), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_attribute_that_nobody_labelled_changes_no_loss(kind):
    """The taxonomy grows by three classes whose embeddings, logits, centers and weights are arbitrary."""
    labels, raw, system = draw_labels(kind, 1), random_raw(), stub()
    pseudo = guess(labels)
    own = torch.cat([OWN, torch.full((3,), N)])
    more = [
        torch.randn(B, *shape, generator=generator(k)).double()
        for k, shape in enumerate([(1, D), (1, D), (3,), (3, D)])
    ]
    outputs = outputs_of(*(torch.cat(pair, dim=1) for pair in zip(raw, more, strict=True)))
    centers = losses.Centers(M + 3, D, 0.7)
    centers.value.copy_(torch.cat([system.centers.value, unit_rows(3, D, seed=8)]))
    centers.seen.copy_(torch.cat([system.centers.seen, torch.ones(3, dtype=torch.bool)]))
    weight = torch.cat([system.positive_weight, torch.full((3,), 7.0)])
    grown = SimpleNamespace(attribute_of_class=own, centers=centers, positive_weight=weight)
    wide, guessed = (torch.cat([part, torch.zeros(B, 3, dtype=torch.bool)], dim=1) for part in (labels, pseudo))
    batch = Batch(torch.arange(B), wide, losses.find_anchors(wide, own))
    parts = objective.total_loss(outputs, batch, grown, make_loss(), generator(), guessed)
    got = {name: value.item() for name, value in parts.items()}
    assert got == pytest.approx(values(outputs_of(*raw), labels, pseudo), rel=1e-5)


@pytest.mark.parametrize("n", range(N))
def test_images_unknown_under_an_attribute_leave_its_losses_alone(n):
    """They are labelled elsewhere, and change what the other attributes' anchors have; here, nothing."""
    labels, more, raw, extra = draw_labels("partial", 1), draw_labels("multi", 2, 6), random_raw(), random_raw(6, 7)
    more[:, n == OWN] = False
    both = torch.cat([labels, more])
    outputs, joined = outputs_of(*raw), outputs_of(*(torch.cat(pair) for pair in zip(raw, extra, strict=True)))

    def of_attribute(outputs: Outputs, labels: Tensor) -> dict[str, float]:
        found = losses.find_anchors(labels, OWN)
        anchors = losses.Anchors(*(part[OWN[found.class_id] == n] for part in found))
        batch = Batch(torch.arange(len(labels)), labels & (n == OWN), anchors)
        parts = objective.total_loss(outputs, batch, stub(), make_loss(pseudo=0), generator())
        return {name: value.item() for name, value in parts.items()}

    assert len(losses.find_anchors(both, OWN).image) > len(losses.find_anchors(labels, OWN).image)
    assert of_attribute(joined, both) == pytest.approx(of_attribute(outputs, labels), rel=1e-5)
    cosines = 2 * torch.rand(B + 6, M, generator=generator()) - 1
    alone = losses.pseudo_labels(cosines[:B], labels, OWN, MULTI, 0.05)
    assert torch.equal(losses.pseudo_labels(cosines, both, OWN, MULTI, 0.05)[:B, n == OWN], alone[:, n == OWN])
    first, second = (losses.positive_weights(part, OWN, 1.0)[n == OWN] for part in (labels, both))
    assert torch.equal(first, second)


@pytest.mark.parametrize("labels", [torch.zeros(4, M, dtype=torch.bool), torch.eye(M, dtype=torch.bool)[[0, 3, 7, 7]]])
def test_a_batch_without_anchors_costs_nothing_and_trains_on(labels):
    batch, raw = batch_of(labels), [part.requires_grad_() for part in random_raw(4)]
    assert len(batch.anchors.image) == 0
    parts = objective.total_loss(outputs_of(*raw), batch, stub(), make_loss(align=0, center=0), generator())
    assert [parts[name].item() for name in ("attribute", "local", "instance", "cluster")] == [0, 0, 0, 0]
    sum(parts.values()).backward()
    for k in (0, 1, 3):
        assert (raw[k].grad == 0).all()
    assert raw[2].grad.isfinite().all()


def test_centers_are_set_to_the_means_of_their_classes():
    labels, phi, centers = draw_labels("partial", 3, 12), unit_rows(12, M, D), make_centers()
    labels[:, 4] = False
    before = centers.value.clone()
    centers.seen[4] = False
    centers.set(torch.einsum("im,imd->md", labels.float(), phi), labels.sum(dim=0))
    for m in range(M):
        members = [phi[i, m].double().numpy() for i in range(12) if labels[i, m]]
        mean = np.sum(members, axis=0) / np.linalg.norm(np.sum(members, axis=0)) if members else before[m].tolist()
        assert centers.value[m].tolist() == pytest.approx(list(mean), abs=1e-6)
        assert bool(centers.seen[m]) == (m != 4)


@pytest.mark.parametrize(("weights", "space"), [({"cluster": 1}, 3), ({"center": 1}, 0), ({"attribute": 1}, None)])
def test_the_loss_in_use_says_in_which_space_centers_move(weights, space):
    labels, system, loss = draw_labels("multi"), stub(), make_loss(**dict.fromkeys(LOSSES, 0) | weights)
    outputs = outputs_of(*random_raw(dtype=torch.float32))
    expected = make_centers()
    if space is not None:
        expected.update(outputs.classes if space == 3 else outputs.attribute[:, OWN], labels)
    objective.update_centers(outputs, labels, system, loss)
    assert torch.equal(system.centers.value, expected.value)
    assert torch.equal(system.centers.seen, expected.seen)


def test_centers_against_a_loop():
    centers, expected = losses.Centers(M, D, 0.7), {}
    for step in range(4):
        labels, phi = draw_labels("partial", step, 3), unit_rows(3, M, D, seed=step)
        centers.update(phi.requires_grad_(), labels)
        for m in range(M):
            members = [phi[i, m].detach().double().numpy() for i in range(3) if labels[i, m]]
            if not members:
                continue
            mean = np.mean(members, axis=0)
            mean /= np.linalg.norm(mean)
            moved = 0.7 * expected[m] + 0.3 * mean if m in expected else mean
            expected[m] = moved / np.linalg.norm(moved)
        assert columns(centers.seen) == set(expected)
        for m in range(M):
            assert centers.value[m].tolist() == pytest.approx(list(expected.get(m, np.zeros(D))), abs=1e-6)
    assert not centers.value.requires_grad
    assert list(centers.parameters()) == []


@pytest.mark.parametrize("power", [0, 0.5, 1])
def test_positive_weights_against_a_loop(power):
    labels = draw_labels("partial", 3, 60)
    labels[:, 1] = False
    got = losses.positive_weights(labels, OWN, power)
    for m in range(M):
        positives = sum(bool(labels[i, m]) for i in range(60))
        negatives = sum(is_known(labels, i, m) and not labels[i, m] for i in range(60))
        expected = max(1.0, (negatives / positives) ** power) if positives else 1.0
        assert float(got[m]) == pytest.approx(expected, rel=1e-6)
    assert power == 0 or (got > 1).any()
