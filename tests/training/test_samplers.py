"""Samplers: which triplets are allowed, how often each is drawn, and which labels the losses see."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from m3lib.config import Train
from m3lib.errors import InputError
from m3lib.systems import losses
from m3lib.training import samplers
from m3lib.training.samplers import Batch, TripletSampler
from m3lib.training.trainer import Trainer
from tiny import OWN, SETTINGS, TAXONOMY, generator, make_prepared, make_variant, random_labels

KINDS = ["asen", "asen_pp", "asen_pp_exact"]
M = TAXONOMY.num_classes
OF = OWN.tolist()  # the attribute of each class


def make_train(sampler: str, **changes: int) -> Train:
    return replace(SETTINGS.train, sampler=sampler, **changes)


def draw_labels(kind: str, size: int = 30, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(random_labels(kind, size, np.random.default_rng(seed)))


def uneven_labels(size: int = 40) -> torch.Tensor:
    """Classes of very different frequency, one of them on a single image."""
    rng = np.random.default_rng(5)
    labels = np.zeros((size, M), bool)
    for row in labels:
        row[rng.choice(3, p=[0.6, 0.3, 0.1])] = True
        row[3:6] = rng.random(3) < (0.8, 0.2, 0.4)
        row[7 + (rng.random() < 0.3)] = True
    labels[0, 6] = True  # a class of one image: never asked for, but a negative
    labels[:, 7:] &= rng.random((size, 1)) < 0.7  # unknown for some
    return torch.from_numpy(labels)


def classes_of(labels: torch.Tensor, attribute: int, least: int) -> list[int]:
    return [m for m in range(M) if OF[m] == attribute and labels[:, m].sum() >= least]


def expected_shares(labels: torch.Tensor, kind: str) -> tuple[dict[int, float], dict[tuple[int, int], float]]:
    """Of every class the share of anchors, and of every (class, negative image) the share of triplets."""
    attributes = [
        n for n in range(TAXONOMY.num_attributes) if classes_of(labels, n, 2) and len(classes_of(labels, n, 1)) > 1
    ]
    asked, pairs = {}, Counter()
    for n in attributes:
        for m in classes_of(labels, n, 2):
            asked[m] = 1 / len(attributes) / len(classes_of(labels, n, 2))
            others = [o for o in classes_of(labels, n, 1) if o != m]
            of = {o: [i for i in range(len(labels)) if labels[i, o]] for o in others}
            if kind == "asen_pp_exact":
                of = {o: [i for i in images if not labels[i, m]] for o, images in of.items()}
            everywhere = sum(map(len, of.values()))
            for images in of.values():
                for i in images:
                    pairs[m, i] += asked[m] / (everywhere if kind == "asen" else len(others) * len(images))
    if kind == "asen_pp_exact":  # a draw without a negative is made again: what is left shares out its part
        left = {m: sum(share for (asking, _), share in pairs.items() if asking == m) for m in asked}
        asked = {m: share / sum(left.values()) for m, share in left.items()}
        pairs = {pair: share / sum(left.values()) for pair, share in pairs.items()}
    return asked, dict(pairs)


def assert_distributed(drawn: list, shares: dict) -> None:
    """A chi-square test; what is expected fewer than five times is counted together."""
    counts = Counter(drawn)
    assert set(counts) <= set(shares)
    assert sum(shares.values()) == pytest.approx(1)
    table = np.array([[counts[key], len(drawn) * share] for key, share in shares.items()])
    rare = table[:, 1] < 5
    table = np.vstack([table[~rare], table[rare].sum(axis=0)]) if rare.any() else table
    assert stats.chisquare(*table.T).pvalue > 1e-4


@pytest.mark.parametrize("sampler", ["uniform", "balanced", *KINDS])
def test_an_epoch_has_steps_per_epoch_batches(sampler):
    labels = draw_labels("single")
    for batch, triplets in [(7, 21), (8, 23), (30, 64), (31, 9)]:
        train = make_train(sampler, batch=batch, triplets=triplets)
        found = list(samplers.epoch(labels, OWN, train, generator()))
        size = 30 if sampler in samplers.IMAGE_SAMPLERS else triplets
        assert len(found) == samplers.steps_per_epoch(30, train) == max(1, size // batch)


def indices(found: list[Batch]) -> list[int]:
    return torch.cat([batch.index for batch in found]).tolist()


@pytest.mark.parametrize(("size", "batch", "sizes"), [(23, 5, [5] * 4), (20, 5, [5] * 4), (3, 5, [3]), (5, 5, [5])])
def test_uniform_yields_each_image_once_except_an_incomplete_batch(size, batch, sizes):
    labels = draw_labels("partial", size)
    found = list(samplers.uniform(labels, OWN, batch, generator()))
    assert [len(part.index) for part in found] == sizes
    assert len(set(indices(found))) == sum(sizes)
    for part in found:
        assert part.index.tolist() == sorted(part.index.tolist())
        assert torch.equal(part.labels, labels[part.index])
        expected = losses.find_anchors(part.labels, OWN)
        assert all(torch.equal(a, b) for a, b in zip(part.anchors, expected, strict=True))


def long_tail(size: int = 400) -> torch.Tensor:
    """Classes 1 and 2 (of class 0's attribute) on 5 and 2 images, 3 on a single one; the others are frequent."""
    labels = torch.zeros(size, M, dtype=torch.bool)
    labels[:, 0] = labels[::2, 7] = labels[1::2, 8] = True
    labels[100:105, 0], labels[100:105, 1] = False, True
    labels[200:202, 0], labels[200:202, 2] = False, True
    labels[300, 3] = labels[:, 4] = True
    return labels


def test_every_balanced_batch_has_pairs_of_rare_classes():
    """Two rare classes and room for two pairs: each batch holds both, for the budget of the plain sampler."""
    labels = long_tail()
    found = list(samplers.epoch(labels, OWN, make_train("balanced", batch=20), generator()))
    assert [len(batch.index) for batch in found] == [20] * 20
    for batch in found:
        assert len(batch.index.unique()) == 20
        assert batch.index.tolist() == sorted(batch.index.tolist())
        assert (batch.labels[:, 1:3].sum(dim=0) >= 2).all()
        assert {1, 2} <= set(batch.anchors.class_id.tolist())
    plain = list(samplers.epoch(labels, OWN, make_train("uniform", batch=20), generator()))
    assert sum(2 in batch.anchors.class_id for batch in plain) <= 1
    seen = Counter(indices(found))
    others = [i for i in range(400) if not labels[i, 1:3].any()]
    assert max(seen[i] for i in others) == 1  # the rest of a batch is new
    assert sum(seen[i] for i in others) > 20 * 15
    assert min(seen[i] for i in range(100, 105)) > 2
    assert {i for batch in found for i in batch.index[batch.labels[:, 1]].tolist()} == set(range(100, 105))


def test_rare_classes_take_turns_if_a_batch_has_no_room_for_all():
    """One pair a batch of 8, for two rare classes."""
    found = list(samplers.epoch(long_tail(), OWN, make_train("balanced", batch=8), generator()))
    asked = [[int(batch.labels[:, m].sum() >= 2) for m in (1, 2)] for batch in found]
    assert all(any(pair) for pair in asked)
    turns = np.array(asked).sum(axis=0)
    assert turns.tolist() == pytest.approx([25, 25], abs=2)


def test_balanced_without_rare_classes_equals_uniform():
    labels = draw_labels("single", 60)
    assert labels.sum(dim=0).min() * 30 >= 120
    found = [
        list(samplers.epoch(labels, OWN, make_train(kind, batch=30), generator())) for kind in samplers.IMAGE_SAMPLERS
    ]
    assert [batch.index.tolist() for batch in found[0]] == [batch.index.tolist() for batch in found[1]]


def test_the_pairs_of_a_rare_class_are_uniform():
    draws, pairs = generator(), []
    for _ in range(40):
        for batch in samplers.epoch(long_tail(), OWN, make_train("balanced", batch=20), draws):
            carriers = batch.index[batch.labels[:, 1]].tolist()
            pairs += [tuple(carriers)] if len(carriers) == 2 else []
    assert_distributed(pairs, {(i, j): 0.1 for i in range(100, 105) for j in range(i + 1, 105)})


@pytest.mark.parametrize("sampler", ["uniform", "balanced", *KINDS])
def test_an_epoch_depends_on_the_generator_only(sampler):
    labels, train, draws = draw_labels("multi"), make_train(sampler, batch=5, triplets=20), generator()
    first, second = (indices(list(samplers.epoch(labels, OWN, train, draws))) for _ in range(2))
    assert first != second
    assert first == indices(list(samplers.epoch(labels, OWN, train, generator())))


@pytest.mark.parametrize("kind", KINDS)
def test_classes_and_negatives_are_as_frequent_as_the_released_code_makes_them(kind):
    labels = uneven_labels()
    draws, sampler = generator(2), TripletSampler(labels, OWN, kind)
    drawn = [sampler.draw(draws) for _ in range(8000)]
    asked, pairs = expected_shares(labels, kind)
    assert all(anchor != positive for anchor, positive, *_ in drawn)
    assert 6 not in asked
    assert_distributed([m for *_, m in drawn], asked)
    assert_distributed([(m, negative) for _, _, negative, m in drawn], pairs)
    carriers = {(m, i): asked[m] / labels[:, m].sum().item() for m in asked for i in range(40) if labels[i, m]}
    assert_distributed([(m, anchor) for anchor, _, _, m in drawn], carriers)
    assert_distributed([(m, positive) for _, positive, _, m in drawn], carriers)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_triplets_hides_other_attributes_and_compares_only_its_triplets(kind):
    labels, size = draw_labels("multi", seed=4), 6
    draws = generator(7)
    drawn = [TripletSampler(labels, OWN, kind).draw(draws) for _ in range(3 * size)]
    found = list(samplers.epoch(labels, OWN, make_train(kind, batch=size, triplets=3 * size + 2), generator(7)))
    for part, triplets in zip(found, (drawn[k : k + size] for k in range(0, len(drawn), size)), strict=True):
        roles = list(zip(*triplets, strict=True))
        assert part.index.tolist() == [i for role in roles[:3] for i in role]
        assert part.anchors.image.tolist() == list(range(size))
        assert part.anchors.class_id.tolist() == list(roles[3])
        for t in range(size):
            assert part.anchors.positives[t].nonzero().flatten().tolist() == [size + t]
            assert part.anchors.negatives[t].nonzero().flatten().tolist() == [2 * size + t]
        for row, image in enumerate(part.index.tolist()):
            attribute = OF[roles[3][row % size]]
            expected = [bool(labels[image, m]) and OF[m] == attribute for m in range(M)]
            assert part.labels[row].tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "pairs",  # (image, class)
    [[], [(0, 0), (1, 1), (2, 4), (3, 8)], [(0, 0), (1, 0), (2, 3), (3, 3), (4, 7)]],
    ids=["no label", "no class with two images", "no attribute with two classes"],
)
def test_without_any_triplet_a_batch_is_random_images_without_an_anchor(kind, pairs):
    labels = torch.zeros(5, M, dtype=torch.bool)
    for image, m in pairs:
        labels[image, m] = True
    train = make_train(kind, batch=4, triplets=40)
    found = list(samplers.epoch(labels, OWN, train, generator()))
    assert len(found) == samplers.steps_per_epoch(5, train) == 10
    assert {i for batch in found for i in batch.index.tolist()} == set(range(5))
    for batch in found:
        assert torch.equal(batch.labels, labels[batch.index])
        assert [len(field) for field in batch.anchors] == [0] * 4


def test_a_class_without_an_exact_negative_is_never_drawn():
    labels = torch.zeros(6, M, dtype=torch.bool)
    labels[:4, 3] = labels[:3, 4] = True  # every image with 4 has 3: only 4 can be asked for
    draws, sampler = generator(), TripletSampler(labels, OWN, "asen_pp_exact")
    assert {sampler.draw(draws)[2:] for _ in range(60)} == {(3, 4)}


def rare_pairs(size: int = 100) -> torch.Tensor:
    """Two images of each of three classes, and images without labels."""
    labels = torch.zeros(size, M, dtype=torch.bool)
    labels[0:2, 0] = labels[2:4, 1] = labels[4:6, 3] = True
    return labels


def test_a_batch_with_less_than_one_pair_of_a_class_is_refused_with_the_smallest_size_that_has_one():
    """3 of 4,950 pairs share a class; a batch has b (b - 1) / 2 pairs, so that one of 58 images has 1.002 of them."""
    train = replace(SETTINGS.train, sampler="uniform")
    for batch in (58, 80):
        samplers.check_batch(rare_pairs(), replace(train, batch=batch))
    for batch in (2, 57):
        with pytest.raises(InputError, match=rf"^train\.batch {batch} holds .* on average; set it to 58 or more$"):
            samplers.check_batch(rare_pairs(), replace(train, batch=batch))
    samplers.check_batch(torch.eye(M, dtype=torch.bool), replace(train, batch=4))  # no batch has a pair
    samplers.check_batch(rare_pairs(), replace(train, batch=2, sampler="asen_pp_exact"))  # draws triplets


def test_only_triplet_losses_need_pairs_of_a_class():
    labels = rare_pairs(30).numpy()
    prepared = make_prepared(labels, [("train", "")] * 30)
    with pytest.raises(InputError, match=r"train\.batch 2 holds"):
        Trainer(prepared, make_variant("m3", batch=2), 0, 1)
    Trainer(prepared, make_variant("classifier", batch=2), 0, 1)


@pytest.mark.parametrize(("network", "only"), [("asen", True), ("modc", False), ("m3", False), ("classifier", None)])
def test_losses_without_a_triplet_are_named(network, only):
    """only: whether the row has no other loss; None: it has no loss that compares images."""
    labels = np.eye(9, dtype=bool)
    sentences = samplers.idle_losses(make_prepared(labels, [("train", "")] * 9), make_variant(network))
    assert len(sentences) == (0 if only is None else 1 + only)
    assert all("can't learn anything from these images" in sentence for sentence in sentences[:1])
    labels = np.concatenate([labels, labels])  # twice each class
    some = make_prepared(labels, [("train", "")] * 18)
    assert samplers.idle_losses(some, make_variant(network)) == []
    held_out = make_variant(network, held_out=["sleeve: long"])
    sentences = samplers.idle_losses(some, held_out)
    assert [("about sleeve:" in sentence) for sentence in sentences] == ([] if only is None else [True])


@pytest.mark.parametrize("sampler", ["uniform", *KINDS])
def test_each_image_is_followed_by_a_copy_that_is_compared_as_the_image_is(sampler):
    """A pair of the new batch is positive or negative as the pair of its images was; an image and its copy agree."""
    labels, train = draw_labels("partial", 40), make_train(sampler, batch=10, triplets=10)
    batch = next(samplers.epoch(labels, OWN, train, generator(1)))
    got = samplers.with_copies(batch)
    assert got.index.tolist() == [row for row in batch.index.tolist() for _ in range(2)]
    assert got.labels.tolist() == [row for row in batch.labels.tolist() for _ in range(2)]
    expected = []
    for i, m, positives, negatives in zip(*(field.tolist() for field in batch.anchors), strict=True):
        for image in (2 * i, 2 * i + 1):
            twice = [[value for value in mask for _ in range(2)] for mask in (positives, negatives)]
            twice[0][4 * i + 1 - image] = True  # the other one of 2 i and 2 i + 1
            expected.append((image, m, *twice))
    assert list(zip(*(field.tolist() for field in got.anchors), strict=True)) == expected
    if sampler == "uniform":
        found = losses.find_anchors(got.labels, OWN)  # also has anchors whose only positive is their copy
        assert {(i, m) for i, m, *_ in expected} <= set(zip(found.image.tolist(), found.class_id.tolist(), strict=True))
