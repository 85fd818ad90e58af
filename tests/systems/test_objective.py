"""The total loss against naive loops; images without a label for an attribute get no gradient from its losses."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from m3lib import config
from m3lib.compatibility import LOSS_SETTINGS
from m3lib.systems import losses, objective
from m3lib.systems.base import Outputs
from m3lib.systems.losses import Batch
from naive_losses import (
    KINDS,
    MARGIN,
    MULTI,
    B,
    D,
    M,
    N,
    draw_labels,
    make_centers,
    naive_align,
    naive_anchors,
    naive_center,
    naive_classification,
    naive_cluster,
    naive_m3_classification,
)
from reference import in_float64
from tiny import OWN, TAXONOMY, generator, make_variant

LOSSES = [
    "classification",
    "m3_classification",
    "asen_triplet",
    "asen_pp_local",
    "asen_pp_align",
    "modc_cluster",
    "modc_pseudo",
    "m3_instance",
    "m3_cluster",
    "duet_classification",
]
WEIGHTS = dict(zip(LOSSES, (1.7, 2.0, 0.5, 0.7, 1.3, 1.1, 0.6, 3.0, 4.0, 0.9), strict=True))
TEMPERATURE = 0.3
HARDEST = 1e7  # every draw is the hardest one: Gumbel's noise stays below 40


def make_loss(**changes: object) -> config.Loss:
    settings = {"margin": MARGIN, "hardness": HARDEST, "contrast_temperature": TEMPERATURE}
    return replace(make_variant("m3").loss, **(WEIGHTS | settings | changes))


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


def naive_contrast(rows: list[tuple[int, int, set[int], set[int]]], space: Tensor) -> float:
    """Supervised contrast of every anchor with all its positives and negatives; space: as of `hardest`."""
    terms = []
    for i, m, positives, negatives in rows:
        e = {j: math.exp(float(space[i, m] @ space[j, m]) / TEMPERATURE) for j in positives | negatives}
        terms.append(-sum(math.log(e[j] / sum(e.values())) for j in positives) / len(positives))
    return sum(terms) / len(terms) if terms else 0.0


def naive_center_contrast(
    rows: list[tuple[int, int, set[int], set[int]]], phi: Tensor, centers: losses.Centers
) -> float:
    """The same, with the class center as the only positive, of classes that have one."""
    terms = []
    for i, m, _, negatives in rows:
        if centers.seen[m]:
            positive = math.exp(float(phi[i, m] @ centers.value[m].double()) / TEMPERATURE)
            e = [math.exp(float(phi[i, m] @ phi[j, m]) / TEMPERATURE) for j in negatives]
            terms.append(-math.log(positive / (positive + sum(e))))
    return sum(terms) / len(terms) if terms else 0.0


def naive_total(
    outputs: Outputs, labels: Tensor, pseudo: Tensor, system: SimpleNamespace, pairs: str = "drawn"
) -> dict[str, float]:
    rows, phi = naive_anchors(labels), outputs.classes
    f, l = (part[:, OWN] for part in (outputs.attribute, outputs.local))  # noqa: E741
    inside = hardest(rows, phi)
    guessed = [row for row in naive_anchors(labels | pseudo) if pseudo[row[0], row[1]]]
    worst = [(i, m, negative) for (i, m, *_), (_, negative) in zip(rows, inside, strict=True)]
    of_pairs = naive_contrast if pairs == "all" else lambda rows, space: naive_triplet(hardest(rows, space))
    parts = {
        "classification": naive_classification(outputs.logits, labels),
        "m3_classification": naive_m3_classification(outputs.logits, labels, system.positive_weight),
        "duet_classification": naive_classification(outputs.logits, labels, system.positive_weight),
        "asen_triplet": of_pairs(rows, f),
        "asen_pp_local": of_pairs(rows, l),
        "asen_pp_align": naive_align(outputs.attribute, outputs.local, labels),
        "modc_cluster": naive_center(outputs.attribute, labels, system.centers),
        "modc_pseudo": WEIGHTS["asen_triplet"] * of_pairs(guessed, f)
        + WEIGHTS["modc_cluster"] * naive_center(outputs.attribute, pseudo, system.centers),
        "m3_instance": of_pairs(rows, phi),
        "m3_cluster": naive_center_contrast(rows, phi, system.centers)
        if pairs == "all"
        else naive_cluster(phi, worst, system.centers),
    }
    return {name: WEIGHTS[name] * value for name, value in parts.items()}


def values(outputs: Outputs, labels: Tensor, guessed: Tensor | None = None, **changes: object) -> dict[str, float]:
    parts = objective.total_loss(outputs, batch_of(labels), stub(), make_loss(**changes), generator(), guessed)
    return {name: value.item() for name, value in parts.items()}


@pytest.mark.parametrize("pairs", ["drawn", "all"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_total_loss_against_naive_loops(kind, seed, pairs):
    """Every loss with its weight, each triplet the hardest of its anchor, or all pairs."""
    labels, outputs = draw_labels(kind, seed), outputs_of(*random_raw(seed=seed))
    pseudo = guess(labels, seed)
    assert pseudo.any() == (kind == "partial")
    got = values(outputs, labels, pseudo, pairs=pairs)
    assert got == pytest.approx(naive_total(outputs, labels, pseudo, stub(), pairs), rel=1e-5)
    assert all(value > 0 for name, value in got.items() if name != "modc_pseudo" or kind == "partial")


def test_without_pseudo_labels_there_is_no_pseudo_loss():
    outputs = outputs_of(*random_raw())
    assert "modc_pseudo" not in values(outputs, draw_labels("partial"))
    assert values(outputs, draw_labels("partial"), torch.zeros(B, M, dtype=torch.bool))["modc_pseudo"] == 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_weight_zero_is_left_out(name):
    labels = draw_labels("partial")
    assert set(values(outputs_of(*random_raw()), labels, guess(labels), **{name: 0})) == set(LOSSES) - {name}


READS = {  # the embeddings that a loss trains: attribute, local, logits, classes
    "classification": [2],
    "m3_classification": [2],
    "asen_triplet": [0],
    "asen_pp_local": [1],
    "asen_pp_align": [0, 1],
    "modc_cluster": [0],
    "modc_pseudo": [0],
    "m3_instance": [3],
    "m3_cluster": [3],
    "duet_classification": [2],
}


@pytest.mark.parametrize("pairs", ["drawn", "all"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_against_finite_differences(name, pairs):
    labels, system = draw_labels("partial", size=5), stub()
    system.centers.double()
    batch, pseudo, raw = batch_of(labels), guess(labels), random_raw(5)
    others = dict.fromkeys(set(LOSSES) - {name, "asen_triplet"}, 0)  # pseudo needs another one
    loss = make_loss(**others, pairs=pairs)

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
def test_one_positive_and_one_negative_per_anchor_leave_nothing_to_chance(hardness):
    """Two red pictures and a green one: uniform draws too give each loss its formula, in any order."""
    labels, raw = torch.eye(M, dtype=torch.bool)[[0, 0, 1]], random_raw(3)
    expected = naive_total(outputs_of(*raw), labels, torch.zeros_like(labels), stub())
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        got = values(outputs_of(*(part[order] for part in raw)), labels[order], hardness=hardness)
        assert got == pytest.approx({name: expected[name] for name in got}, rel=1e-5)


def draws_of(similarity: Tensor, allowed: Tensor, hardness: float, times: int = 20_000) -> np.ndarray:
    """(B,) how often each column was drawn."""
    shape = (times, len(similarity))
    drawn = losses.sample_by_hardness(similarity.expand(shape), allowed.expand(shape), hardness, generator(4))
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


@pytest.mark.parametrize("pairs", ["drawn", "all"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_an_image_unknown_under_an_attribute_gets_no_gradient_from_it(name, seed, pairs):
    """Where there is a guess, pseudo is the loss that may use it, and none but it."""
    labels = draw_labels("partial", seed, 14)
    pseudo, raw = guess(labels, seed), [part.requires_grad_() for part in random_raw(14, seed)]
    loss = make_loss(hardness=2, pairs=pairs)
    parts = objective.total_loss(outputs_of(*raw), batch_of(labels), stub(), loss, generator(), pseudo)
    parts[name].backward()
    known = losses.known_attributes(labels | pseudo if name == "modc_pseudo" else labels, OWN)
    by_class = known[:, OWN]
    assert [k for k, part in enumerate(raw) if part.grad is not None] == READS[name]
    for part, seen in zip(raw, (known, known, by_class, by_class), strict=True):
        if part.grad is not None:
            assert (part.grad[~seen] == 0).all()
            assert (part.grad[seen] != 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_any_label_change_no_loss(kind):
    labels, raw, more = draw_labels(kind, 1), random_raw(), random_raw(4, 7)
    pseudo, empty = guess(labels), torch.zeros(4, M, dtype=torch.bool)
    padded = outputs_of(*(torch.cat(pair) for pair in zip(raw, more, strict=True)))
    got = values(padded, torch.cat([labels, empty]), torch.cat([pseudo, empty]))
    assert got == pytest.approx(values(outputs_of(*raw), labels, pseudo), rel=1e-5)


@pytest.mark.parametrize("n", range(N))
def test_images_unknown_under_an_attribute_do_not_change_its_losses(n):
    """They are labelled elsewhere, and change what the other attributes' anchors have; here, nothing."""
    labels, more, raw, extra = draw_labels("partial", 1), draw_labels("multi", 2, 6), random_raw(), random_raw(6, 7)
    more[:, n == OWN] = False
    both = torch.cat([labels, more])
    outputs, joined = outputs_of(*raw), outputs_of(*(torch.cat(pair) for pair in zip(raw, extra, strict=True)))

    def of_attribute(outputs: Outputs, labels: Tensor) -> dict[str, float]:
        found = losses.find_anchors(labels, OWN)
        anchors = losses.Anchors(*(part[OWN[found.class_id] == n] for part in found))
        batch = Batch(torch.arange(len(labels)), labels & (n == OWN), anchors)
        parts = objective.total_loss(outputs, batch, stub(), make_loss(modc_pseudo=0), generator())
        return {name: value.item() for name, value in parts.items()}

    assert len(losses.find_anchors(both, OWN).image) > len(losses.find_anchors(labels, OWN).image)
    assert of_attribute(joined, both) == pytest.approx(of_attribute(outputs, labels), rel=1e-5)
    cosines = 2 * torch.rand(B + 6, M, generator=generator()) - 1
    alone = losses.pseudo_labels(cosines[:B], labels, OWN, MULTI, 0.05)
    assert torch.equal(losses.pseudo_labels(cosines, both, OWN, MULTI, 0.05)[:B, n == OWN], alone[:, n == OWN])
    first, second = (losses.positive_weights(part, OWN, 1.0)[n == OWN] for part in (labels, both))
    assert torch.equal(first, second)


@pytest.mark.parametrize("pairs", ["drawn", "all"])
@pytest.mark.parametrize("labels", [torch.zeros(4, M, dtype=torch.bool), torch.eye(M, dtype=torch.bool)[[0, 3, 7, 7]]])
def test_a_batch_without_anchors_has_zero_losses_and_finite_gradients(labels, pairs):
    batch, raw = batch_of(labels), [part.requires_grad_() for part in random_raw(4)]
    assert len(batch.anchors.image) == 0
    loss = make_loss(asen_pp_align=0, modc_cluster=0, pairs=pairs)
    parts = objective.total_loss(outputs_of(*raw), batch, stub(), loss, generator())
    assert [parts[name].item() for name in ("asen_triplet", "asen_pp_local", "m3_instance", "m3_cluster")] == [
        0,
        0,
        0,
        0,
    ]
    sum(parts.values()).backward()
    for k in (0, 1, 3):
        assert (raw[k].grad == 0).all()
    assert raw[2].grad.isfinite().all()


@pytest.mark.parametrize(
    ("weights", "space"), [({"m3_cluster": 1}, 3), ({"modc_cluster": 1}, 0), ({"asen_triplet": 1}, None)]
)
def test_centers_move_in_the_space_of_the_loss_in_use(weights, space):
    labels, system, loss = draw_labels("multi"), stub(), make_loss(**dict.fromkeys(LOSSES, 0) | weights)
    outputs = outputs_of(*random_raw(dtype=torch.float32))
    expected = make_centers()
    if space is not None:
        expected.update(outputs.classes if space == 3 else outputs.attribute[:, OWN], labels)
    objective.update_centers(outputs, labels, system, loss)
    assert torch.equal(system.centers.value, expected.value)
    assert torch.equal(system.centers.seen, expected.seen)


@pytest.mark.parametrize("pairs", ["drawn", "all"])
@pytest.mark.parametrize("seed", range(3))
def test_embeddings_of_the_classes_of_a_batch_are_enough(seed, pairs):
    """Losses and centers equal those from the embeddings of all classes."""
    labels = draw_labels("partial", seed)
    labels[:, [2, 5]] = False
    carried = labels.any(dim=0).nonzero().flatten()
    assert 0 < len(carried) < M
    outputs = outputs_of(*random_raw(seed=seed, dtype=torch.float32))
    selected = outputs._replace(classes=outputs.classes[:, carried], class_ids=carried)
    results = []
    for given in (outputs, selected):
        system, weights = stub(seed), dict.fromkeys(LOSSES, 0) | {"m3_instance": 1, "m3_cluster": 1}
        loss = make_loss(**weights, pairs=pairs)
        values = objective.total_loss(given, batch_of(labels), system, loss, generator(seed))
        objective.update_centers(given, labels, system, loss)
        results.append((values, system.centers))
    (values, centers), (values_of_selected, centers_of_selected) = results
    assert values == values_of_selected
    torch.testing.assert_close(centers_of_selected.value, centers.value)
    assert not torch.equal(centers.value, make_centers(seed).value)
    assert torch.equal(centers_of_selected.seen, centers.seen)


def test_outputs_that_no_loss_reads_may_be_missing():
    loss = make_loss(**dict.fromkeys(LOSSES, 0) | {"m3_classification": 1})
    values = objective.total_loss(
        Outputs(logits=random_raw()[2]), batch_of(draw_labels("partial")), stub(), loss, generator()
    )
    assert set(values) == {"m3_classification"}


@pytest.mark.parametrize("setting", ["margin", "hardness", "contrast_temperature"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_reads_the_settings_that_are_listed_for_it(name, setting):
    """Whether another value of a setting changes the loss; modc_pseudo weighs asen_triplet, so both are on."""
    system, labels = stub(), draw_labels("partial")
    outputs, pseudo, zero = outputs_of(*random_raw()), guess(labels), dict.fromkeys(LOSSES, 0.0)
    values = []
    for value in (0.1, 7.0):
        pairs = "all" if setting == "contrast_temperature" else "drawn"
        loss = make_loss(**zero | {"asen_triplet": 1.0, name: 1.0, setting: value, "pairs": pairs})
        parts = objective.total_loss(outputs, batch_of(labels), system, loss, generator(), pseudo)
        values.append(float(parts[name]))
    assert (values[0] != values[1]) == (name in LOSS_SETTINGS[setting])
