"""Several processes train as one does: the same loss curve, weights and centers, each on a slice of every batch."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from m3lib import config
from m3lib.config import Machines, Variant
from m3lib.data import manifest, store
from m3lib.errors import InputError
from m3lib.training import augment, checkpoint, distributed
from m3lib.training import run as training
from m3lib.training.trainer import Trainer
from notebook_runs import MAX_WAIT
from stripes import PARTIAL, PREPARED, run, same, short
from tiny import MODEL, ROOT, VALUES, generator

TWO = Machines(2, 1, "")
SEED = 5  # errors of rounding stay small, as they do at this rate of learning; else one changed triplet moves a loss
VARIANTS = {
    "m3": short("m3", 3, lr=0.001),
    "modc": short("modc", 3, (0.34, 0.33, 0.33), lr=0.001, loss={"pseudo_margin": 0.0}),
    "asen_pp": short(
        "asen_pp", 2, (0.5, 0.5), lr=0.001, sampler="asen_pp", triplets=24, loss={"m3_classification": 1.0}
    ),
}


def train(variant: Variant, path: Path) -> list[int]:
    """Train all epochs, write a checkpoint, and return how many images each step read."""
    trainer, sizes = Trainer(PARTIAL, variant, SEED, 1), []
    read = trainer.read

    def spy(*arguments: object) -> torch.Tensor:
        pixels = read(*arguments)
        sizes.append(len(pixels))
        return pixels

    trainer.read = spy
    for _ in range(trainer.schedule.epochs):
        trainer.run_epoch(tqdm(disable=True))
        trainer.save(path, json.dumps(trainer.history))
    return sizes


def meet(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for name, variant in VARIANTS.items():
        sizes = train(variant, folder / f"{name}.safetensors")
        (folder / f"{name}-{rank}.json").write_text(json.dumps(sizes))
    norm_of_two(rank, folder)
    resumed_of_two(rank, folder)
    dist.destroy_process_group()


def norm_of_two(rank: int, folder: Path) -> None:
    model, x = make_norm(), torch.randn(6, 5, 3, 2, generator=generator(1), dtype=torch.float64) + 3
    distributed.convert_batch_norms(model)
    own = x[distributed.rank_slice(6)].clone().requires_grad_()
    model(own).pow(3).mul(weights_of(x)[distributed.rank_slice(6)]).sum().backward()
    torch.save((own.grad, model.state_dict()), folder / f"norm-{rank}.pt")


def make_norm() -> nn.Sequential:
    model = nn.Sequential(nn.BatchNorm2d(5)).double()
    nn.init.normal_(model[0].weight, generator=generator(2))
    return model


def weights_of(x: torch.Tensor) -> torch.Tensor:
    return torch.randn(x.shape, generator=generator(3), dtype=x.dtype)


def resumed_of_two(rank: int, folder: Path) -> None:
    """The second process is on a machine without the checkpoint."""
    path = folder / f"m3{'-is-elsewhere' * rank}.safetensors"
    trainer = Trainer(PARTIAL, VARIANTS["m3"], 5, 1)
    assert not trainer.resume(path, "another run's")
    assert trainer.resume(path, read_fingerprint(folder / "m3.safetensors") if rank == 0 else "")
    trainer.save(folder / f"resumed-{rank}.safetensors", "print")
    states = trainer.optimizer.state_dict()["state"]
    torch.save((trainer.history, trainer.system.state_dict(), states), folder / f"resumed-{rank}.pt")
    assert distributed.all_equal("as the other")
    assert not distributed.all_equal(f"one of {rank}")


@pytest.fixture(scope="module")
def met(tmp_path_factory) -> Path:
    """Run two processes and return the folder of their results."""
    folder = tmp_path_factory.mktemp("two")
    mp.set_forkserver_preload(["m3lib.training.trainer", "timm"])  # imported once for both
    mp.start_processes(meet, (folder,), nprocs=2, start_method="forkserver")
    return folder


@pytest.mark.parametrize("name", list(VARIANTS))
def test_two_processes_have_the_loss_curve_of_one(name, met, tmp_path):
    """Random draws, triplets across the two shares, statistics, centers and pseudo-labels are those of one process."""
    sizes = train(VARIANTS[name], tmp_path / "one.safetensors")
    follows(met / f"{name}.safetensors", tmp_path / "one.safetensors")
    for rank in (0, 1):
        assert json.loads((met / f"{name}-{rank}.json").read_text()) == [size // 2 for size in sizes]


def follows(together: Path, alone: Path) -> None:
    """Whether one checkpoint has the loss curve and the weights of the other, but for rounding."""
    curves = [checkpoint.read_history(path, read_fingerprint(path)) for path in (together, alone)]
    assert len(curves[0]) == len(curves[1]) > 1
    for two, one in zip(*curves, strict=True):
        level = one.pop("valid_map_all")  # a ranking jumps where scores are nearly equal
        assert two.pop("valid_map_all") == pytest.approx(level, abs=0.01)
        assert two == pytest.approx(one, rel=1e-4, abs=1e-4)
    two, one = load_file(together), load_file(alone)
    assert one.keys() == two.keys()
    for key in one:
        if key.startswith("system."):
            torch.testing.assert_close(two[key], one[key], rtol=1e-2, atol=2e-3)


def test_both_processes_resume_from_the_main_ones_checkpoint(met):
    kept = load_file(met / "m3.safetensors")
    for history, system, states in (torch.load(met / f"resumed-{rank}.pt") for rank in (0, 1)):
        assert history == checkpoint.read_history(met / "m3.safetensors", read_fingerprint(met / "m3.safetensors"))
        for prefix, values in [("system", system), *((f"optimizer.{n}", state) for n, state in states.items())]:
            assert all(torch.equal(value, kept[f"{prefix}.{name}"]) for name, value in values.items())
    assert not (met / "resumed-1.safetensors").exists()


def machine(folder: Path, rendezvous: str) -> Path:
    """A clone with what a training reads, as each machine has it: one process, in batches of 8 by two of them."""
    shutil.copytree(ROOT / "m3lib", folder / "m3lib")
    shutil.copy(ROOT / "dvc.yaml", folder)
    short_run = vars(VARIANTS["m3"].train) | {"epochs": 2}
    changes = {
        "seed": SEED,
        "threads": 1,
        "accelerator": "cpu",
        "nodes": 2,
        "rendezvous": rendezvous,
        "variants": ["m3"],
    }
    values = VALUES | changes | {"model": VALUES["model"] | MODEL, "train": short_run}
    (folder / "params.yaml").write_text(json.dumps(values))  # YAML without aliases
    prepared = folder / "data" / "prepared"
    prepared.mkdir(parents=True)
    PARTIAL.taxonomy.save(prepared / "taxonomy.json")
    (prepared / "protocol.json").write_text('{"relevance": "pair"}')
    PARTIAL.manifest.to_parquet(prepared / "manifest.parquet")
    np.save(prepared / store.RAW, PARTIAL.images)
    return folder


def test_two_machines_have_the_loss_curve_of_one(tmp_path, monkeypatch, capfd):
    """Here they are two folders; the second one runs the command that the first one prints."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        rendezvous = f"127.0.0.1:{free.getsockname()[1]}"
    first, second = (machine(tmp_path / name, rendezvous) for name in ("first", "second"))
    run_first = subprocess.run

    def run_both(command: list[str], **options: object) -> None:
        others = "N from 1 to 1: python " + " ".join(command[1:]).replace("--node-rank=0", "--node-rank=N")
        assert others in capfd.readouterr().err
        other = subprocess.Popen([word.replace("=0", "=1") for word in command], cwd=second, start_new_session=True)
        try:
            run_first(command, **options)
            assert other.wait(MAX_WAIT) == 0
        finally:
            if other.poll() is None:
                os.killpg(other.pid, signal.SIGKILL)

    monkeypatch.setattr(subprocess, "run", run_both)
    monkeypatch.chdir(first)
    monkeypatch.setattr(config, "__file__", str(first / "m3lib" / "config.py"))
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=MAX_WAIT))
    settings, prepared = config.load(first / "params.yaml"), manifest.open_prepared(first / "data" / "prepared")
    variant, path = settings.variant("m3"), first / "data" / "work" / "m3.safetensors"
    training.fit(prepared, variant, settings.seed, settings.threads, path, "cpu", settings.machines)
    train(variant, tmp_path / "one.safetensors")
    follows(path, tmp_path / "one.safetensors")
    assert not list(second.rglob("*.safetensors"))


def read_fingerprint(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        return file.metadata()["fingerprint"]


def test_a_synchronised_batch_norm_has_the_statistics_of_all_rows(met):
    model, x = make_norm(), torch.randn(6, 5, 3, 2, generator=generator(1), dtype=torch.float64) + 3
    x.requires_grad_()
    model(x).pow(3).mul(weights_of(x)).sum().backward()
    parts = [torch.load(met / f"norm-{rank}.pt") for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([grad for grad, _ in parts]), x.grad)
    for _, state in parts:
        assert state.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(state[name], value)


@pytest.mark.parametrize("changes", [{}, {"crop": 0.5}, {"crop": 0.5, "jitter": 0.2}])
def test_augmentation_does_not_depend_on_the_slice_of_a_batch(changes):
    settings, mirrored = replace(short("m3").train, shift=0.2, **changes), torch.arange(6) % 2 == 0
    images = torch.randn(6, 3, 10, 8, generator=generator(1))
    whole = augment.augment(images, mirrored, generator(2), settings)
    for part in (slice(0, 3), slice(3, 6), slice(1, 5)):
        own = augment.augment(images[part], mirrored[part], generator(2), settings, (6, part))
        assert torch.allclose(own, whole[part])


def test_rank_slices_cover_all_rows(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    for size, processes in [(8, 2), (9, 4), (2, 3), (0, 2), (7, 7)]:
        monkeypatch.setattr(dist, "get_world_size", lambda processes=processes: processes)
        parts = []
        for rank in range(processes):
            monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
            parts += list(range(size))[distributed.rank_slice(size)]
        assert parts == list(range(size))


def test_a_norm_that_can_not_be_synchronised_and_an_indivisible_batch_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(InputError, match=r"BatchNorm3d of this backbone can't be shared; set devices and nodes to 1"):
        distributed.convert_batch_norms(nn.Sequential(nn.BatchNorm3d(4)))
    with pytest.raises(InputError, match=r"train\.batch 8 can't be shared by 3 processes: set it to a multiple"):
        Trainer(PREPARED, short("m3"), 0, 1)


def test_machines_with_different_fingerprints_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "all_equal", lambda own: False)
    with pytest.raises(InputError, match=r"^m3: the machines differ in params\.yaml, start weights, data/prepared"):
        training.fit(PREPARED, short("m3"), 3, 1, tmp_path / "c.safetensors")


def test_more_processes_than_devices_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"devices: 3 requested, but this machine has 2 GPUs$"):
        training.fit(PREPARED, short("m3"), 3, 1, tmp_path / "c.safetensors", "auto", Machines(3, 1, ""))
    with pytest.raises(InputError, match=r"devices: 999 requested, but this machine has \d+ CPU cores$"):
        training.fit(PREPARED, short("m3"), 3, 1, tmp_path / "c.safetensors", "cpu", Machines(999, 1, ""))


def test_fit_starts_its_processes_and_continues_from_their_checkpoint(tmp_path, monkeypatch):
    """And starts none where they have been, on other machines say; a run that they did not end is told."""
    path, commands, variant = tmp_path / "c.safetensors", [], short("m3")
    whole, curves = run(variant, tmp_path / "alone.safetensors")

    def launched(command: list[str], **_: object) -> subprocess.CompletedProcess:
        commands.append(command)
        trainer = Trainer(PREPARED, variant, 3, 1)
        for _ in range(3):
            trainer.run_epoch(tqdm(disable=True))
            trainer.save(path, checkpoint.run_fingerprint(PREPARED, variant, 3, 1, "cpu", 2))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(InputError, match="m3: 2 processes ended before their last epoch, for the reason above"):
        training.fit(PREPARED, variant, 3, 1, path, "cpu", TWO)
    monkeypatch.setattr(subprocess, "run", launched)
    for _ in range(2):
        system, found = training.fit(PREPARED, variant, 3, 1, path, "cpu", TWO)
        assert same(system, whole)
        assert found.to_dict("records") == curves
    (command,) = commands
    assert command[0] == sys.executable
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node=2"
    assert " ".join(command[1:]) == f"{torchrun} -m m3lib.training.run m3"
