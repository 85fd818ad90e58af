"""Checkpoints: a run repeats bit by bit, takes up where it was cut off, stops at a loss that is no number."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from m3lib import systems
from m3lib.config import Variant
from m3lib.data import code, files
from m3lib.errors import InputError
from m3lib.systems.base import System
from m3lib.training import checkpoint
from m3lib.training import trainer as training
from m3lib.training.checkpoint import run_fingerprint
from m3lib.training.schedule import StageSchedule
from m3lib.training.trainer import Trainer
from stripes import PARTIAL, PREPARED, STRIPES, moved, run, same, short, weights
from tiny import ROOT, make_prepared

NETWORKS = list(systems.SYSTEMS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[System, list[dict]]:
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
    "asen_pp with triplets": short(
        "asen_pp", 4, (0.5, 0.5), sampler="asen_pp", triplets=24, loss={"m3_classification": 1.0}
    ),
}


@pytest.mark.parametrize("name", list(STAGED))
def test_a_run_killed_after_any_epoch_ends_with_the_same_bytes(name, tmp_path, monkeypatch):
    variant, path, kept = STAGED[name], tmp_path / "c.safetensors", []
    save, guess, guessed = Trainer.save, Trainer.guess_labels, []

    def keep(trainer: Trainer, given: Path, fingerprint: str) -> None:
        save(trainer, given, fingerprint)
        kept.append(shutil.copy(given, tmp_path / f"{len(kept)}.safetensors"))

    def spy(trainer: Trainer, margin: float) -> torch.Tensor:
        pseudo = guess(trainer, margin)
        guessed.append((len(trainer.history), bool(pseudo.any())))
        return pseudo

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", keep)
        patch.setattr(Trainer, "guess_labels", spy)
        whole, curves = run(variant, path, prepared=PARTIAL)
    assert len(kept) == len(curves) == StageSchedule(variant).epochs
    assert guessed == ([(3, True), (4, True)] if variant.network == "modc" else [])
    final = load_file(kept[-1])
    for copy in kept[:-1]:
        shutil.copy(copy, path)
        system, found = run(variant, path, prepared=PARTIAL)
        assert same(system, whole)
        pd.testing.assert_frame_equal(pd.DataFrame(found), pd.DataFrame(curves), check_exact=True)
        again = load_file(path)
        assert again.keys() == final.keys()
        assert all(torch.equal(value, again[key]) for key, value in final.items())


def write_checkpoint(path: Path, variant: Variant, seed: int = 0) -> str:
    trainer = Trainer(PREPARED, variant, seed, 1)
    trainer.run_epoch(tqdm(disable=True))
    fingerprint = run_fingerprint(PREPARED, variant, seed, 1)
    trainer.save(path, fingerprint)
    return fingerprint


def set_aside(path: Path, fingerprint: str, network: str = "m3") -> bool:
    """Return whether a trainer refuses the checkpoint and stays as it was initialised."""
    trainer = Trainer(PREPARED, short(network), 0, 1)
    resumed = trainer.resume(path, fingerprint)
    return not resumed and not trainer.history and same(trainer.system, Trainer(PREPARED, short(network), 0, 1).system)


@pytest.mark.parametrize(
    "other", [short("m3", lr=0.02), short("m3_c"), short("classifier")], ids=["lr", "m3_c", "plain"]
)
def test_a_checkpoint_of_other_settings_or_of_another_network_is_set_aside(other, tmp_path, capfd, undisturbed):
    """And the run says so, then ends as if there had been none."""
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, other)
    assert set_aside(path, run_fingerprint(PREPARED, short("m3"), 3, 1))
    capfd.readouterr()
    system, curves = run(short("m3"), path)
    sentence = "checkpoint of other settings, data or code set aside: training m3 from the start\n"
    assert capfd.readouterr().err.count(sentence) == 1
    assert same(system, undisturbed[0])
    assert curves == undisturbed[1]


def test_a_resumed_run_and_a_new_run_set_nothing_aside(tmp_path, capfd):
    variant, path = short("classifier"), tmp_path / "c.safetensors"
    write_checkpoint(path, variant, 3)
    for expected in (1, 0):
        capfd.readouterr()
        run(variant, path)
        written = capfd.readouterr().err
        assert "set aside" not in written
        assert written.count("resumed after epoch 1") == expected
        path.unlink()


@pytest.mark.parametrize("spoil", ["missing", "empty", "cut", "text", "turned"])
def test_a_damaged_checkpoint_is_set_aside(tmp_path, spoil):
    path = tmp_path / "c.safetensors"
    fingerprint = write_checkpoint(path, short("m3"))
    content = path.read_bytes()
    path.unlink()
    spoilt = {"empty": b"", "cut": content[:-100], "text": b"no checkpoint", "turned": content[::-1]}
    if spoil != "missing":
        path.write_bytes(spoilt[spoil])
    assert set_aside(path, fingerprint)


def test_different_runs_have_different_fingerprints():
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


def copied_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy m3lib, so that a test can edit it, and let fingerprints cover the copy."""
    package = shutil.copytree(ROOT / "m3lib", folder / "m3lib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "PACKAGE", package)
    return package


EDITED = [  # a module of m3lib; whether editing it sets aside a checkpoint of asen
    ("training/trainer.py", True),
    ("systems/losses.py", True),
    ("systems/asen.py", True),
    ("retrieval/ranking.py", True),  # validation after every epoch
    ("data/store.py", True),
    ("systems/m3net.py", False),
    ("figures/charts.py", False),
    ("search/index.py", False),
    ("systems/__init__.py", False),  # the registry: a line for another system
]


@pytest.mark.parametrize(("module", "counts"), EDITED)
def test_a_checkpoint_outlives_edits_of_code_that_its_training_does_not_import(module, counts, tmp_path, monkeypatch):
    package = copied_package(tmp_path, monkeypatch)
    before = run_fingerprint(PREPARED, short("asen"), 0, 1)
    assert (package / module).is_file()
    (package / module).write_text((package / module).read_text() + "# an edit\n")
    assert (run_fingerprint(PREPARED, short("asen"), 0, 1) != before) == counts


def test_a_checkpoint_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, short("classifier"))
    before = path.read_bytes()

    def half(tensors: dict, partial: Path, metadata: dict) -> None:
        Path(partial).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(path, short("classifier"))
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
@pytest.mark.parametrize("name", ["m3_classification", "m3_cluster"])
def test_a_loss_that_is_not_finite_stops_before_any_weight_moves(name, value, monkeypatch):
    trainer = Trainer(PREPARED, short("m3"), 0, 1)
    spoil(monkeypatch, 1, name, value)
    before = weights(trainer.system)
    with pytest.raises(
        InputError, match=rf"m3, epoch 1, step 1: .*{name} (nan|inf).*; lower train\.lr \(systems\.m3\.train\.lr: "
    ) as error:
        trainer.run_epoch(tqdm(disable=True))
    assert "\n" not in str(error.value)
    assert not moved(before, weights(trainer.system))
    assert not trainer.optimizer.state
    assert not trainer.system.centers.seen.any()


def test_a_run_that_does_not_fit_on_the_disk_fails_before_its_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"embeddings of m3 take [\d.]+ GB, but 0.0 GB are free in .*: free"):
        run(short("m3"), tmp_path / "c.safetensors")
    assert not list(tmp_path.iterdir())
