"""Checkpoints: save a run after each epoch, resume it, and decide whether a checkpoint belongs to the run."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor
from torch.optim import Optimizer

from m3lib import systems
from m3lib.config import Variant
from m3lib.data import code, files
from m3lib.data.manifest import Prepared
from m3lib.systems import imagenet
from m3lib.systems.base import System
from m3lib.training import distributed

History = list[dict]  # one record per epoch: its number, the mean of each loss, and validation MAP


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file completely or not at all."""
    with files.atomic(path) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)


def save(
    path: Path, fingerprint: str, system: System, optimizer: Optimizer, best: dict[str, Tensor], history: History
) -> None:
    """Write everything that continuing the run needs; best: the weights of the best epoch so far."""
    tensors = {f"system.{name}": value for name, value in system.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    save_tensors(path, tensors, {"fingerprint": fingerprint, "history": json.dumps(history)})


def resume(
    path: Path, fingerprint: str, system: System, optimizer: Optimizer
) -> tuple[dict[str, Tensor], History] | None:
    """Restore system and optimizer from this run's checkpoint and return (best, history); None without one.

    With several processes, the main one reads the file for all: other machines may not have it.
    """
    history = distributed.broadcast(lambda: read_history(path, fingerprint))
    if history is None:
        return None
    tensors = load(distributed.broadcast(path.read_bytes))
    system.load_state_dict(without_prefix(tensors, "system."))
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in without_prefix(tensors, "optimizer.").items():
        number, key = name.split(".")
        states.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
    for weight, state in optimizer.state.items():  # the fused step needs the weight's memory layout, channels_last
        state |= {k: torch.empty_like(weight).copy_(v) for k, v in state.items() if v.shape == weight.shape}
    return without_prefix(tensors, "best."), history


def without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def read_history(path: Path, fingerprint: str) -> History | None:
    """Return the history in a checkpoint of this run; None if the file is missing, damaged or of another run."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        return json.loads(metadata["history"]) if metadata["fingerprint"] == fingerprint else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def run_fingerprint(prepared: Prepared, variant: Variant, seed: int, threads: int, accelerator: str = "cpu") -> str:
    """Return a digest of all that a run depends on: settings, data, start weights, and the code that it imports.

    The number of processes doesn't count: it changes a result by rounding only, in networks without dropout.
    The code is the trainer's, the network's, and what these import. The registry of systems, other networks, search and
    figures don't count.
    """
    settings = json.dumps([variant.resolved(), seed, threads, accelerator])
    images = pd.util.hash_pandas_object(prepared.manifest[["image", "split"]]).to_numpy().tobytes()
    labels = np.packbits(prepared.labels).tobytes()
    store = f"{prepared.images.shape} {type(prepared.images)}"
    modules = code.imported_files("m3lib.training.run", systems.module_of(variant.network))
    modules = [path for path in modules if path.parts[-2:] != ("systems", "__init__.py")]
    weights = imagenet.start_files(variant.model)
    return files.digest(settings, images, labels, store, *weights, *code.relative_names(modules), *modules)
