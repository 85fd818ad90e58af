"""Choose the device that computes, and the precision of its matrix products."""

import torch

from m3lib.errors import InputError


def uses_gpu(accelerator: str) -> bool:
    return accelerator != "cpu" and torch.cuda.is_available()


def choose(accelerator: str, precision: str) -> torch.device:
    """Return the device for `accelerator` (auto | cpu | cuda); auto takes a GPU if torch finds one.

    Raises InputError if a GPU is requested but there is none, or none that computes in `precision`.
    """
    if not uses_gpu(accelerator):
        if accelerator == "cuda":
            raise InputError("params.yaml, accelerator: cuda, but torch finds no GPU; set it to cpu or auto")
        return torch.device("cpu")
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise InputError(f"params.yaml, train.precision: {name} does not compute in bf16; set it to auto")
    return torch.device("cuda", torch.cuda.current_device())


def precision(setting: str, device: torch.device) -> str:
    """Return bf16 or fp32 for train.precision; auto is bf16 on a GPU that computes in it.

    On a CPU it is fp32: convolutions by channel, as in EfficientNet, are slower in bf16 there.
    """
    if setting != "auto":
        return setting
    supported = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if supported else "fp32"
