"""Data-parallel training of one variant in several processes, on torch's own parts.

Every process encodes its slice of a batch and gathers the embeddings of the others with their gradient, so that the
losses are those of the global batch: anchors meet all positives and negatives, and class centers move identically
everywhere. DistributedDataParallel averages the gradients, which the gather has summed over the processes: together
they are the gradient that one process would compute. With one process nothing is exchanged.

`torchrun` starts the processes: the pipeline's stage does for `devices` of this machine, a person or Slurm for several
machines (README.md).
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_gather_single
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from m3lib import config
from m3lib.errors import InputError
from m3lib.training import devices

T = TypeVar("T")
TIMEOUT = timedelta(hours=6)  # to wait for another machine's start, and for the main process during validation


def launch(name: str, accelerator: str, processes: int) -> None:
    """Train a variant in several processes of this machine, and wait for them.

    Raises InputError if the machine has fewer GPUs, or without a GPU fewer CPU cores, than processes.
    """
    gpu = devices.uses_gpu(accelerator)
    available, kind = (torch.cuda.device_count(), "GPUs") if gpu else (os.cpu_count(), "CPU cores")
    if processes > available:
        raise InputError(f"params.yaml, devices: {processes} requested, but this machine has {available} {kind}")
    torchrun = f"-m torch.distributed.run --standalone --nproc-per-node={processes}"
    command = [sys.executable, *torchrun.split(), "-m", "m3lib.training.run", name]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # else torchrun warns; each process sets its threads later
    subprocess.run(command, cwd=config.find_root(), env=environment, check=False)


@contextmanager
def process_group(accelerator: str) -> Iterator[None]:
    """Connect to the other processes, each with its own GPU if there are any. Raises InputError without torchrun."""
    if not dist.is_torchelastic_launched():
        command = "torchrun --standalone --nproc-per-node=2 -m m3lib.training.run NAME"
        raise InputError(f"this module is one of several processes, which torchrun starts: {command}")
    gpu = devices.uses_gpu(accelerator)
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Return whether this process validates and writes files."""
    return not dist.is_initialized() or dist.get_rank() == 0


def rank_slice(size: int) -> slice:
    """Return this process's slice of `size` rows; slices are equal if `size` is a multiple of the processes."""
    rank, length = dist.get_rank() if dist.is_initialized() else 0, -(-size // world_size())
    return slice(min(size, rank * length), min(size, (rank + 1) * length))


def gather(rows: Tensor) -> Tensor:
    """Return the rows of all processes, (B, ...) from (b, ...); their gradients are summed over the processes."""
    return rows if world_size() == 1 else all_gather_single(rows.contiguous(), 0, dist.group.WORLD)


def broadcast(produce: Callable[[], T]) -> T:
    """Return what `produce` returns in the main process; the others don't call it."""
    values = [produce() if is_main_process() else None]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def all_equal(text: str) -> bool:
    """Return whether all processes hold the same text."""
    texts = [text] * world_size()
    if world_size() > 1:
        dist.all_gather_object(texts, text)
    return len(set(texts)) == 1


def add_up(values: Tensor) -> None:
    """Replace a tensor by its sum over the processes."""
    if world_size() > 1:
        dist.all_reduce(values)


def share_norms(system: nn.Module) -> None:
    """Let batch norms use the statistics of all processes' rows. Raises InputError on a CPU, where torch has no way to.

    Norms in evaluation mode, those of frozen blocks, need none.
    """
    if world_size() == 1:
        return
    if next(system.parameters()).is_cuda:
        convert_sync_batchnorm(system)  # timm's: it knows the norms that compute an activation as well
    elif any(isinstance(norm, _BatchNorm) and norm.training for norm in system.train().modules()):
        remedy = "set devices to 1, or model.trainable to heads and model.attention_batch_norm to false (params.yaml)"
        raise InputError(f"several processes without a GPU can't share the batch norms that this row trains: {remedy}")


def parallel(module: nn.Module) -> nn.Module:
    """Return the module whose gradients are averaged over the processes that torchrun started; else itself.

    A stage may leave parameters unused, such as those of ASEN++'s local branch.
    """
    if not dist.is_initialized():
        return module
    return DistributedDataParallel(module, find_unused_parameters=True)
