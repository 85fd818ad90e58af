"""Training: it learns what it should, repeats bit by bit, and takes up exactly where it was cut off."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

from m3lib import batches, metrics, models, retrieval, training
from m3lib.config import Variant
from m3lib.errors import InputError
from m3lib.manifest import Prepared
from m3lib.taxonomy import Attribute, Taxonomy
from m3lib.training import Trainer, run_fingerprint
from tiny import make_prepared, make_variant

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


PREPARED = make_stripes()


def short(network: str, epochs: int = 3, **changes: object) -> Variant:
    settings = {"batch": 8, "epochs": epochs, "lr": 0.01, "warmup": 0.1, "flip": True, "shift": 0.1}
    return make_variant(network, **(settings | changes))


def run(variant: Variant, path: Path, seed: int = 3) -> tuple[models.System, list[dict]]:
    system, curves = training.fit(PREPARED, variant, seed, 1, path)
    return system, curves.to_dict("records")


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 100), (0, 10), (0.5, 7), (1, 10), (0.3, 1)])
def test_learning_rate_rises_to_its_peak_and_falls_to_zero(warmup, steps):
    train = replace(short("m3").train, warmup=warmup, lr=0.5)
    rates = [training.learning_rate(step, steps, train) for step in range(steps + 1)]
    peak = max(1, round(warmup * steps)) - 1
    assert rates[: peak + 1] == pytest.approx([0.5 * (k + 1) / (peak + 1) for k in range(peak + 1)])
    assert max(rates) == rates[peak] == 0.5
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))
    if peak + 1 < steps:
        assert rates[steps] == pytest.approx(0)
        assert training.learning_rate((peak + 1 + steps) / 2, steps, train) == pytest.approx(0.25)


@pytest.mark.parametrize("network", NETWORKS)
def test_each_network_learns_24_pictures_by_heart(network, tmp_path):
    variant = short(network, epochs=40, batch=24, shift=0.0, class_embedding=16, hidden=16, embedding=16)
    system, curves = run(variant, tmp_path / "c.safetensors")
    rows = PREPARED.rows("valid")
    embeddings = training.embed(system, PREPARED, rows, "fp32")
    scores = retrieval.evaluate(PREPARED, "valid", variant.score, embeddings)
    reached = metrics.summarise(scores)["map_all"]
    assert reached["overall_by_query"] == pytest.approx(max(record["valid_map_all"] for record in curves))
    assert min(reached["attributes"].values()) > 0.95


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_any_weight_moves(value, monkeypatch):
    trainer = Trainer(PREPARED, short("m3"), 0, 1)
    total_loss = training.total_loss

    def spoilt(*given: object) -> dict:
        return {name: part * value for name, part in total_loss(*given).items()}

    monkeypatch.setattr(training, "total_loss", spoilt)
    before = {name: value.detach().clone() for name, value in trainer.system.named_parameters()}
    with pytest.raises(InputError, match=r"m3: the loss became .*; lower train\.lr"):
        trainer.run_epoch(tqdm(disable=True))
    assert all(torch.equal(value, before[name]) for name, value in trainer.system.named_parameters())
    assert not trainer.system.centers.seen.any()


@pytest.mark.parametrize("network", ["classifier", "asen", "m3"])
def test_embed_covers_the_rows_in_order_and_equals_a_forward_pass(network, monkeypatch):
    monkeypatch.setattr(training, "EMBED_BATCH", 5)
    system = Trainer(PREPARED, short(network), 0, 1).system
    rows = np.array([0, 3, 4, 10, 11, 12, 30, 31, 50, 70, 71])
    found = training.embed(system, PREPARED, rows, "fp32")
    assert found.rows.tolist() == rows.tolist()
    with torch.no_grad():
        outputs = system.eval()(batches.to_tensor(PREPARED.images[rows]))
        posterior = None if outputs.logits is None else system.posterior(outputs.logits)
    for got, expected in zip(
        vars(found).values(), (found.rows, outputs.attribute, posterior, outputs.classes), strict=True
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
    monkeypatch.setattr(trainer, "step", lambda rows, generator: seen.extend(rows.tolist()) or {})
    trainer.train_epoch(tqdm(disable=True))
    assert sorted(seen) == PREPARED.rows("train").tolist()
    expected = training.losses.positive_weights(
        torch.from_numpy(PREPARED.labels[:24]), torch.tensor([0, 0, 0, 1, 1]), 0.5
    )
    torch.testing.assert_close(trainer.system.positive_weight, expected)


def test_a_step_moves_the_centers_to_the_batchs_classes():
    trainer = Trainer(PREPARED, short("m3"), 0, 1)
    trainer.set_learning_rate(0)
    trainer.system.train()
    trainer.step(np.arange(24), torch.Generator().manual_seed(0))
    centers = trainer.system.centers
    assert centers.seen.all()
    torch.testing.assert_close(centers.value.norm(dim=1), torch.ones(5))


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
