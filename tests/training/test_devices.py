"""The device that was asked for, and what is said where it, its precision or its memory is not to be had."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from m3lib.data import batches
from m3lib.errors import InputError
from m3lib.training import devices, inference, samplers
from m3lib.training import trainer as training
from m3lib.training.trainer import Trainer
from stripes import PREPARED, moved, run, same, short, weights
from tiny import TAXONOMY, make_prepared, make_variant

M = TAXONOMY.num_classes


def pretend(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    """A GPU, as torch tells of it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.choose("auto", "bf16").type == devices.choose("cpu", "bf16").type == "cpu"
    pretend(monkeypatch, bf16=True)
    for accelerator, expected in (("auto", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")):
        assert devices.choose(accelerator, "bf16").type == expected


def test_no_gpu_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"accelerator: cuda, but torch finds no GPU; set it to cpu or auto$"):
        Trainer(PREPARED, short("m3"), 0, 1, "cuda")


@pytest.mark.parametrize("accelerator", ["auto", "cuda"])
def test_a_gpu_without_bf16_is_told_in_a_sentence(accelerator, monkeypatch):
    pretend(monkeypatch, bf16=False)
    with pytest.raises(InputError, match=r"train\.precision: Old GPU does not compute in bf16; set it to auto$"):
        devices.choose(accelerator, "bf16")
    assert devices.choose(accelerator, "fp32").type == "cuda"


@pytest.mark.parametrize("bf16", [True, False])
def test_precision_auto_is_bf16_where_the_device_computes_in_it(bf16, monkeypatch):
    pretend(monkeypatch, bf16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x", "avx2": True, "amx_bf16": bf16})
    for wanted, expected in (("auto", "bf16" if bf16 else "fp32"), ("bf16", "bf16"), ("fp32", "fp32")):
        for device in (torch.device("cpu"), torch.device("cuda", 0)):
            assert devices.precision(wanted, device) == expected
        with inference.autocast(wanted, torch.device("cpu")):
            made = torch.ones(2, 2) @ torch.ones(2, 2)
        assert made.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[expected]
    assert devices.choose("auto", "auto").type == "cuda"


def test_a_cpus_instructions_are_known():
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except FileNotFoundError:
        pytest.skip("no /proc/cpuinfo here")
    has = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"} & flags  # as Linux names them
    assert devices.precision("auto", torch.device("cpu")) == ("bf16" if has else "fp32")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: no")]
)
def test_out_of_memory_names_the_setting_to_lower(error, monkeypatch):
    """No weight has moved."""
    trainer = Trainer(PREPARED, short("m3"), 0, 1)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(training, "total_loss", fail)
    before = weights(trainer.system)
    with pytest.raises(InputError, match=r"^out of memory on cpu at train\.batch 8: lower train\.batch$"):
        trainer.train_epoch(tqdm(disable=True))
    assert not moved(before, weights(trainer.system))


def test_another_runtime_error_is_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(training, "total_loss", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        Trainer(PREPARED, short("m3"), 0, 1).train_epoch(tqdm(disable=True))


def rare(size: int = 100) -> torch.Tensor:
    """Ten classes' worth of pairs among 100 pictures: two pictures of each of three classes, the rest unknown."""
    labels = torch.zeros(size, M, dtype=torch.bool)
    labels[0:2, 0] = labels[2:4, 1] = labels[4:6, 3] = True
    return labels


def test_a_batch_without_room_for_a_positive_is_refused_with_the_least_that_has():
    """Three pairs of 4,950: b (b - 1) / 2 of them a batch, so that 58 pictures hold one on average."""
    train = replace(make_variant("m3").train, sampler="uniform")
    for batch in (58, 80):
        samplers.check_batch(rare(), replace(train, batch=batch))
    for batch in (2, 57):
        with pytest.raises(InputError, match=rf"^train\.batch {batch} holds .* on average; set it to 58 or more$"):
            samplers.check_batch(rare(), replace(train, batch=batch))
    with pytest.raises(InputError, match="no two training pictures share a class"):
        samplers.check_batch(torch.eye(M, dtype=torch.bool), replace(train, batch=4))
    samplers.check_batch(rare(), replace(train, batch=2, sampler="asen_pp_exact"))  # triplets, whatever the batch


def test_only_losses_that_compare_pictures_need_a_positive():
    labels = rare(30).numpy()
    prepared = make_prepared(labels, [("train", "")] * 30)
    with pytest.raises(InputError, match=r"train\.batch 2 holds"):
        Trainer(prepared, make_variant("m3", batch=2), 0, 1)
    Trainer(prepared, make_variant("classifier", batch=2), 0, 1)


def test_reading_ahead_keeps_order_and_pairs_and_passes_errors_on():
    drawn, read = [], []

    def items():
        for k in range(5):
            drawn.append(k)
            yield k

    def load(k: int) -> int:
        read.append(k)
        if k == 4:
            raise InputError("damaged")
        return 10 * k

    pairs = batches.prefetch(items(), load)
    for k in range(4):
        assert next(pairs) == (k, 10 * k)
        assert drawn == list(range(k + 2))  # the next one, and no more
    with pytest.raises(InputError, match="damaged"):
        next(pairs)
    assert read == list(range(5))
    assert list(batches.prefetch([], load)) == []


def test_reading_ahead_changes_no_run(tmp_path, monkeypatch):
    """However long a read takes: threads hold the pixels alone, and draw nothing."""
    whole, curves = run(short("m3"), tmp_path / "a.safetensors")
    monkeypatch.setattr(batches, "prefetch", lambda items, read: ((item, read(item)) for item in items))
    system, found = run(short("m3"), tmp_path / "b.safetensors")
    assert same(system, whole)
    assert found == curves
