"""Anchors, sampling, centers and pseudo-labels against float64 loops; test_objective.py covers the losses' formulas."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from m3lib.systems import losses
from naive_losses import (
    KINDS,
    MARGIN,
    MULTI,
    B,
    D,
    M,
    N,
    columns,
    draw_labels,
    is_known,
    make_centers,
    naive_anchors,
    naive_pseudo,
)
from tiny import OWN, generator, unit_rows


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


def test_a_batch_without_labels_has_no_classification_loss():
    logits = torch.randn(4, M, generator=generator(), requires_grad=True)
    labels = torch.zeros(4, M, dtype=torch.bool)
    usual = losses.classification_loss(logits, labels, MULTI, OWN)
    (usual + losses.m3_classification_loss(logits, labels, torch.ones(M), OWN)).backward()
    assert (usual.item(), logits.grad.abs().max().item()) == (0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_one_class_per_image_is_torchs_cross_entropy_and_unknown_labels_get_no_gradient(seed):
    """In value and gradient; an unknown label is torch's ignore_index."""
    labels = draw_labels("single", seed)
    for n in range(N):
        labels[torch.rand(B, generator=generator(9 * seed + n)) < 0.4] &= n != OWN
    ours, theirs = (torch.randn(B, M, generator=generator(seed), dtype=torch.float64).requires_grad_() for _ in "ab")
    value = losses.classification_loss(ours, labels, torch.zeros(N, dtype=torch.bool), OWN)
    total = torch.zeros((), dtype=torch.float64)
    for n in range(N):
        known, own = labels[:, n == OWN].any(dim=1), labels[:, n == OWN].int()
        target = torch.where(known, own.argmax(dim=1), -100)
        total = total + torch.nn.functional.cross_entropy(theirs[:, n == OWN], target, reduction="sum")
    expected = total / labels.sum()
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    unknown = ~losses.known_attributes(labels, OWN)[:, OWN]
    assert unknown.any()
    assert (ours.grad[unknown] == 0).all()
    assert (ours.grad[~unknown] != 0).all()


@pytest.mark.parametrize("block", [1, B * B, 5 * B * B, 10**9])
def test_gradients_of_similarities_are_those_of_comparing_all_pairs(block, monkeypatch):
    monkeypatch.setattr(losses, "MAX_COSINES", block)
    anchors = losses.find_anchors(draw_labels("multi"), OWN)
    for count, space in ((M, anchors.class_id), (N, OWN[anchors.class_id])):
        first, second = (unit_rows(B, count, D, seed=count, dtype=torch.float64).requires_grad_() for _ in range(2))
        weight = torch.randn(len(space), B, generator=generator(4), dtype=torch.float64)
        (losses.anchor_cosines(first, anchors.image, space) * weight).sum().backward()
        (torch.einsum("isd,jsd->sij", second, second)[space, anchors.image] * weight).sum().backward()
        torch.testing.assert_close(first.grad, second.grad)


@pytest.mark.parametrize("block", [1, B * B, 5 * B * B, 10**9])
@pytest.mark.parametrize("seed", range(3))
def test_similarities_against_a_loop(block, seed, monkeypatch):
    """In blocks of one anchor, of five, and all at once; of class spaces and of attribute spaces."""
    monkeypatch.setattr(losses, "MAX_COSINES", block)
    anchors = losses.find_anchors(draw_labels("multi", seed), OWN)
    for count, space in ((M, anchors.class_id), (N, OWN[anchors.class_id])):
        rows = unit_rows(B, count, D, seed=seed + count, dtype=torch.float64)
        got = losses.anchor_cosines(rows, anchors.image, space)
        assert got.shape == (len(space), B)
        for a, (i, s) in enumerate(zip(anchors.image.tolist(), space.tolist(), strict=True)):
            assert got[a].tolist() == pytest.approx([float(rows[i, s] @ rows[j, s]) for j in range(B)])


@pytest.mark.parametrize("hardness", [0, 4])
def test_triplets_and_their_gradients_are_those_of_comparing_all_pairs(hardness):
    """The same draws from the same generator, and the gradient that (S, B, B) cosines would give."""
    anchors = losses.find_anchors(draw_labels("partial", 1), OWN)
    for count, space in ((M, anchors.class_id), (N, OWN[anchors.class_id])):
        raw = torch.randn(B, count, D, generator=generator(count), dtype=torch.float64)
        first, second = (raw.clone().requires_grad_() for _ in range(2))
        drawn = losses.sample_triplets(first, space, anchors, hardness, generator(3))
        every = torch.einsum("isd,jsd->sij", second, second)[space, anchors.image]  # (A, B)
        draws, cosines = generator(3), []
        for sign, allowed in ((-1, anchors.positives), (1, anchors.negatives)):
            chosen = losses.sample_by_hardness(sign * every.detach(), allowed, hardness, draws)
            cosines.append(every.gather(1, chosen[:, None]).squeeze(1))
        weight = torch.randn(2, len(space), generator=generator(4), dtype=torch.float64)
        assert torch.allclose(torch.stack(drawn), torch.stack(cosines))
        for got, found in ((drawn, first), (cosines, second)):
            sum((part * by).sum() for part, by in zip(got, weight, strict=True)).backward()
            assert found.grad.abs().sum() > 0
        torch.testing.assert_close(first.grad, second.grad)


class Watched(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for part in made if isinstance(made, tuple) else (made,):
            self.largest = max(self.largest, part.numel() if isinstance(part, Tensor) else 0)
        return made


@pytest.mark.parametrize("pairs", ["drawn", "all"])
def test_memory_is_bounded_with_many_classes(pairs, monkeypatch):
    """2,000 classes, batch 32: all pairs in all spaces would be 2 million cosines; the embedding has 128,000."""
    monkeypatch.setattr(losses, "MAX_COSINES", 10 * 32 * 32)
    size, classes = 32, 2000
    labels = torch.rand(size, classes, generator=generator()) < 0.02
    anchors = losses.find_anchors(labels, torch.zeros(classes, dtype=torch.int64))
    phi = unit_rows(size, classes, 2).requires_grad_()
    with Watched() as watched:
        if pairs == "drawn":
            positive, negative = losses.sample_triplets(phi, anchors.class_id, anchors, 4.0, generator())
            losses.triplet_loss(positive, negative, MARGIN).backward()
        else:
            cosines = losses.anchor_cosines(phi, anchors.image, anchors.class_id)
            losses.contrast_loss(cosines, anchors.positives, anchors.negatives, 0.1).backward()
    assert watched.largest == phi.numel() < classes * size * size / 10
    assert len(anchors.class_id) > 500


def test_align_loss_is_0_for_equal_branches_and_for_unknown_attributes():
    g, l = unit_rows(B, N, D), unit_rows(B, N, D, seed=1)  # noqa: E741
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


@pytest.mark.parametrize("margin", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_pseudo_labels_against_a_loop(seed, margin):
    labels, cosines = draw_labels("partial", seed, 40), 2 * torch.rand(40, M, generator=generator(seed)) - 1
    got = losses.pseudo_labels(cosines, labels, OWN, MULTI, margin)
    assert {tuple(pair) for pair in got.nonzero().tolist()} == naive_pseudo(cosines, labels, margin)
    assert got.sum() > 3
    assert len(naive_pseudo(cosines, labels, 0.0)) > len(naive_pseudo(cosines, labels, 0.3))


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
