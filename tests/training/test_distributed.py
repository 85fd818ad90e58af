"""Several processes train as one does: the same loss curve, weights and centers, each on a slice of every batch."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import safe_open
from safetensors.torch import load_file
from tqdm import tqdm

from m3lib import config
from m3lib.config import Variant
from m3lib.data import manifest, store
from m3lib.errors import InputError
from m3lib.training import augment, checkpoint, distributed
from m3lib.training import run as training
from m3lib.training.trainer import Trainer
from notebook_runs import MAX_WAIT
from stripes import PARTIAL, PREPARED, run, same, short
from tiny import MODEL, ROOT, VALUES, generator

SEED = 5  # errors of rounding stay small, as they do at this rate of learning; else one changed triplet moves a loss
FIXED_NORMS = {"trainable": "heads", "attention_batch_norm": False}  # all that processes without a GPU can train
VARIANTS = {
    "m3": short("m3", 3, lr=0.001, **FIXED_NORMS),
    "modc": short("modc", 3, (0.34, 0.33, 0.33), lr=0.001, loss={"pseudo_margin": 0.0}, **FIXED_NORMS),
    "asen_pp": short(
        "asen_pp", 2, (0.5, 0.5), lr=0.001, sampler="asen_pp", triplets=24, loss={"m3_classification": 1.0},
        **FIXED_NORMS,
    ),
}  # fmt: skip
DIES = """
import os, signal, sys
from m3lib.training import run
from m3lib.training.trainer import Trainer

save = Trainer.save

def saved_then_killed(trainer, path, fingerprint):
    save(trainer, path, fingerprint)
    if int(os.environ["RANK"]) + len(trainer.history) == 2:  # rank 1 after the first epoch, rank 0 after the second
        os.kill(os.getpid(), signal.SIGKILL)

Trainer.save = saved_then_killed
sys.exit(run.main("m3"))
"""


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
    gradient_of_two(rank, folder)
    resumed_of_two(rank, folder)
    dist.destroy_process_group()


def layer_and_rows() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A layer and rows of two processes, in float64, and weights of the rows after the gather."""
    layer = torch.nn.Linear(4, 3, bias=False).double()
    torch.nn.init.normal_(layer.weight, generator=generator(2))
    draws = generator(1)
    return layer, *(torch.randn(6, n, generator=draws, dtype=torch.float64) for n in (4, 6))


def gradient_of_two(rank: int, folder: Path) -> None:
    """Of a loss between the rows of both, which no process could compute by itself."""
    layer, x, between = layer_and_rows()
    wrapped = distributed.parallel(layer)
    rows = distributed.gather(wrapped(x[distributed.rank_slice(6)]))
    (between * (rows @ rows.T).tanh()).sum().backward()
    torch.save(layer.weight.grad, folder / f"gradient-{rank}.pt")


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


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A clone with what a training reads, small enough for epochs of less than a second."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "m3lib", folder / "m3lib")
    shutil.copy(ROOT / "dvc.yaml", folder)
    short_run = vars(VARIANTS["m3"].train) | {"epochs": 3}
    changes = {"seed": SEED, "threads": 1, "accelerator": "cpu", "variants": ["m3"]}
    values = VALUES | changes | {"model": VALUES["model"] | MODEL | FIXED_NORMS, "train": short_run}
    (folder / "params.yaml").write_text(json.dumps(values))  # YAML without aliases
    prepared = folder / "data" / "prepared"
    prepared.mkdir(parents=True)
    PARTIAL.taxonomy.save(prepared / "taxonomy.json")
    (prepared / "protocol.json").write_text('{"relevance": "pair"}')
    PARTIAL.manifest.to_parquet(prepared / "manifest.parquet")
    np.save(prepared / store.RAW, PARTIAL.images)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(config, "__file__", str(folder / "m3lib" / "config.py"))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    return folder


def fit_in(clone: Path, processes: int) -> None:
    """Train as the pipeline's stage does."""
    settings, prepared = config.load(clone / "params.yaml"), manifest.open_prepared(clone / "data" / "prepared")
    variant, path = settings.variant("m3"), clone / "data" / "work" / "m3.safetensors"
    training.fit(prepared, variant, settings.seed, settings.threads, path, "cpu", processes)


def test_a_run_goes_on_after_the_death_of_any_process(clone, tmp_path, monkeypatch):
    (clone / "dies.py").write_text(DIES)
    run_all, epochs, path = subprocess.run, [], clone / "data" / "work" / "m3.safetensors"

    def one_dies(command: list[str], **options: object) -> None:
        run_all([*command[: command.index("m3lib.training.run") - 1], "dies.py"], timeout=MAX_WAIT, **options)
        epochs.append(len(checkpoint.read_history(path, read_fingerprint(path))))

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", one_dies)
        for _ in range(2):
            with pytest.raises(InputError, match="m3: 2 processes ended before their last epoch, for the reason above"):
                fit_in(clone, 2)
    assert epochs == [1, 2]  # each went on from the epoch of the one before
    fit_in(clone, 2)
    train(config.load(clone / "params.yaml").variant("m3"), tmp_path / "one.safetensors")
    follows(path, tmp_path / "one.safetensors")


def test_two_machines_have_the_loss_curve_of_one(clone, tmp_path, monkeypatch):
    """Each runs README's command; here they are two calls in one folder, as on a disk that both can reach."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    readme = (ROOT / "README.md").read_text()
    line = next(line for line in readme.splitlines() if "--nnodes=2" in line and "srun" not in line).partition("#")[0]
    command = line.replace("HOST:29500", f"127.0.0.1:{port}").replace("--nproc-per-node=8", "--nproc-per-node=1")
    torchrun = [sys.executable, "-m", "torch.distributed.run", *command.split()[1:]]
    machines = [subprocess.Popen(torchrun, env=os.environ | {"OMP_NUM_THREADS": "1"}) for _ in range(2)]
    assert [machine.wait(MAX_WAIT) for machine in machines] == [0, 0]
    monkeypatch.setattr(subprocess, "run", None)  # nothing is left to train
    fit_in(clone, 1)
    train(config.load(clone / "params.yaml").variant("m3"), tmp_path / "one.safetensors")
    follows(clone / "data" / "work" / "m3.safetensors", tmp_path / "one.safetensors")


def read_fingerprint(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        return file.metadata()["fingerprint"]


def test_the_gradient_of_several_processes_is_that_of_one(met):
    layer, x, between = layer_and_rows()
    rows = layer(x)
    (between * (rows @ rows.T).tanh()).sum().backward()
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(met / f"gradient-{rank}.pt"), layer.weight.grad)


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


def test_trained_norms_without_a_gpu_and_an_indivisible_batch_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(InputError, match=r"without a GPU can't share the batch norms .* set devices to 1, or model"):
        Trainer(PREPARED, short("m3"), 0, 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(InputError, match=r"train\.batch 8 can't be shared by 3 processes: set it to a multiple"):
        Trainer(PREPARED, short("m3"), 0, 1)


def test_a_process_that_torchrun_did_not_start_is_told(monkeypatch, capsys):
    monkeypatch.setattr(config, "load", lambda path: config.parse(VALUES))
    monkeypatch.setattr(manifest, "open_prepared", lambda folder: PREPARED)
    assert training.main("m3") == 1
    assert "which torchrun starts: torchrun --standalone" in capsys.readouterr().err


def test_machines_with_different_fingerprints_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "all_equal", lambda own: False)
    with pytest.raises(InputError, match=r"^m3: the machines differ in params\.yaml, start weights, data/prepared"):
        training.fit(PREPARED, short("m3"), 3, 1, tmp_path / "c.safetensors")


def test_more_processes_than_devices_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"devices: 3 requested, but this machine has 2 GPUs$"):
        training.fit(PREPARED, short("m3"), 3, 1, tmp_path / "c.safetensors", "auto", 3)
    with pytest.raises(InputError, match=r"devices: 999 requested, but this machine has \d+ CPU cores$"):
        training.fit(PREPARED, short("m3"), 3, 1, tmp_path / "c.safetensors", "cpu", 999)


def test_fit_starts_its_processes_and_continues_from_their_checkpoint(tmp_path, monkeypatch):
    """And starts none where they have been, on other machines say; a run that they did not end is told."""
    path, commands, variant = tmp_path / "c.safetensors", [], short("m3")
    whole, curves = run(variant, tmp_path / "alone.safetensors")

    def launched(command: list[str], **_: object) -> subprocess.CompletedProcess:
        commands.append(command)
        trainer = Trainer(PREPARED, variant, 3, 1)
        for _ in range(3):
            trainer.run_epoch(tqdm(disable=True))
            trainer.save(path, checkpoint.run_fingerprint(PREPARED, variant, 3, 1, "cpu"))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(InputError, match="m3: 2 processes ended before their last epoch, for the reason above"):
        training.fit(PREPARED, variant, 3, 1, path, "cpu", 2)
    monkeypatch.setattr(subprocess, "run", launched)
    for _ in range(2):
        system, found = training.fit(PREPARED, variant, 3, 1, path, "cpu", 2)
        assert same(system, whole)
        assert found.to_dict("records") == curves
    (command,) = commands
    assert command[0] == sys.executable
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node=2"
    assert " ".join(command[1:]) == f"{torchrun} -m m3lib.training.run m3"
