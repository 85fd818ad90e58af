"""Training steps and epochs: what is trained, on which images, with which settings; embedding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tqdm import tqdm

from m3lib import systems
from m3lib.data import batches
from m3lib.data.manifest import Prepared
from m3lib.retrieval import metrics, ranking
from m3lib.systems import losses
from m3lib.systems.base import Outputs
from m3lib.systems.losses import Batch
from m3lib.systems.objective import total_loss
from m3lib.training import augment, inference
from m3lib.training.run import fit
from m3lib.training.samplers import TRIPLET_LOSSES
from m3lib.training.schedule import StageSchedule
from m3lib.training.trainer import Trainer, advised
from stripes import PREPARED, SIDE, STRIPES, moved, run, short, weights
from tiny import OWN, PUBLISHED, SETTINGS, TAXONOMY, make_prepared, make_variant, random_labels

NETWORKS = list(systems.SYSTEMS)


@pytest.mark.parametrize("global_lr", [0.1, 0.0])
def test_the_local_branch_is_trained_from_its_stage_on(global_lr):
    variant = short("asen_pp", 2, (0.5, 0.5))
    variant = replace(variant, stages=(variant.stages[0], replace(variant.stages[1], global_lr=global_lr)))
    trainer = Trainer(PREPARED, variant, 0, 1)
    before = weights(trainer.system)
    local = {name for name in before if name.startswith("local_")}
    trainer.run_epoch(tqdm(disable=True))
    assert moved(before, weights(trainer.system)) == set(before) - local
    trainer.system.enter_stage(variant.stages[1].loss)  # copies a backbone: no move of the optimizer's
    before = weights(trainer.system)
    trainer.run_epoch(tqdm(disable=True))
    after = weights(trainer.system)
    assert moved(before, after) == (set(before) if global_lr else local)
    trainer.system.enter_stage(variant.stages[1].loss)  # the next epoch of the stage copies nothing again
    assert not moved(after, weights(trainer.system))


ASEN_FAMILY = ["asen", "asen_v2", "asen_pp", "modc"]
LEARNED = [(network, None, {}) for network in NETWORKS if network != "frozen"]  # its features are random here
LOGIT_LOSSES = ["classification", "m3_classification"]
LEARNED += [(network, "posterior", {"loss": {name: 1.0}}) for network in ASEN_FAMILY for name in LOGIT_LOSSES]
RELEASED = {"optimizer": "adam", "schedule": "step", "step_factor": 0.95, "batch": 24, "triplets": 72}
LEARNED += [("asen_v2", None, RELEASED | {"sampler": sampler}) for sampler in ("asen", "asen_pp")]
LEARNED += [("m3", None, {"sampler": "asen_pp_exact", "batch": 8, "triplets": 8})]


@pytest.mark.parametrize(("network", "score", "changes"), LEARNED)
def test_each_network_overfits_24_images(network, score, changes, tmp_path):
    """By its row's score, and with a loss on logits by the class probabilities; so do the samplers as released."""
    settings = {
        "batch": 24,
        "shift": 0.0,
        "class_embedding": 16,
        "attention_width": 16,
        "attribute_embedding": 16,
        "local_attention_width": 16,
    }
    variant = short(network, 60 if network == "asen_pp" else 40, **(settings | changes))  # half of it has one branch
    system, curves = run(variant, tmp_path / "c.safetensors")
    embeddings = inference.embed(system, PREPARED, PREPARED.rows("valid"), "fp32")
    scores = ranking.evaluate(PREPARED, "valid", variant.score, embeddings)
    reached = metrics.summarise(scores)["map_all"]
    assert reached["overall_by_query"] == pytest.approx(max(record["valid_map_all"] for record in curves))
    assert min(reached["attributes"].values()) > 0.95
    if score:
        scores = ranking.evaluate(PREPARED, "valid", score, embeddings)
        assert min(metrics.summarise(scores)["map_all"]["attributes"].values()) > 0.95


@pytest.mark.parametrize("network", ["classifier", "asen", "asen_pp", "modc", "m3"])
def test_embed_covers_the_rows_in_order_and_equals_a_forward_pass(network, monkeypatch):
    monkeypatch.setattr(inference, "EMBED_BATCH", 5)
    variant = short(network)
    system = Trainer(PREPARED, variant, 0, 1).system
    for stage in variant.stages:
        system.enter_stage(stage.loss)
    rows = np.array([0, 3, 4, 10, 11, 12, 30, 31, 50, 70, 71])
    found = inference.embed(system, PREPARED, rows, "fp32")
    assert found.rows.tolist() == rows.tolist()
    with torch.no_grad():
        outputs = system.eval()(batches.to_tensor(PREPARED.images[rows]))
    for got, expected in zip(
        vars(found).values(),
        (found.rows, system.retrieval_embedding(outputs), system.class_probabilities(outputs), outputs.classes),
        strict=True,
    ):
        assert (got is None) == (expected is None)
        if got is not None and got is not found.rows:
            assert got.dtype == torch.float16
            torch.testing.assert_close(got.float(), expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("views", [1, 2])
def test_embeddings_are_the_mean_of_an_image_and_its_mirror_image(views):
    system, rows = Trainer(PREPARED, short("duet", views=views), 0, 1).system, PREPARED.rows("valid")
    images, means = batches.to_tensor(PREPARED.images[rows]), []
    with torch.no_grad():
        both = [system.eval()(view) for view in (images, images.flip(3))[:views]]
        for values in zip(*((o.attribute, system.class_probabilities(o)) for o in both), strict=True):
            means.append(sum(value.double() for value in values) / views)
    found, length = inference.embed(system, PREPARED, rows, "fp32"), means[0].norm(dim=2, keepdim=True)
    assert (length.min() < 1 - 1e-6) == (views == 2)
    torch.testing.assert_close(found.attribute.double(), means[0] / length, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(found.posterior.double(), means[1], rtol=2e-3, atol=1e-3)


def test_only_training_rows_are_trained_on(monkeypatch):
    trainer, seen = Trainer(PREPARED, short("m3"), 0, 1), []
    monkeypatch.setattr(trainer, "step", lambda batch, *_: seen.extend(trainer.rows[batch.index].tolist()) or {})
    trainer.train_epoch(tqdm(disable=True))
    assert sorted(seen) == PREPARED.rows("train").tolist()
    expected = losses.positive_weights(torch.from_numpy(PREPARED.labels[:24]), torch.tensor([0, 0, 0, 1, 1]), 0.5)
    torch.testing.assert_close(trainer.system.positive_weight, expected)


def test_every_epoch_and_every_seed_draws_other_numbers(monkeypatch):
    seen = []
    for seed in (0, 1):
        trainer = Trainer(PREPARED, short("classifier"), seed, 1)
        monkeypatch.setattr(
            augment, "augment", lambda images, _, generator, *__: seen.append(generator.get_state()) or images
        )
        for _ in range(2):
            trainer.run_epoch(tqdm(disable=True))
    assert len({state.numpy().tobytes() for state in seen[::3]}) == 4  # of the first step of each epoch


def test_a_step_reads_the_images_of_its_batch_with_the_augmentation_of_its_stage(monkeypatch):
    """The rows of the training split stand anywhere in the manifest, and a stage has an augmentation of its own."""
    labels = np.tile(PREPARED.labels[:24], (2, 1))
    parts = [("valid", "query" if i % 2 else "candidate") if i < 24 else ("train", "") for i in range(48)]
    shuffled = make_prepared(labels, parts, np.concatenate([255 - PREPARED.images[:24], PREPARED.images[:24]]), STRIPES)
    variant = short("modc", 5, (0.4, 0.2, 0.4))
    trainer, seen = Trainer(shuffled, variant, 0, 1), []
    monkeypatch.setattr(
        augment, "augment", lambda images, _mirrored, _generator, train, _: seen.append((images, train)) or images
    )
    index = torch.tensor([3, 5, 5, 20])
    known = trainer.labels[index]
    batch = Batch(index, known, losses.find_anchors(known, trainer.system.attribute_of_class))
    for stage in variant.stages:
        draws, none = torch.Generator().manual_seed(0), torch.zeros(4, dtype=torch.bool)
        trainer.step(batch, none, trainer.read(batch, none, stage), stage, draws, torch.zeros_like(known))
    assert [train for _, train in seen] == [stage.train for stage in variant.stages]
    assert all(torch.equal(images, batches.to_tensor(PREPARED.images[[3, 5, 5, 20]])) for images, _ in seen)


def test_held_out_classes_are_neither_trained_nor_validated():
    trainer = Trainer(PREPARED, short("m3", held_out=["colour: red", "stripes: down"]), 0, 1)
    assert not trainer.labels[:, [0, 4]].any()
    assert torch.equal(trainer.labels[:, 1:4], torch.from_numpy(PREPARED.labels[:24, 1:4]))
    expected = losses.positive_weights(trainer.labels, torch.tensor([0, 0, 0, 1, 1]), 0.5)
    torch.testing.assert_close(trainer.system.positive_weight, expected)
    trainer.run_epoch(tqdm(disable=True))
    assert trainer.system.centers.seen.tolist() == [False, True, True, True, False]
    asked = ranking.evaluate(trainer.prepared, "valid", "random")
    assert set(asked["colour"].class_id.tolist()) == {1, 2}


@pytest.mark.parametrize("row", ["classifier", "classifier_bce", "duet_no_contrast"])
def test_class_probabilities_of_the_best_constant_logits_are_the_frequencies_of_classes(row):
    """One logit per class, trained on rare and unknown labels. Loss 1 has sigmoids for one class per image too, whose
    odds p / (1 - p) are then the shares of a softmax."""
    trainer = Trainer(random_photos(), variant := short(row), 0, 1)
    labels, system = trainer.labels, trainer.system
    assert (system.positive_weight == 1).all() == (row == "classifier")
    logits = torch.zeros(len(OWN), requires_grad=True)
    batch = Batch(torch.arange(len(labels)), labels, losses.find_anchors(labels, OWN))
    optimizer = torch.optim.LBFGS([logits], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        outputs = Outputs(logits=logits.expand(len(labels), -1))
        value = sum(total_loss(outputs, batch, system, variant.loss, torch.Generator()).values())
        value.backward()
        return value

    optimizer.step(loss)
    known = losses.known_attributes(labels, OWN).sum(dim=0)[OWN]
    expected = labels.sum(dim=0) / known
    for n, attribute in enumerate(TAXONOMY.attributes):
        if row == "classifier_bce" and not attribute.multi:
            odds = expected[n == OWN] / (1 - expected[n == OWN])
            expected[n == OWN] = odds / odds.sum()
    got = system.class_probabilities(Outputs(logits=logits.detach()[None]))[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)


def random_photos(seed: int = 0, size: int = 40) -> Prepared:
    """Random pictures with partial labels, one class of them without any; one attribute has several per image."""
    rng = np.random.default_rng(seed)
    labels = random_labels("partial", size, rng)
    for n in (0, 2):  # one class per image, as the taxonomy has it
        own = labels[:, TAXONOMY.classes_of(n)]
        own &= np.arange(own.shape[1]) == own.argmax(axis=1)[:, None]
    labels[:, 1] = False
    images = rng.integers(0, 256, (size, SIDE, SIDE, 3), dtype=np.uint8)
    return make_prepared(labels, [("valid", "query"), *[("train", "")] * (size - 1)], images)


@pytest.mark.parametrize("seed", range(2))
def test_refreshed_centers_are_exact_means_and_pseudo_labels_near_and_clear(seed, monkeypatch):
    monkeypatch.setattr(inference, "EMBED_BATCH", 7)
    prepared = random_photos(seed)
    trainer = Trainer(prepared, short("modc"), seed, 1)
    system, labels = trainer.system, prepared.labels[1:]
    system.centers.value[0] = torch.eye(16)[1]  # to be replaced
    before = {name: value.clone() for name, value in system.state_dict().items() if "centers" not in name}
    trainer.refresh_centers()
    pseudo = trainer.guess_labels(1e-4)
    assert all(torch.equal(system.state_dict()[name], value) for name, value in before.items())

    with torch.no_grad():
        each = [system.eval()(batches.to_tensor(prepared.images[[i]])).attribute[0] for i in range(1, 40)]
    f = torch.stack(each).double().numpy()  # (39, N, D)
    cosine = np.zeros(labels.shape)
    for m in range(TAXONOMY.num_classes):
        members = [f[i, OWN[m]] for i in range(39) if labels[i, m]]
        assert bool(system.centers.seen[m]) == bool(members) == (m != 1)
        if members:
            mean = np.mean(members, axis=0)
            mean /= np.linalg.norm(mean)
            np.testing.assert_allclose(system.centers.value[m], mean, atol=1e-5)
            cosine[:, m] = f[:, OWN[m]] @ mean

    expected = np.zeros_like(labels)
    for n in (0, 2):  # those with one class per image
        own = [m for m in range(TAXONOMY.num_classes) if OWN[m] == n]
        known = sorted(cosine[i, m] for i in range(39) for m in own if labels[i, m])
        for i in range(39):
            best, second = sorted(cosine[i, own], reverse=True)[:2]
            near = best >= known[(len(known) - 1) // 2]  # the median, the lower one of two
            if not labels[i, own].any() and near and best - second >= 1e-4:
                expected[i, max(own, key=lambda m: cosine[i, m])] = True
    assert 3 < expected.sum() < (~labels).sum() / 4
    assert np.array_equal(pseudo.numpy(), expected)


@pytest.mark.parametrize("stage", range(3))
def test_validation_compares_by_exact_centers(stage, monkeypatch):
    """After an epoch of any stage, each center is the mean of the training images as the network then embeds them."""
    variant = short("modc")
    trainer = Trainer(PREPARED, replace(variant, stages=variant.stages[stage : stage + 1]), 0, 1)
    validated, centers = [], trainer.system.centers
    monkeypatch.setattr(trainer, "validate", lambda: validated.append(centers.value.clone()) or 0.5)
    trainer.run_epoch(tqdm(disable=True))
    with torch.no_grad():
        f = trainer.system.eval()(batches.to_tensor(PREPARED.images[:24])).attribute.double()  # (24, N, D)
    for m, n in enumerate(STRIPES.attribute_of_class.tolist()):
        mean = f[torch.from_numpy(PREPARED.labels[:24, m]), n].mean(dim=0)
        torch.testing.assert_close(validated[0][m].double(), mean / mean.norm(), rtol=0, atol=1e-5)
    assert torch.equal(trainer.best["centers.value"], validated[0])


def test_the_third_stage_of_modc_trains_on_images_and_on_copies_of_them(monkeypatch):
    """Twice the images per step; every second one is the image itself, as the other stages read it."""
    trainer, steps = Trainer(PREPARED, short("modc", 5, (0.4, 0.2, 0.4), shift=0.0, flip=False), 0, 1), []
    system, stored = trainer.system, {image.numpy().tobytes() for image in batches.to_tensor(PREPARED.images[:24])}
    forward = system.forward
    monkeypatch.setattr(system, "forward", lambda images: steps.append((system.training, images)) or forward(images))
    for _ in range(5):
        trainer.run_epoch(tqdm(disable=True))
    read = [[image.numpy().tobytes() in stored for image in images] for training, images in steps if training]
    assert read == [[True] * 8] * 9 + [[True, False] * 8] * 6  # 3 steps an epoch


def test_the_best_epoch_is_what_fit_returns(tmp_path, monkeypatch):
    """Validation says 0.2, 0.9, 0.1: the weights of the second epoch come back."""
    told, kept = iter([0.2, 0.9, 0.1]), []
    save = Trainer.save

    def remember(trainer: Trainer, *given: object) -> None:
        kept.append({name: value.clone() for name, value in trainer.system.state_dict().items()})
        save(trainer, *given)

    monkeypatch.setattr(metrics, "summarise", lambda scores: {"map_all": {"overall_by_query": next(told)}})
    monkeypatch.setattr(Trainer, "save", remember)
    system, curves = run(short("m3"), tmp_path / "c.safetensors")
    assert [record["valid_map_all"] for record in curves] == [0.2, 0.9, 0.1]
    assert all(torch.equal(value, kept[1][name]) for name, value in system.state_dict().items())


@pytest.mark.parametrize("name", [name for name in SETTINGS.variants if name.startswith(("asen", "m"))])
def test_the_published_preset_trains_with_the_papers_sampler_optimiser_and_schedule(name, tmp_path):
    tiny = {"epochs": 3, "triplets": 8, "batch": 4}
    variant = make_variant(name, settings=PUBLISHED, **tiny)
    system, curves = run(variant, tmp_path / "c.safetensors")
    assert variant.train.sampler in ("asen", "asen_pp", "asen_pp_exact")
    assert (variant.train.optimizer, variant.train.schedule, variant.train.lr) == ("adam", "step", 1e-4)
    assert len(curves) == StageSchedule(variant).epochs == (5 if name == "asen_pp" else 3)
    assert all(parameter.isfinite().all() for parameter in system.parameters())


def test_advice_names_the_setting_that_reaches_the_row():
    variant = SETTINGS.variant("m3_c")
    assert advised(variant, "train.batch") == "train.batch"
    assert advised(variant, "train.lr") == "train.lr (systems.m3_c.train.lr: the row sets its own)"


def lopsided(**images: list[int]) -> Prepared:
    """Stripes whose only labels are those of the given images, by split; the other images are not there."""
    labels = np.zeros((len(PREPARED.labels), STRIPES.num_classes), bool)
    parts = [("none", "unlabelled")] * len(labels)
    for name, rows in images.items():
        labels[rows] = PREPARED.labels[rows]
        for row in rows:
            parts[row] = (name, "" if name == "train" else ("query", "candidate")[row % 2])
    return make_prepared(labels, parts, PREPARED.images, STRIPES)


@pytest.mark.parametrize("valid", [[], [1], [0]], ids=["no image", "no query", "no candidate"])
def test_if_nothing_can_be_validated_the_last_epoch_is_kept(valid, tmp_path):
    trainer = Trainer(lopsided(train=list(range(4, 20)), valid=valid), short("m3", 2), 0, 1)
    for _ in range(2):
        trainer.run_epoch(tqdm(disable=True))
    assert np.isnan([record["valid_map_all"] for record in trainer.history]).all()
    assert not moved(trainer.best, trainer.system.state_dict())
    trainer.save(tmp_path / "c.safetensors", "run")
    resumed = Trainer(trainer.prepared, short("m3", 2), 0, 1)
    assert resumed.resume(tmp_path / "c.safetensors", "run")
    assert np.isnan([record["valid_map_all"] for record in resumed.history]).all()
    assert not moved(resumed.best, trainer.best)


@pytest.mark.parametrize(("size", "sampler"), [(1, "uniform"), (3, "balanced"), (3, "asen_pp_exact")])
@pytest.mark.parametrize("network", ["classifier", "asen_pp", "modc", "m3"])
def test_training_images_that_allow_no_comparison_leave_finite_weights(network, size, sampler, tmp_path):
    """One image in all, or one of each class; fewer images than a batch holds."""
    labels = np.eye(STRIPES.num_classes, dtype=bool)[:size]
    prepared = make_prepared(labels, [("train", "")] * size, PREPARED.images[:size], STRIPES)
    variant = short(network, 3, sampler=sampler, triplets=8, batch=4)
    system, curves = fit(prepared, variant, 0, 1, tmp_path / "c.safetensors")
    assert all(value.isfinite().all() for value in system.state_dict().values())
    assert not np.isinf(curves).any(axis=None)
    assert (curves[[name for name in TRIPLET_LOSSES if name in curves]].fillna(0) == 0).all(axis=None)
