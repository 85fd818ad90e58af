"""Several processes train as one does: the same loss curve, weights and centers, from a share of each batch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from m3lib import batches, parallel, training
from m3lib.config import Variant
from m3lib.errors import InputError
from m3lib.samplers import Batch
from m3lib.training import Trainer
from stripes import PARTIAL, PREPARED, run, same, short
from tiny import generator

VARIANTS = {
    "m3": short("m3", 3),
    "modc": short("modc", 3, (0.34, 0.33, 0.33), loss={"pseudo_margin": 0.0}),
    "asen_pp": short("asen_pp", 2, (0.5, 0.5), sampler="asen_pp", triplets=24, loss={"classification": 1.0}),
}


def train(variant: Variant, path: Path) -> list[int]:
    """Three epochs or two; leaves a checkpoint, and tells how many pictures each step read."""
    trainer, sizes = Trainer(PARTIAL, variant, 0, 1), []
    read = trainer.read

    def spy(batch: Batch) -> torch.Tensor:
        pixels = read(batch)
        sizes.append(len(pixels))
        return pixels

    trainer.read = spy
    for _ in range(trainer.plan.epochs):
        trainer.run_epoch(tqdm(disable=True))
        trainer.save(path, json.dumps(trainer.history))
    return sizes


def meet(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for name, variant in VARIANTS.items():
        sizes = train(variant, folder / f"{name}.safetensors")
        (folder / f"{name}-{rank}.json").write_text(json.dumps(sizes))
    norm_of_two(rank, folder)
    gathered_of_two(rank, folder)
    dist.destroy_process_group()


def norm_of_two(rank: int, folder: Path) -> None:
    model, x = make_norm(), torch.randn(6, 5, 3, 2, generator=generator(1), dtype=torch.float64) + 3
    parallel.share_norms(model)
    own = x[parallel.share(6)].clone().requires_grad_()
    model(own).pow(3).mul(weights_of(x)[parallel.share(6)]).sum().backward()
    torch.save((own.grad, model.state_dict()), folder / f"norm-{rank}.pt")


def make_norm() -> nn.Sequential:
    model = nn.Sequential(nn.BatchNorm2d(5)).double()
    nn.init.normal_(model[0].weight, generator=generator(2))
    return model


def weights_of(x: torch.Tensor) -> torch.Tensor:
    return torch.randn(x.shape, generator=generator(3), dtype=x.dtype)


def gathered_of_two(rank: int, folder: Path) -> None:
    own = torch.full((2, 3), float(rank)).requires_grad_()
    whole = parallel.gather(own)
    (whole * torch.arange(4.0)[:, None]).sum().backward()
    sums = [torch.full((2,), rank + 1.0), torch.full((3, 1), rank + 5.0, dtype=torch.float64)]
    parallel.add_up(sums)
    torch.save((whole.detach(), own.grad, sums), folder / f"gathered-{rank}.pt")


@pytest.fixture(scope="module")
def met(tmp_path_factory) -> Path:
    """What two processes left."""
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(meet, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("name", list(VARIANTS))
def test_two_processes_reach_the_loss_curve_of_one(name, met, tmp_path):
    """Random draws, triplets across the two shares, statistics, centers and pseudo-labels are those of one process."""
    sizes = train(VARIANTS[name], tmp_path / "one.safetensors")
    one, two = (Trainer(PARTIAL, VARIANTS[name], 9, 1) for _ in range(2))
    found = [json.loads(read_fingerprint(path)) for path in (tmp_path / "one.safetensors", met / f"{name}.safetensors")]
    assert len(found[0]) == len(found[1]) > 1
    for alone, together in zip(*found, strict=True):
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-4)
    one, two = (load_file(path) for path in (tmp_path / "one.safetensors", met / f"{name}.safetensors"))
    assert one.keys() == two.keys()
    for key in one:
        if key.startswith("system."):
            torch.testing.assert_close(two[key], one[key], rtol=1e-2, atol=2e-3)
    for rank in (0, 1):
        assert json.loads((met / f"{name}-{rank}.json").read_text()) == [size // 2 for size in sizes]


def read_fingerprint(path: Path) -> str:
    with training.safe_open(path, framework="pt") as file:
        return file.metadata()["fingerprint"]


def test_a_shared_norm_is_the_norm_of_all_rows(met):
    model, x = make_norm(), torch.randn(6, 5, 3, 2, generator=generator(1), dtype=torch.float64) + 3
    x.requires_grad_()
    model(x).pow(3).mul(weights_of(x)).sum().backward()
    parts = [torch.load(met / f"norm-{rank}.pt") for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([grad for grad, _ in parts]), x.grad)
    for _, state in parts:
        assert state.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(state[name], value)


def test_gathering_gives_all_rows_and_each_process_its_own_gradient(met):
    for rank in (0, 1):
        whole, grad, sums = torch.load(met / f"gathered-{rank}.pt")
        assert whole[:, 0].tolist() == [0, 0, 1, 1]
        assert grad[:, 0].tolist() == [2.0 * rank, 2.0 * rank + 1]
        assert [part.flatten()[0].item() for part in sums] == [3, 11]
        assert [part.dtype for part in sums] == [torch.float32, torch.float64]


@pytest.mark.parametrize("changes", [{}, {"crop": 0.5}, {"crop": 0.5, "jitter": 0.2}])
def test_a_share_of_a_batch_is_seen_as_in_the_whole(changes):
    settings = replace(short("m3").train, flip=True, shift=0.2, **changes)
    images = torch.randn(6, 3, 10, 8, generator=generator(1))
    whole = batches.views(images, generator(2), settings)
    for part in (slice(0, 3), slice(3, 6), slice(1, 5)):
        assert torch.allclose(batches.views(images[part], generator(2), settings, batches.Share(6, part)), whole[part])


def test_shares_are_all_of_it(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    for size, processes in [(8, 2), (9, 4), (2, 3), (0, 2), (7, 7)]:
        monkeypatch.setattr(dist, "get_world_size", lambda processes=processes: processes)
        parts = []
        for rank in range(processes):
            monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
            parts += list(range(size))[parallel.share(size)]
        assert parts == list(range(size))


def test_a_norm_that_cannot_be_shared_and_a_batch_that_cannot_be_cut_are_told(monkeypatch):
    monkeypatch.setattr(parallel, "count", lambda: 3)
    with pytest.raises(InputError, match=r"BatchNorm3d of this backbone can't be shared; set devices to 1"):
        parallel.share_norms(nn.Sequential(nn.BatchNorm3d(4)))
    with pytest.raises(InputError, match=r"train\.batch 8 can't be shared by 3 processes: set it to a multiple"):
        Trainer(PREPARED, short("m3"), 0, 1)


def test_more_devices_than_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"devices: 3 were asked for, and this machine has 2 GPUs$"):
        training.fit(PREPARED, short("m3"), 3, 1, tmp_path / "c.safetensors", "auto", 3)
    with pytest.raises(InputError, match=r"devices: 999 were asked for, and this machine has \d+ CPU cores$"):
        training.fit(PREPARED, short("m3"), 3, 1, tmp_path / "c.safetensors", "cpu", 999)


def test_a_fit_in_processes_starts_them_and_takes_up_what_they_left(tmp_path, monkeypatch):
    """And starts none where they have been, on other machines say; a run that they did not end is told."""
    path, commands, variant = tmp_path / "c.safetensors", [], short("m3")
    whole, curves = run(variant, tmp_path / "alone.safetensors")

    def launched(command: list[str], **_: object) -> None:
        commands.append(command)
        trainer = Trainer(PREPARED, variant, 3, 1)
        for _ in range(3):
            trainer.run_epoch(tqdm(disable=True))
            trainer.save(path, training.run_fingerprint(PREPARED, variant, 3, 1, "cpu", 2))

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: None)
    with pytest.raises(InputError, match="m3: 2 processes ended before their last epoch, for the reason above"):
        training.fit(PREPARED, variant, 3, 1, path, "cpu", 2)
    monkeypatch.setattr(subprocess, "run", launched)
    for _ in range(2):
        system, found = training.fit(PREPARED, variant, 3, 1, path, "cpu", 2)
        assert same(system, whole)
        assert found.to_dict("records") == curves
    (command,) = commands
    assert command[0] == sys.executable
    assert " ".join(command[1:]) == "-m torch.distributed.run --standalone --nproc-per-node 2 -m m3lib.workers m3"
