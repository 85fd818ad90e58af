"""What a step minimises, against float64 loops over images and classes, and how the centers follow."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from m3lib.compatibility import LOSSES
from m3lib.systems import losses, objective
from m3lib.systems.base import Outputs
from m3lib.systems.losses import Batch
from m3lib.training import samplers
from tiny import OWN, SETTINGS, TAXONOMY, generator, random_labels, unit_rows

B, N, M, D = 10, TAXONOMY.num_attributes, TAXONOMY.num_classes, 5
OF = OWN.tolist()
MARGIN = 0.3
ZERO = replace(SETTINGS.loss, **dict.fromkeys(LOSSES, 0.0), margin=MARGIN)
WEIGHTS = {name: 0.25 * (k + 1) for k, name in enumerate(LOSSES)}
EVERY = replace(ZERO, **WEIGHTS)


@pytest.fixture
def no_chance(monkeypatch):
    """Each draw becomes the hardest allowed image, so that losses can be compared."""
    monkeypatch.setattr(losses, "draw", lambda alike, allowed, *_: alike.masked_fill(~allowed, -9).argmax(dim=1))


def make_system(seed: int = 0) -> SimpleNamespace:
    """What the objective reads of a system; the center of class 1 was never seen."""
    centers = losses.Centers(M, D, 0.7)
    centers.value.copy_(unit_rows(M, D, seed=seed + 20))
    centers.seen.fill_(True)
    centers.value[1], centers.seen[1] = 0, False
    weight = 1 + torch.rand(M, generator=generator(seed + 21))
    return SimpleNamespace(attribute_of_class=OWN, positive_weight=weight, centers=centers)


def make_outputs(seed: int = 0, size: int = B) -> Outputs:
    logits = 2 * torch.randn(size, M, generator=generator(seed))
    f, local, phi = (unit_rows(size, k, D, seed=seed + k + 1) for k in (N, N + 1, M))
    return Outputs(f, local[:, :N], logits, phi)


def make_batch(kind: str = "partial", seed: int = 0) -> Batch:
    labels = torch.from_numpy(random_labels(kind, B, np.random.default_rng(seed)))
    return Batch(torch.arange(B), labels, losses.find_anchors(labels, OWN))


def make_pseudo(labels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A class for some of the (image, attribute) pairs that are unknown."""
    rng, pseudo = np.random.default_rng(seed), torch.zeros_like(labels)
    for i in range(len(labels)):
        for n in range(N):
            own = [m for m in range(M) if OF[m] == n]
            if not labels[i, own].any() and rng.random() < 0.6:
                pseudo[i, rng.choice(own)] = True
    return pseudo


@pytest.mark.parametrize("seed", range(3))
def test_embeddings_of_the_classes_of_a_batch_are_enough(seed):
    """The losses and the centers are those of all classes' embeddings."""
    batch, outputs, found = make_batch(seed=seed), make_outputs(seed), []
    batch.labels[:, [2, 5]] = False
    batch = batch._replace(anchors=losses.find_anchors(batch.labels, OWN))
    carried = batch.labels.any(dim=0).nonzero().flatten()
    assert 0 < len(carried) < M
    some = outputs._replace(classes=outputs.classes[:, carried], wanted=carried)
    for given in (outputs, some):
        system, loss = make_system(seed), replace(ZERO, m3_instance=1.0, m3_cluster=1.0)
        parts = objective.total_loss(given, batch, system, loss, generator(seed))
        objective.update_centers(given, batch.labels, system, loss)
        found.append((parts, system.centers))
    assert found[0][0] == found[1][0]
    assert found[0][0].keys() == {"m3_instance", "m3_cluster"}
    torch.testing.assert_close(found[1][1].value, found[0][1].value)
    assert not torch.equal(found[0][1].value, make_system(seed).centers.value)
    assert torch.equal(found[1][1].seen, found[0][1].seen)


def naive_triplets(space: torch.Tensor, labels: torch.Tensor, asking: torch.Tensor) -> dict[tuple[int, int], tuple]:
    """(image, class) of `asking` to the least alike positive and the most alike negative; space: (B, M, D)."""
    found = {}
    for i, m in asking.nonzero().tolist():
        alike = {j: float(space[i, m].double() @ space[j, m].double()) for j in range(len(labels)) if j != i}
        known = [j for j in alike if any(labels[j, k] for k in range(M) if OF[k] == OF[m])]
        positives = [alike[j] for j in known if labels[j, m]]
        negatives = [alike[j] for j in known if not labels[j, m]]
        if positives and negatives:
            found[i, m] = min(positives), max(negatives)
    return found


def mean(terms: list[float]) -> float:
    return sum(terms) / len(terms)


def hinge(positive: float, negative: float) -> float:
    return max(0.0, MARGIN - positive + negative)


def naive_center(f: torch.Tensor, labels: torch.Tensor, asking: torch.Tensor, centers: losses.Centers) -> float:
    terms = []
    for i, m in asking.nonzero().tolist():
        cosine = {k: float(f[i, OF[m]].double() @ centers.value[k].double()) for k in range(M) if centers.seen[k]}
        rivals = [cosine[k] for k in cosine if OF[k] == OF[m] and not labels[i, k]]
        if m in cosine and rivals:
            terms.append(hinge(cosine[m], max(rivals)))
    return mean(terms)


def naive_parts(outputs: Outputs, batch: Batch, pseudo: torch.Tensor, system: SimpleNamespace) -> dict[str, float]:
    """Every loss with weight 1."""
    labels, f, local, phi = batch.labels, outputs.attribute, outputs.local, outputs.classes
    both = labels | pseudo
    pairs = [(i, n) for i in range(B) for n in range(N) if any(labels[i, m] for m in range(M) if OF[m] == n)]
    first = []
    for i, n in pairs:
        own = [m for m in range(M) if OF[m] == n]
        x = {m: 1 / (1 + math.exp(-float(outputs.logits[i, m]))) for m in own}
        weight = system.positive_weight
        first.append(-mean([float(weight[m]) * math.log(x[m]) if labels[i, m] else math.log(1 - x[m]) for m in own]))
    triplets = {
        "asen_triplet": naive_triplets(f[:, OWN], labels, labels),
        "asen_pp_local": naive_triplets(local[:, OWN], labels, labels),
        "m3_instance": naive_triplets(phi, labels, labels),
    }
    center = system.centers.value.double()
    cluster = {(i, m): (float(phi[i, m].double() @ center[m]), n) for (i, m), (_, n) in triplets["m3_instance"].items()}
    guessed = [
        mean([hinge(*pair) for pair in naive_triplets(f[:, OWN], both, pseudo).values()]),
        naive_center(f, both, pseudo, system.centers),
    ]
    return {
        **{name: mean([hinge(*pair) for pair in pairs.values()]) for name, pairs in triplets.items()},
        "asen_pp_align": 3 * mean([max(0.0, 1 - float(f[i, n].double() @ local[i, n].double())) for i, n in pairs]),
        "modc_cluster": naive_center(f, labels, labels, system.centers),
        "modc_pseudo": EVERY.asen_triplet * guessed[0] + EVERY.modc_cluster * guessed[1],
        "m3_classification": mean(first),
        "m3_cluster": mean([hinge(*pair) for (_, m), pair in cluster.items() if system.centers.seen[m]]),
    }


@pytest.mark.parametrize("seed", range(3))
def test_every_loss_is_its_formula_times_its_weight(seed, no_chance):
    outputs, batch, system = make_outputs(seed), make_batch(seed=seed), make_system(seed)
    pseudo = make_pseudo(batch.labels, seed)
    assert pseudo.sum() > 3
    got = objective.total_loss(outputs, batch, system, EVERY, generator(), pseudo)
    expected = naive_parts(outputs, batch, pseudo, system)
    assert {name: float(value) for name, value in got.items()} == pytest.approx(
        {name: WEIGHTS[name] * value for name, value in expected.items()}, rel=1e-4
    )


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_of_weight_zero_is_not_there_and_moves_no_other(name, no_chance):
    outputs, batch, system = make_outputs(), make_batch(), make_system()
    given = (outputs, batch, system)
    pseudo = make_pseudo(batch.labels)
    everything = objective.total_loss(*given, EVERY, generator(), pseudo)
    without = objective.total_loss(*given, replace(EVERY, **{name: 0.0}), generator(), pseudo)
    alone = objective.total_loss(*given, replace(ZERO, **{name: WEIGHTS[name]}), generator(), pseudo)
    assert set(without) == set(LOSSES) - {name}
    for other in set(without) - {"modc_pseudo"}:  # the pseudo loss is made of the weights of two others
        assert torch.equal(without[other], everything[other])
    assert set(alone) == {name}
    if name != "modc_pseudo":
        assert torch.equal(alone[name], everything[name])


def test_outputs_that_no_loss_reads_may_be_absent():
    batch = make_batch()
    parts = objective.total_loss(
        Outputs(logits=make_outputs().logits), batch, make_system(), replace(ZERO, m3_classification=1.0), generator()
    )
    assert set(parts) == {"m3_classification"}


def test_without_guesses_there_is_no_pseudo_loss():
    parts = objective.total_loss(make_outputs(), make_batch(), make_system(), EVERY, generator(), None)
    assert set(parts) == set(LOSSES) - {"modc_pseudo"}


def test_a_batch_without_a_guess_costs_nothing_and_trains_on():
    outputs, batch = make_outputs(), make_batch()
    f = outputs.attribute.requires_grad_()
    none = torch.zeros_like(batch.labels)
    value = objective.pseudo_loss(f, batch.labels, none, make_system(), EVERY, generator())
    assert float(value.detach()) == 0
    value.backward()
    assert (f.grad == 0).all()


@pytest.mark.parametrize("absent", ["asen_triplet", "modc_cluster"])
def test_the_pseudo_loss_has_guessed_anchors_alone(absent, no_chance):
    """Checked by its two parts, one at a time; labelled images may be positives and negatives, never anchors."""
    outputs, batch, system = make_outputs(4), make_batch(seed=4), make_system(4)
    pseudo = make_pseudo(batch.labels, 4)
    loss, both = replace(EVERY, **{absent: 0.0}), batch.labels | pseudo
    got = objective.pseudo_loss(outputs.attribute, batch.labels, pseudo, system, loss, generator())
    triplets = naive_triplets(outputs.attribute[:, OWN], both, pseudo)
    expected = {
        "modc_cluster": EVERY.asen_triplet * mean([hinge(*pair) for pair in triplets.values()]),
        "asen_triplet": EVERY.modc_cluster * naive_center(outputs.attribute, both, pseudo, system.centers),
    }[absent]
    assert triplets.keys() <= {tuple(pair) for pair in pseudo.nonzero().tolist()}
    assert float(got) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["asen", "asen_pp", "asen_pp_exact"])
def test_drawn_triplets_are_what_the_triplet_losses_compare(kind):
    labels = torch.from_numpy(random_labels("multi", 30, np.random.default_rng(6)))
    (batch,) = samplers.epoch(labels, OWN, replace(SETTINGS.train, sampler=kind, batch=8, triplets=8), generator(6))
    outputs, system = make_outputs(6, 24), make_system(6)
    loss = replace(ZERO, asen_triplet=0.5, asen_pp_local=2.0, m3_instance=3.0, m3_cluster=4.0, hardness=4.0)
    got = objective.total_loss(outputs, batch, system, loss, generator())
    classes = batch.anchors.class_id.tolist()

    def expected(space: torch.Tensor) -> list[tuple[int, float, float]]:
        z = space.double()
        return [(m, float(z[t, m] @ z[t + 8, m]), float(z[t, m] @ z[t + 16, m])) for t, m in enumerate(classes)]

    phi, centers = expected(outputs.classes), system.centers
    near = [float(outputs.classes[t, m].double() @ centers.value[m].double()) for t, m in enumerate(classes)]
    terms = {
        "asen_triplet": [hinge(p, n) for _, p, n in expected(outputs.attribute[:, OWN])],
        "asen_pp_local": [hinge(p, n) for _, p, n in expected(outputs.local[:, OWN])],
        "m3_instance": [hinge(p, n) for _, p, n in phi],
        "m3_cluster": [hinge(c, n) for c, (m, _, n) in zip(near, phi, strict=True) if centers.seen[m]],
    }
    for name, values in terms.items():
        assert float(got[name]) == pytest.approx(getattr(loss, name) * mean(values), rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "space"),
    [
        ({"m3_cluster": 1.0}, "classes"),
        ({"modc_cluster": 1.0}, "attribute"),
        ({"asen_triplet": 1.0, "m3_instance": 1.0}, None),
    ],
)
def test_centers_follow_the_space_of_the_loss_that_uses_them(weights, space):
    outputs, batch, system, untouched = make_outputs(), make_batch("multi"), make_system(), make_system()
    objective.update_centers(outputs, batch.labels, system, replace(ZERO, **weights))
    for m in range(M):
        before, images = untouched.centers.value[m].double(), batch.labels[:, m].nonzero().flatten().tolist()
        if space is None or not images:
            assert torch.equal(system.centers.value[m], untouched.centers.value[m])
            continue
        of = m if space == "classes" else OF[m]
        middle = torch.stack([getattr(outputs, space)[i, of].double() for i in images]).mean(dim=0)
        middle /= middle.norm()
        moved = 0.7 * before + 0.3 * middle if untouched.centers.seen[m] else middle
        torch.testing.assert_close(system.centers.value[m].double(), moved / moved.norm(), rtol=0, atol=1e-6)
        assert system.centers.seen[m]
