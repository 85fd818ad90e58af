"""Losses against float64 loops written from their formulas, and the promise that unknown labels take no part."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from m3lib import losses, training
from tiny import OWN, TAXONOMY, generator, make_system, make_variant, random_labels, unit_rows

KINDS = ["single", "multi", "partial"]
B, N, M, D = 9, TAXONOMY.num_attributes, TAXONOMY.num_classes, 5
MARGIN = 0.3


def draw_labels(kind: str, seed: int = 0, size: int = B) -> torch.Tensor:
    return torch.from_numpy(random_labels(kind, size, np.random.default_rng(seed)))


def is_known(labels: torch.Tensor, image: int, class_id: int) -> bool:
    return any(bool(labels[image, m]) for m in range(M) if OWN[m] == OWN[class_id])


def naive_anchors(labels: torch.Tensor) -> list[tuple[int, int, set[int], set[int]]]:
    found = []
    for i in range(len(labels)):
        for m in range(M):
            others = [j for j in range(len(labels)) if j != i]
            positives = {j for j in others if labels[j, m]}
            negatives = {j for j in others if not labels[j, m] and is_known(labels, j, m)}
            if labels[i, m] and positives and negatives:
                found.append((i, m, positives, negatives))
    return found


def columns(row: torch.Tensor) -> set[int]:
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
def test_known_classes_against_a_loop(kind):
    labels = draw_labels(kind)
    expected = [[is_known(labels, i, m) for m in range(M)] for i in range(B)]
    assert losses.known_classes(labels, OWN).tolist() == expected


def naive_classification(logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> float:
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


def test_cluster_loss_against_its_formula():
    """Loss 3: the positive is the class center, the negative an image; classes never seen wait."""
    labels, phi, centers = draw_labels("partial"), unit_rows(B, M, D), make_centers()
    anchors = losses.find_anchors(labels, OWN)
    negative = 2 * torch.rand(len(anchors.image), generator=generator(2)) - 1
    terms = []
    for i, m, worst in zip(anchors.image.tolist(), anchors.class_id.tolist(), negative.tolist(), strict=True):
        if m != 1:
            terms.append(max(0.0, MARGIN - float(phi[i, m].double() @ centers.value[m].double()) + worst))
    assert len(terms) < len(negative)
    got = training.cluster_loss(phi, anchors, negative, centers, MARGIN)
    assert float(got) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def all_losses(network: str = "m3", **weights: float) -> tuple:
    """The variant's loss settings, every loss on, and a system whose centers and weights are set."""
    loss = {"attribute": 0.5, "classification": 2, "instance": 3, "cluster": 4, "hardness": 0, "margin": MARGIN}
    system = make_system(network)
    system.centers = make_centers()
    system.positive_weight.copy_(1 + torch.rand(M, generator=generator(5)))
    return make_variant(network, loss=loss | weights).loss, system


def outputs_of(f: torch.Tensor, logits: torch.Tensor, phi: torch.Tensor) -> training.models.Outputs:
    unit = torch.nn.functional.normalize
    return training.models.Outputs(unit(f, dim=-1), logits, unit(phi, dim=-1))


def random_outputs(size: int = B, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    shapes = [(size, N, D), (size, M), (size, M, D)]
    return [torch.randn(*s, generator=generator(seed + k), dtype=dtype) for k, s in enumerate(shapes)]


def test_total_loss_gives_each_loss_its_weight():
    """With one positive and one negative each, no draw is left to chance, and every loss is its formula."""
    labels = torch.zeros(3, M, dtype=torch.bool)
    labels[[0, 1], 0] = True
    labels[2, 1] = True
    loss, system = all_losses()
    f, logits, phi = random_outputs(3)
    outputs = outputs_of(f, logits, phi)
    f, phi = outputs.attribute.double(), outputs.classes.double()
    got = training.total_loss(outputs, labels, system, loss, generator())
    center = system.centers.value[0].double()
    hinge = {
        "attribute": [MARGIN - f[i, 0] @ f[1 - i, 0] + f[i, 0] @ f[2, 0] for i in (0, 1)],
        "instance": [MARGIN - phi[i, 0] @ phi[1 - i, 0] + phi[i, 0] @ phi[2, 0] for i in (0, 1)],
        "cluster": [MARGIN - phi[i, 0] @ center + phi[i, 0] @ phi[2, 0] for i in (0, 1)],
    }
    for name, terms in hinge.items():
        expected = getattr(loss, name) * sum(max(0.0, float(term)) for term in terms) / 2
        assert float(got[name]) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    first = naive_classification(logits, labels, system.positive_weight)
    assert float(got["classification"]) == pytest.approx(loss.classification * first, rel=1e-5)


@pytest.mark.parametrize("name", ["attribute", "classification", "instance", "cluster"])
def test_a_loss_of_weight_zero_is_not_there(name):
    loss, system = all_losses(**{name: 0})
    got = training.total_loss(outputs_of(*random_outputs()), draw_labels("multi"), system, loss, generator())
    assert set(got) == {"attribute", "classification", "instance", "cluster"} - {name}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_against_finite_differences(kind):
    loss, system = all_losses(classification=0)
    labels, weight = draw_labels(kind, size=5), system.double().positive_weight
    f, logits, phi = (part.requires_grad_() for part in random_outputs(5, dtype=torch.float64))

    def triplets(f: torch.Tensor, phi: torch.Tensor) -> torch.Tensor:
        parts = training.total_loss(outputs_of(f, logits, phi), labels, system, loss, generator())
        return torch.stack(list(parts.values()))

    assert torch.autograd.gradcheck(triplets, (f, phi))
    assert torch.autograd.gradcheck(lambda x: losses.classification_loss(x, labels, weight, OWN), logits)


def test_the_order_of_a_batch_changes_no_loss():
    labels, order = draw_labels("partial"), torch.randperm(B, generator=generator(9))
    logits, weight = torch.randn(B, M, generator=generator()), torch.ones(M)
    phi, centers = unit_rows(B, M, D), make_centers()

    def values(order: torch.Tensor) -> list[float]:
        anchors = losses.find_anchors(labels[order], OWN)
        alike = losses.class_similarity(phi[order], anchors)
        hardest = alike.masked_fill(~anchors.negatives, -2).amax(dim=1)
        mean = (alike * anchors.negatives).sum(dim=1) / anchors.negatives.sum(dim=1)  # the expected uniform draw
        first = losses.classification_loss(logits[order], labels[order], weight, OWN)
        return [float(first)] + [
            float(training.cluster_loss(phi[order], anchors, negative, centers, MARGIN)) for negative in (hardest, mean)
        ]

    assert values(order) == pytest.approx(values(torch.arange(B)), rel=1e-5)


def draws_of(similarity: torch.Tensor, allowed: torch.Tensor, hardness: float, times: int = 20_000) -> np.ndarray:
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


LOSSES = ["attribute", "classification", "instance", "cluster"]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_an_image_unknown_under_an_attribute_gets_no_gradient_from_it(name, seed):
    labels = draw_labels("partial", seed, 14)
    loss, system = all_losses()
    raw = [part.requires_grad_() for part in random_outputs(14, seed)]
    training.total_loss(outputs_of(*raw), labels, system, loss, generator())[name].backward()
    known = losses.known_classes(labels, OWN)
    first = [int((n == OWN).nonzero()[0]) for n in range(N)]
    for part, seen in zip(raw, (known[:, first], known, known), strict=True):
        if part.grad is not None:
            assert (part.grad[~seen] == 0).all()
            assert (part.grad[seen] != 0).any()


def without_chance(outputs: training.models.Outputs, labels: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The losses with each draw replaced by the hardest allowed one, so that a value can be compared."""
    hardest: Callable = lambda alike, allowed, *_: alike.masked_fill(~allowed, -9).argmax(dim=1)  # noqa: E731
    monkeypatch.setattr(losses, "draw", hardest)
    loss, system = all_losses()
    return {k: float(v) for k, v in training.total_loss(outputs, labels, system, loss, generator()).items()}


def test_images_without_any_label_change_no_loss(monkeypatch):
    labels, outputs = draw_labels("partial", 1), outputs_of(*random_outputs())
    padded = [torch.cat([part, more]) for part, more in zip(outputs[:3], outputs_of(*random_outputs(4, 7))[:3])]  # noqa: B905
    alone = without_chance(outputs, labels, monkeypatch)
    empty = torch.zeros(4, M, dtype=torch.bool)
    got = without_chance(training.models.Outputs(*padded), torch.cat([labels, empty]), monkeypatch)
    assert got == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("labels", [torch.zeros(4, M, dtype=torch.bool), torch.eye(M, dtype=torch.bool)[[0, 3, 7, 7]]])
def test_a_batch_without_anchors_costs_nothing_and_trains_on(labels):
    assert len(losses.find_anchors(labels, OWN).image) == 0
    loss, system = all_losses()
    raw = [part.requires_grad_() for part in random_outputs(4)]
    parts = training.total_loss(outputs_of(*raw), labels, system, loss, generator())
    assert [parts[name].item() for name in ("attribute", "instance", "cluster")] == [0, 0, 0]
    sum(parts.values()).backward()
    assert (raw[0].grad == 0).all()
    assert (raw[2].grad == 0).all()
    assert raw[1].grad.isfinite().all()


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
