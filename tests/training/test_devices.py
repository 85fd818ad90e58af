"""Choosing devices and precision; missing devices, precision and memory are one sentence each."""

import pytest
import torch
from tqdm import tqdm

from m3lib.errors import InputError
from m3lib.training import devices, inference
from m3lib.training import trainer as training
from m3lib.training.trainer import Trainer
from stripes import PREPARED, moved, short, weights
from tiny import TAXONOMY

M = TAXONOMY.num_classes


def pretend(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    """A GPU, as torch tells of it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)


def test_auto_takes_a_gpu_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.choose("auto", "bf16").type == devices.choose("cpu", "bf16").type == "cpu"
    pretend(monkeypatch, bf16=True)
    for accelerator, expected in (("auto", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")):
        assert devices.choose(accelerator, "bf16").type == expected


def test_a_missing_gpu_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"accelerator: cuda, but torch finds no GPU; set it to cpu or auto$"):
        Trainer(PREPARED, short("m3"), 0, 1, "cuda")


@pytest.mark.parametrize("accelerator", ["auto", "cuda"])
def test_a_gpu_without_bf16_is_one_sentence(accelerator, monkeypatch):
    pretend(monkeypatch, bf16=False)
    with pytest.raises(InputError, match=r"train\.precision: Old GPU does not compute in bf16; set it to auto$"):
        devices.choose(accelerator, "bf16")
    assert devices.choose(accelerator, "fp32").type == "cuda"


@pytest.mark.parametrize("bf16", [True, False])
def test_precision_auto_is_bf16_on_a_gpu_that_computes_in_it(bf16, monkeypatch):
    pretend(monkeypatch, bf16)
    for wanted, on_gpu, on_cpu in (
        ("auto", "bf16" if bf16 else "fp32", "fp32"),
        *[(p, p, p) for p in ("bf16", "fp32")],
    ):
        assert devices.precision(wanted, torch.device("cuda", 0)) == on_gpu
        assert devices.precision(wanted, torch.device("cpu")) == on_cpu
        with inference.autocast(wanted, torch.device("cpu")):
            made = torch.ones(2, 2) @ torch.ones(2, 2)
        assert made.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[on_cpu]
    assert devices.choose("auto", "auto").type == "cuda"


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


def test_other_runtime_errors_are_not_reported_as_out_of_memory(monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(training, "total_loss", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        Trainer(PREPARED, short("m3"), 0, 1).train_epoch(tqdm(disable=True))
