"""Training: it learns what it should, repeats bit by bit, and takes up exactly where it was cut off."""

import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from m3lib import batches, losses, metrics, models, retrieval, schedule, training
from m3lib.config import Stage, Variant
from m3lib.errors import InputError
from m3lib.manifest import Prepared
from m3lib.samplers import Batch
from m3lib.schedule import Plan
from m3lib.taxonomy import Attribute, Taxonomy
from m3lib.training import Trainer, run_fingerprint
from tiny import OWN, SETTINGS, TAXONOMY, make_prepared, make_variant, random_labels

NETWORKS = list(models.NETWORKS)
STRIPES = Taxonomy((Attribute("colour", ("red", "green", "blue")), Attribute("stripes", ("across", "down"))))
SIDE = 32


def draw_stripes(colour: int, down: bool, rng: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: bright stripes of one colour, at a random phase, in noise."""
    wave = (np.arange(SIDE) + rng.integers(8)) // 4 % 2  # (SIDE,)
    picture = rng.uniform(0, 40, (SIDE, SIDE, 3))
    picture[..., colour] += 40 + 170 * np.broadcast_to(wave if down else wave[:, None], (SIDE, SIDE))
    return picture.astype(np.uint8)


def make_stripes(seed: int = 0) -> Prepared:
    """24 pictures to train on, and the same ones as queries and candidates of validation."""
    rng, kinds = np.random.default_rng(seed), list(product(range(3), (False, True))) * 4
    images = np.stack([draw_stripes(colour, down, rng) for colour, down in kinds])
    labels = np.zeros((len(kinds), 5), bool)
    for row, (colour, down) in enumerate(kinds):
        labels[row, [colour, 3 + down]] = True
    parts = [("train", ""), ("valid", "query"), ("valid", "candidate")]
    return make_prepared(
        np.tile(labels, (3, 1)), [p for p in parts for _ in kinds], np.tile(images, (3, 1, 1, 1)), STRIPES
    )


def forget(prepared: Prepared, rows: slice, attribute: int) -> Prepared:
    """The same pictures, some of them unknown under one attribute."""
    labels = prepared.labels.copy()
    labels[rows, prepared.taxonomy.classes_of(attribute)] = False
    parts = list(zip(prepared.manifest["split"], prepared.manifest["role"], strict=True))
    return make_prepared(labels, parts, prepared.images, prepared.taxonomy)


PREPARED = make_stripes()
PARTIAL = forget(PREPARED, slice(14, 24), 1)


def short(network: str, epochs: int = 3, shares: tuple[float, ...] = (), **changes: object) -> Variant:
    """3 steps an epoch; shares: of the row's stages."""
    settings = {"batch": 8, "epochs": epochs, "lr": 0.01, "warmup": 0.1, "flip": True, "shift": 0.1}
    variant = make_variant(network, **(settings | changes))
    stages = [replace(stage, share=share) for stage, share in zip(variant.stages, shares, strict=bool(shares))]
    return replace(variant, stages=tuple(stages) or variant.stages)


def run(variant: Variant, path: Path, seed: int = 3, prepared: Prepared = PREPARED) -> tuple[models.System, list[dict]]:
    system, curves = training.fit(prepared, variant, seed, 1, path)
    return system, curves.to_dict("records")


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 100), (0, 10), (0.5, 7), (1, 10), (0.3, 1)])
def test_the_cosine_rises_to_its_peak_and_falls_to_zero(warmup, steps):
    train = replace(short("m3").train, schedule="cosine", warmup=warmup, lr=0.5)
    rates = [schedule.learning_rate(step, steps, train, 3) for step in range(steps + 1)]
    peak = max(1, round(warmup * steps)) - 1
    assert rates[: peak + 1] == pytest.approx([0.5 * (k + 1) / (peak + 1) for k in range(peak + 1)])
    assert max(rates) == rates[peak] == 0.5
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))
    if peak + 1 < steps:
        assert rates[steps] == pytest.approx(0)
        assert schedule.learning_rate((peak + 1 + steps) / 2, steps, train, 3) == pytest.approx(0.25)


@pytest.mark.parametrize(("step_epochs", "factor"), [(1, 0.985), (3, 0.9), (2, 1.0)])
def test_the_step_schedule_falls_after_every_few_epochs(step_epochs, factor):
    train = replace(short("m3").train, schedule="step", step_epochs=step_epochs, step_factor=factor, lr=0.5, warmup=1)
    rates = [schedule.learning_rate(step, 7 * 4, train, 4) for step in range(7 * 4)]
    expected = []
    rate = 0.5
    for epoch in range(7):
        if epoch and epoch % step_epochs == 0:
            rate *= factor
        expected += [rate] * 4
    assert rates == pytest.approx(expected)


PLANS = [  # (share, restart) of the stages, epochs; the stage of every epoch, and the schedules
    ([(1.0, False)], 4, [0] * 4, [(0, 4)]),
    ([(1.0, True)], 4, [0] * 4, [(0, 4)]),
    ([(0.4, False), (0.3, False), (0.3, False)], 4, [0, 0, 1, 2], [(0, 4)]),
    ([(0.4, False), (0.3, False), (0.3, False)], 8, [0] * 3 + [1] * 3 + [2] * 2, [(0, 8)]),
    ([(0.4, False), (0.3, False), (0.3, False)], 50, [0] * 20 + [1] * 15 + [2] * 15, [(0, 50)]),
    ([(0.5, False), (0.25, True)], 4, [0, 0, 1], [(0, 2), (2, 3)]),
    ([(1.0, False), (0.5, True)], 4, [0] * 4 + [1] * 2, [(0, 4), (4, 6)]),
    ([(1.0, False), (0.4, True)], 50, [0] * 50 + [1] * 20, [(0, 50), (50, 70)]),
    ([(0.5, False), (0.5, True), (0.5, False)], 4, [0, 0, 1, 1, 2, 2], [(0, 2), (2, 6)]),
    ([(0.5, False), (0.25, True), (0.25, True)], 4, [0, 0, 1, 2], [(0, 2), (2, 3), (3, 4)]),
    ([(0.01, False), (1.0, True)], 3, [0, 1, 1], [(0, 1), (1, 3)]),  # no stage is shorter than an epoch
    ([(1.0, False), (0.1, True)], 3, [0] * 3 + [1], [(0, 3), (3, 4)]),
]


def staged(*stages: tuple[float, bool], epochs: int, **changes: object) -> Variant:
    base = short("m3", epochs, **changes)
    made = [Stage(share, restart, 1.0, replace(base.loss), base.train) for share, restart in stages]
    return replace(base, stages=tuple(made))


@pytest.mark.parametrize(("stages", "epochs", "numbers", "schedules"), PLANS)
def test_a_plan_gives_each_epoch_its_stage_and_schedule(stages, epochs, numbers, schedules):
    variant = staged(*stages, epochs=epochs)
    plan = Plan(variant)
    assert plan.epochs == len(numbers)
    found = [plan.stage(epoch) for epoch in range(plan.epochs)]
    assert [next(k for k, stage in enumerate(variant.stages) if stage is own) for own in found] == numbers
    expected = [(first, last) for first, last in schedules for _ in range(first, last)]
    assert [plan.schedule(epoch) for epoch in range(plan.epochs)] == expected


@pytest.mark.parametrize("name", SETTINGS.variants)
def test_the_rows_of_the_comparison_share_one_budget(name):
    """Passes through a backbone; ASEN++'s second stage makes two of them an epoch."""
    plan = Plan(SETTINGS.variant(name))
    stages = [plan.stage(epoch) for epoch in range(plan.epochs)]
    assert sum(2 if stage.loss.local else 1 for stage in stages) == SETTINGS.train.epochs


def rates(trainer: Trainer) -> dict[bool, list[float]]:
    """The learning rates of all steps, of the global (True) and the local parameters."""
    found: dict[bool, list[float]] = {}
    for epoch, number in product(range(trainer.plan.epochs), range(trainer.steps_per_epoch)):
        trainer.set_learning_rate(epoch, number)
        for group in trainer.optimizer.param_groups:
            found.setdefault(group["global"], []).append(group["lr"])
    return found


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_global_lr_slows_all_but_the_local_branch_and_restart_begins_the_schedule_anew(schedule):
    variant = short("asen_pp", 4, (1.0, 0.5), schedule=schedule, step_epochs=1, step_factor=0.5, warmup=0.25)
    found = rates(Trainer(PREPARED, variant, 0, 1))

    def expected(epochs: int) -> list[float]:
        if schedule == "step":
            return [0.01 * 0.5**epoch for epoch in range(epochs) for _ in range(3)]
        steps = 3 * epochs
        warm = round(0.25 * steps)
        fall = [0.01 * np.cos(np.pi / 2 * k / (steps - warm)) ** 2 for k in range(steps - warm)]
        return [0.01 * (k + 1) / warm for k in range(warm)] + fall

    assert found[False] == pytest.approx(expected(4) + expected(2))
    assert found[True] == pytest.approx(expected(4) + [0.1 * rate for rate in expected(2)])


def test_a_stage_may_have_a_schedule_of_its_own():
    """As published for ASEN++: times 0.9 after every third epoch, then after every epoch, from the top again."""
    variant = short("asen_pp", 5, (1.0, 0.6), schedule="step", step_epochs=3, step_factor=0.9)
    own = replace(variant.stages[1], train=replace(variant.stages[1].train, step_epochs=1, lr=0.02))
    found = rates(Trainer(PREPARED, replace(variant, stages=(variant.stages[0], own)), 0, 1))[False]
    expected = [0.01, 0.01, 0.01, 0.009, 0.009, 0.02, 0.018, 0.0162]
    assert found == pytest.approx([rate for rate in expected for _ in range(3)])


@pytest.mark.parametrize("network", NETWORKS)
def test_every_parameter_is_in_one_group_and_the_local_branchs_in_their_own(network):
    trainer = Trainer(PREPARED, short(network), 0, 1)
    groups = {group["global"]: {id(p) for p in group["params"]} for group in trainer.optimizer.param_groups}
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(
        list(trainer.system.parameters())
    )
    for name, parameter in trainer.system.named_parameters():
        assert (id(parameter) in groups[True]) != name.startswith("local_")
    assert (False in groups) == (network == "asen_pp")


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_the_optimizer_is_the_one_asked_for(name, kind):
    optimizer = Trainer(PREPARED, short("asen_pp", optimizer=name, weight_decay=0.25), 0, 1).optimizer
    assert type(optimizer) is kind
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25] * 2


def weights(system: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in system.named_parameters()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("global_lr", [0.1, 0.0])
def test_the_local_branch_waits_for_its_stage(global_lr):
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
LEARNED = [(network, None, {}) for network in NETWORKS]
LEARNED += [(network, "posterior", {"loss": {"classification": 1.0}}) for network in ASEN_FAMILY]
RELEASED = {"optimizer": "adam", "schedule": "step", "step_factor": 0.95, "batch": 8, "triplets": 16}
LEARNED += [("asen_v2", None, RELEASED | {"sampler": sampler}) for sampler in ("asen", "asen_pp")]
LEARNED += [("m3", None, {"sampler": "checked", "batch": 8, "triplets": 8})]


@pytest.mark.parametrize(("network", "score", "changes"), LEARNED)
def test_each_network_learns_24_pictures_by_heart(network, score, changes, tmp_path):
    """By its row's score, and once Loss 1 is on, by the class probabilities; so do the samplers as released."""
    settings = {"batch": 24, "shift": 0.0, "class_embedding": 16, "hidden": 16, "embedding": 16, "local_hidden": 16}
    variant = short(network, 40, **(settings | changes))
    system, curves = run(variant, tmp_path / "c.safetensors")
    embeddings = training.embed(system, PREPARED, PREPARED.rows("valid"), "fp32")
    scores = retrieval.evaluate(PREPARED, "valid", variant.score, embeddings)
    reached = metrics.summarise(scores)["map_all"]
    assert reached["overall_by_query"] == pytest.approx(max(record["valid_map_all"] for record in curves))
    assert min(reached["attributes"].values()) > 0.95
    if score:
        scores = retrieval.evaluate(PREPARED, "valid", score, embeddings)
        assert min(metrics.summarise(scores)["map_all"]["attributes"].values()) > 0.95


@pytest.mark.parametrize("network", ASEN_FAMILY)
def test_loss_1_gives_the_asen_family_class_probabilities(network):
    rows = PREPARED.rows("valid")[:4]
    for weight in (0.0, 1.0):
        variant = short(network, loss={"classification": weight})
        found = training.embed(Trainer(PREPARED, variant, 0, 1).system, PREPARED, rows, "fp32")
        assert (found.posterior is not None) == (weight > 0 or network == "modc")
        if found.posterior is not None:
            sums = [found.posterior[:, STRIPES.classes_of(n)].float().sum(dim=1) for n in (0, 1)]
            torch.testing.assert_close(torch.stack(sums), torch.ones(2, 4), rtol=0, atol=2e-3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[models.System, list[dict]]:
    return run(short("m3"), tmp_path_factory.mktemp("run") / "c.safetensors")


def test_the_same_seed_gives_the_same_weights(undisturbed, tmp_path):
    torch.rand(7)  # a global generator elsewhere must not matter
    system, curves = run(short("m3"), tmp_path / "c.safetensors")
    assert same(system, undisturbed[0])
    assert curves == undisturbed[1]


def test_another_seed_gives_other_weights(undisturbed, tmp_path):
    assert not same(run(short("m3"), tmp_path / "c.safetensors", seed=4)[0], undisturbed[0])


@pytest.mark.parametrize("steps", [2, 3, 7])
def test_an_interrupted_run_ends_as_the_undisturbed_one(undisturbed, steps, tmp_path, monkeypatch):
    """3 steps an epoch: cut in the first (nothing saved), just at the end of the first, and in the third."""
    path, update = tmp_path / "c.safetensors", tqdm.update
    done = []

    def cut(bar: tqdm, n: int = 1) -> None:
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(n)
        update(bar, n)

    with monkeypatch.context() as patch:
        patch.setattr(tqdm, "update", cut)
        with pytest.raises(KeyboardInterrupt):
            run(short("m3"), path)
    assert path.exists() == (steps >= 3)
    system, curves = run(short("m3"), path)
    assert same(system, undisturbed[0])
    assert curves == undisturbed[1]


# Of several stages, so that a run is cut before, at and inside each border. Pseudo-labels join in MODC's third stage.
STAGED = {
    "modc": short("modc", 5, (0.4, 0.2, 0.4), loss={"pseudo_margin": 0.0}),
    "asen_pp": short("asen_pp", 4, (0.5, 0.5)),
    "asen_pp with triplets": short(
        "asen_pp", 4, (0.5, 0.5), sampler="asen_pp", triplets=24, loss={"classification": 1.0}
    ),
    "modc with triplets": short(
        "modc", 5, (0.4, 0.2, 0.4), sampler="checked", triplets=24, loss={"pseudo_margin": 0.0}
    ),
}


@pytest.mark.parametrize("name", list(STAGED))
def test_a_run_killed_after_any_epoch_ends_as_the_undisturbed_one(name, tmp_path, monkeypatch):
    variant, path, kept = STAGED[name], tmp_path / "c.safetensors", []
    save, refresh, guessed = Trainer.save, Trainer.refresh_centers, []

    def keep(trainer: Trainer, given: Path, fingerprint: str) -> None:
        save(trainer, given, fingerprint)
        kept.append(shutil.copy(given, tmp_path / f"{len(kept)}.safetensors"))

    def spy(trainer: Trainer, loss) -> torch.Tensor | None:
        pseudo = refresh(trainer, loss)
        guessed.append(pseudo is not None and bool(pseudo.any()))
        return pseudo

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", keep)
        patch.setattr(Trainer, "refresh_centers", spy)
        whole, curves = run(variant, path, prepared=PARTIAL)
    assert len(kept) == len(curves) == Plan(variant).epochs
    assert guessed == [variant.network == "modc" and epoch >= 3 for epoch in range(len(kept))]
    final = load_file(kept[-1])
    for copy in kept[:-1]:
        shutil.copy(copy, path)
        system, found = run(variant, path, prepared=PARTIAL)
        assert same(system, whole)
        pd.testing.assert_frame_equal(pd.DataFrame(found), pd.DataFrame(curves), check_exact=True)
        again = load_file(path)
        assert again.keys() == final.keys()
        assert all(torch.equal(value, again[key]) for key, value in final.items())


@pytest.mark.parametrize("network", NETWORKS)
def test_a_checkpoint_holds_all_that_a_trainer_holds(network, tmp_path):
    variant, path = short(network), tmp_path / "c.safetensors"
    first = Trainer(PREPARED, variant, 0, 1)
    first.run_epoch(tqdm(disable=True))
    first.save(path, "print")
    second = Trainer(PREPARED, variant, 5, 1)  # other first weights
    assert second.resume(path, "print")
    assert same(first.system, second.system)
    assert first.history == second.history
    assert all(torch.equal(value, second.best[name]) for name, value in first.best.items())
    states = first.optimizer.state_dict()["state"], second.optimizer.state_dict()["state"]
    assert states[0].keys() == states[1].keys()
    for number, state in states[0].items():
        assert all(torch.equal(value, states[1][number][name]) for name, value in state.items())


def checkpoint(path: Path, variant: Variant, seed: int = 0) -> str:
    trainer = Trainer(PREPARED, variant, seed, 1)
    trainer.run_epoch(tqdm(disable=True))
    fingerprint = run_fingerprint(PREPARED, variant, seed, 1)
    trainer.save(path, fingerprint)
    return fingerprint


def left_aside(path: Path, fingerprint: str, network: str = "m3") -> bool:
    """Whether a trainer does not take it up, and is as new."""
    trainer = Trainer(PREPARED, short(network), 0, 1)
    taken = trainer.resume(path, fingerprint)
    return not taken and not trainer.history and same(trainer.system, Trainer(PREPARED, short(network), 0, 1).system)


def test_a_checkpoint_of_other_settings_or_of_another_system_is_left_aside(tmp_path):
    own = run_fingerprint(PREPARED, short("m3"), 0, 1)
    for number, other in enumerate([short("m3", lr=0.02), short("m3_c"), short("classifier")]):
        checkpoint(tmp_path / f"{number}.safetensors", other)
        assert left_aside(tmp_path / f"{number}.safetensors", own)


@pytest.mark.parametrize("spoil", ["missing", "empty", "cut", "text", "turned"])
def test_a_spoilt_checkpoint_is_left_aside(tmp_path, spoil):
    path = tmp_path / "c.safetensors"
    fingerprint = checkpoint(path, short("m3"))
    content = path.read_bytes()
    path.unlink()
    spoilt = {"empty": b"", "cut": content[:-100], "text": b"no checkpoint", "turned": content[::-1]}
    if spoil != "missing":
        path.write_bytes(spoilt[spoil])
    assert left_aside(path, fingerprint)


def test_the_fingerprint_tells_runs_apart():
    labels = PREPARED.labels.copy()
    labels[0, :3] = np.roll(labels[0, :3], 1)
    relabelled = make_prepared(labels, list(zip(PREPARED.manifest["split"], PREPARED.manifest["role"], strict=True)))
    relabelled = replace(relabelled, images=PREPARED.images, taxonomy=STRIPES)
    renamed = replace(PREPARED, manifest=PREPARED.manifest.assign(image=PREPARED.manifest["image"] + "x"))
    runs = [(PREPARED, short("m3"), 0, 1), (PREPARED, short("m3"), 1, 1), (PREPARED, short("m3"), 0, 2)]
    runs += [(PREPARED, short("m3", lr=0.1), 0, 1), (PREPARED, short("m3_c"), 0, 1)]
    runs += [(relabelled, short("m3"), 0, 1), (renamed, short("m3"), 0, 1)]
    runs += [(PREPARED, short("modc"), 0, 1), (PREPARED, short("modc", shares=(0.4, 0.4, 0.2)), 0, 1)]
    runs += [(PREPARED, short("m3", held_out=["colour: red"]), 0, 1)]
    prints = [run_fingerprint(*given) for given in runs]
    assert len(set(prints)) == len(prints)
    assert prints == [run_fingerprint(*given) for given in runs]


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    checkpoint(path, short("classifier"))
    before = path.read_bytes()

    def half(tensors: dict, partial: Path, metadata: dict) -> None:
        Path(partial).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(training, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        checkpoint(path, short("classifier"))
    assert path.read_bytes() == before


def spoil(monkeypatch: pytest.MonkeyPatch, step: int, name: str, value: float) -> None:
    """Make one loss of one step (counted from 1 over all epochs) not finite."""
    total_loss, calls = training.total_loss, []

    def spoilt(*given: object) -> dict:
        calls.append(given)
        parts = total_loss(*given)
        return parts | {name: parts[name] * value} if len(calls) == step else parts

    monkeypatch.setattr(training, "total_loss", spoilt)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["classification", "cluster"])
def test_a_loss_that_is_not_finite_stops_before_any_weight_moves(name, value, monkeypatch):
    trainer = Trainer(PREPARED, short("m3"), 0, 1)
    spoil(monkeypatch, 1, name, value)
    before = weights(trainer.system)
    with pytest.raises(InputError, match=rf"m3, epoch 1, step 1: .*{name} (nan|inf).*; lower train\.lr") as error:
        trainer.run_epoch(tqdm(disable=True))
    assert "\n" not in str(error.value)
    assert not moved(before, weights(trainer.system))
    assert not trainer.optimizer.state
    assert not trainer.system.centers.seen.any()


def test_after_a_loss_that_is_not_finite_the_last_good_epoch_can_be_taken_up(undisturbed, tmp_path, monkeypatch):
    path, saved = tmp_path / "c.safetensors", []
    save = Trainer.save

    def keep(trainer: Trainer, *given: object) -> None:
        save(trainer, *given)
        saved.append(path.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", keep)
        spoil(patch, 5, "instance", float("nan"))  # 3 steps an epoch
        with pytest.raises(InputError, match=r"m3, epoch 2, step 2: .*instance nan"):
            run(short("m3"), path)
    assert saved == [path.read_bytes()]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    system, curves = run(short("m3"), path)
    assert same(system, undisturbed[0])
    assert curves == undisturbed[1]


@pytest.mark.parametrize("network", ["classifier", "asen", "asen_pp", "modc", "m3"])
def test_embed_covers_the_rows_in_order_and_equals_a_forward_pass(network, monkeypatch):
    monkeypatch.setattr(training, "EMBED_BATCH", 5)
    variant = short(network)
    system = Trainer(PREPARED, variant, 0, 1).system
    for stage in variant.stages:
        system.enter_stage(stage.loss)
    rows = np.array([0, 3, 4, 10, 11, 12, 30, 31, 50, 70, 71])
    found = training.embed(system, PREPARED, rows, "fp32")
    assert found.rows.tolist() == rows.tolist()
    with torch.no_grad():
        outputs = system.eval()(batches.to_tensor(PREPARED.images[rows]))
    for got, expected in zip(
        vars(found).values(),
        (found.rows, system.stored_attribute(outputs), system.posterior(outputs), outputs.classes),
        strict=True,
    ):
        assert (got is None) == (expected is None)
        if got is not None and got is not found.rows:
            assert got.dtype == torch.float16
            torch.testing.assert_close(got.float(), expected, rtol=2e-3, atol=1e-3)


def test_embedding_changes_nothing_in_the_system():
    system = Trainer(PREPARED, short("m3"), 0, 1).system
    before = {name: value.clone() for name, value in system.state_dict().items()}
    training.embed(system, PREPARED, PREPARED.rows("valid"), "fp32")
    assert all(torch.equal(value, before[name]) for name, value in system.state_dict().items())


def test_the_trainer_learns_from_training_rows_alone(monkeypatch):
    trainer, seen = Trainer(PREPARED, short("m3"), 0, 1), []
    monkeypatch.setattr(trainer, "step", lambda batch, *_: seen.extend(trainer.rows[batch.index].tolist()) or {})
    trainer.train_epoch(tqdm(disable=True))
    assert sorted(seen) == PREPARED.rows("train").tolist()
    expected = losses.positive_weights(torch.from_numpy(PREPARED.labels[:24]), torch.tensor([0, 0, 0, 1, 1]), 0.5)
    torch.testing.assert_close(trainer.system.positive_weight, expected)


def test_every_epoch_and_every_seed_draws_anew(monkeypatch):
    seen = []
    for seed in (0, 1):
        trainer = Trainer(PREPARED, short("classifier"), seed, 1)
        monkeypatch.setattr(
            batches, "views", lambda images, generator, train: seen.append(generator.get_state()) or images
        )
        for _ in range(2):
            trainer.run_epoch(tqdm(disable=True))
    assert len({state.numpy().tobytes() for state in seen[::3]}) == 4  # of the first step of each epoch


def whole_batch(trainer: Trainer) -> Batch:
    anchors = losses.find_anchors(trainer.labels, trainer.system.attribute_of_class)
    return Batch(torch.arange(24), trainer.labels, anchors)


def test_a_step_moves_the_centers_to_the_batchs_classes():
    trainer = Trainer(PREPARED, short("m3"), 0, 1)
    trainer.set_learning_rate(0, 0)
    trainer.system.train()
    trainer.step(whole_batch(trainer), trainer.plan.stage(0), torch.Generator().manual_seed(0), None)
    centers = trainer.system.centers
    assert centers.seen.all()
    torch.testing.assert_close(centers.value.norm(dim=1), torch.ones(5))


def test_a_step_reads_the_images_of_its_batch_as_its_stage_asks(monkeypatch):
    """The rows of the training split stand anywhere in the manifest, and a stage has an augmentation of its own."""
    labels = np.tile(PREPARED.labels[:24], (2, 1))
    parts = [("valid", "query" if i % 2 else "candidate") if i < 24 else ("train", "") for i in range(48)]
    shuffled = make_prepared(labels, parts, np.concatenate([255 - PREPARED.images[:24], PREPARED.images[:24]]), STRIPES)
    variant = short("modc", 5, (0.4, 0.2, 0.4))
    trainer, seen = Trainer(shuffled, variant, 0, 1), []
    monkeypatch.setattr(batches, "views", lambda images, generator, train: seen.append((images, train)) or images)
    index = torch.tensor([3, 5, 5, 20])
    known = trainer.labels[index]
    batch = Batch(index, known, losses.find_anchors(known, trainer.system.attribute_of_class))
    for stage in variant.stages:
        trainer.step(batch, stage, torch.Generator().manual_seed(0), torch.zeros_like(known))
    assert [train for _, train in seen] == [stage.train for stage in variant.stages]
    assert all(torch.equal(images, batches.to_tensor(PREPARED.images[[3, 5, 5, 20]])) for images, _ in seen)


def test_held_out_classes_are_learned_and_looked_at_nowhere():
    trainer = Trainer(PREPARED, short("m3", held_out=["colour: red", "stripes: down"]), 0, 1)
    assert not trainer.labels[:, [0, 4]].any()
    assert torch.equal(trainer.labels[:, 1:4], torch.from_numpy(PREPARED.labels[:24, 1:4]))
    expected = losses.positive_weights(trainer.labels, torch.tensor([0, 0, 0, 1, 1]), 0.5)
    torch.testing.assert_close(trainer.system.positive_weight, expected)
    trainer.run_epoch(tqdm(disable=True))
    assert trainer.system.centers.seen.tolist() == [False, True, True, True, False]
    asked = retrieval.evaluate(trainer.prepared, "valid", "random")
    assert set(asked["colour"].class_id.tolist()) == {1, 2}


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
def test_centers_are_the_exact_means_and_guesses_are_near_and_clear(seed, monkeypatch):
    monkeypatch.setattr(training, "EMBED_BATCH", 7)
    prepared = random_photos(seed)
    trainer = Trainer(prepared, short("modc", loss={"pseudo_margin": 1e-4}), seed, 1)
    system, labels = trainer.system, prepared.labels[1:]
    system.centers.value[0] = torch.eye(16)[1]  # to be replaced
    before = {name: value.clone() for name, value in system.state_dict().items() if "centers" not in name}
    assert trainer.refresh_centers(trainer.plan.stages[0].loss) is None
    assert not system.centers.seen.any()
    assert trainer.refresh_centers(trainer.variant.stages[1].loss) is None
    pseudo = trainer.refresh_centers(trainer.variant.stages[2].loss)
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


@pytest.mark.parametrize("name", [name for name in SETTINGS.systems if name.startswith("published_")])
def test_the_published_settings_train_with_their_own_sampler_optimiser_and_schedule(name, tmp_path):
    tiny = {"epochs": 3, "triplets": 8, "batch": 4}
    variant = make_variant(name, **tiny)
    system, curves = run(variant, tmp_path / "c.safetensors")
    assert variant.train.sampler in ("asen", "asen_pp", "checked")
    assert (variant.train.optimizer, variant.train.schedule, variant.train.lr) == ("adam", "step", 1e-4)
    assert len(curves) == Plan(variant).epochs == (4 if name == "published_asen_pp" else 3)
    assert all(parameter.isfinite().all() for parameter in system.parameters())
