"""Where a network computes: the device that was asked for, or one sentence on why it can't be had."""

import os

import torch

from m3lib.errors import InputError

BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # a CPU's instructions for it, as torch names them


def choose(accelerator: str, precision: str) -> torch.device:
    """The device of `accelerator` (auto | cpu | cuda); auto is a GPU where torch finds one that has the precision.

    Raises InputError where there is no GPU, or none that computes in `precision`.
    """
    found = torch.cuda.is_available()
    if accelerator == "cpu" or (accelerator == "auto" and not found):
        return torch.device("cpu")
    if not found:
        raise InputError("params.yaml, accelerator: cuda, but torch finds no GPU; set it to cpu or auto")
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise InputError(f"params.yaml, train.precision: {name} does not compute in bf16; set it to auto")
    return torch.device("cuda", torch.cuda.current_device())


def precision(wanted: str, device: torch.device) -> str:
    """What matrix products are made in: bf16 or fp32. `auto` is bf16 where the device need not imitate it."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        found = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = any(torch.cpu.get_capabilities().get(name) for name in BF16)
    return "bf16" if found else "fp32"


def check_count(accelerator: str, wanted: int) -> None:
    """Raise InputError where there are fewer devices than processes: GPUs, or cores where there is none."""
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    found = torch.cuda.device_count() if gpu else os.cpu_count()
    if wanted > found:
        kind = "GPUs" if gpu else "CPU cores"
        raise InputError(f"params.yaml, devices: {wanted} were asked for, and this machine has {found} {kind}")


def out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def empty() -> None:
    """Give back what a GPU's allocator keeps; nothing to do on a CPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
