"""Data-parallel training of one variant: gather embeddings, sum gradients, synchronise batch norms.

Every process encodes its slice of a batch, gathers the embeddings of the other processes, and computes the losses of
the global batch, so that anchors meet all positives and negatives, and class centers move identically everywhere.
Gradients reach only the process's slice; the sum of the parameters' gradients over processes is the gradient that one
process would compute. With one process nothing is exchanged.

The pipeline's stage starts the processes of the first machine and prints the command for the others (`nodes`), which
need the same clone, params.yaml, data/imagenet and data/prepared.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm

from m3lib import config
from m3lib.errors import InputError
from m3lib.training import devices

T = TypeVar("T")
TIMEOUT = timedelta(hours=6)  # to wait for another machine's start, and for the main process during validation


def launch(name: str, accelerator: str, machines: config.Machines) -> None:
    """Train a variant in several processes and wait for them; with several machines, print the others' command.

    Raises InputError if this machine has fewer GPUs, or without a GPU fewer CPU cores, than it needs.
    """
    gpu = devices.uses_gpu(accelerator)
    available, kind = (torch.cuda.device_count(), "GPUs") if gpu else (os.cpu_count(), "CPU cores")
    if machines.devices > available:
        raise InputError(f"params.yaml, devices: {machines.devices} requested, but this machine has {available} {kind}")
    meeting = "--standalone"
    if machines.nodes > 1:  # the static backend numbers ranks by machine: rank 0 writes the checkpoint on machine 0
        endpoint = f"--rdzv-backend=static --rdzv-endpoint={machines.rendezvous} --rdzv-id={name}"
        meeting = f"--nnodes={machines.nodes} --node-rank=0 {endpoint} --rdzv-conf=timeout={TIMEOUT.seconds}"
    command = f"-m torch.distributed.run {meeting} --nproc-per-node={machines.devices} -m m3lib.training.run {name}"
    if machines.nodes > 1:
        others = command.replace("--node-rank=0", "--node-rank=N")
        print(f"start the other machines, N from 1 to {machines.nodes - 1}: python {others}", file=sys.stderr)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # else torchrun warns; each process sets its threads later
    subprocess.run([sys.executable, *command.split()], cwd=config.find_root(), env=environment, check=False)


@contextmanager
def process_group(accelerator: str) -> Iterator[None]:
    """Connect to the other processes, each with a different GPU if there are GPUs."""
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
    """Return the rows of all processes, (B, ...) from (b, ...); the gradient reaches only this process's rows."""
    if world_size() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows.detach().contiguous())
    gathered[dist.get_rank()] = rows
    return torch.cat(gathered)


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


def all_reduce_sum(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in place, in one exchange."""
    if world_size() == 1:
        return
    tensors = list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view(tensor.shape))


class AllReduceSum(torch.autograd.Function):
    """The sum over the processes, of values in the forward pass and of gradients in the backward pass."""

    @staticmethod
    def forward(_: FunctionCtx, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: FunctionCtx, gradient: Tensor) -> Tensor:
        return AllReduceSum.apply(gradient)


class SyncBatchNorm(_BatchNorm):
    """A batch norm with the statistics of all processes' rows in training; torch's SyncBatchNorm needs GPUs."""

    act = nn.Identity()

    def _check_input_dim(self, x: Tensor) -> None:
        """Accept rows and images: channels are the second dimension of both."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.act(super().forward(x))
        dims, rows = [d for d in range(x.dim()) if d != 1], x.numel() // x.shape[1] * world_size()
        shape = [1, -1, *[1] * (x.dim() - 2)]
        wide = x.float() if x.dtype == torch.bfloat16 else x
        mean = AllReduceSum.apply(wide.sum(dims)) / rows  # (C,)
        centered = wide - mean.view(shape)
        variance = AllReduceSum.apply(centered.square().sum(dims)) / rows  # (C,)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * rows / max(1, rows - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return self.act(torch.addcmul(self.bias.view(shape), centered, scale.view(shape)).to(x.dtype))


def convert_batch_norms(module: nn.Module) -> None:
    """Replace the batch norms in `module` by SyncBatchNorm if there are several processes; weights keep their names."""
    for name, norm in module.named_children() if world_size() > 1 else ():
        if isinstance(norm, _BatchNorm) and not norm.training:
            continue  # of a frozen block, whose statistics stay
        if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d) or hasattr(norm, "act"):
            synchronised = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum).to(norm.weight)
            synchronised.load_state_dict(norm.state_dict())
            synchronised.act = getattr(norm, "act", nn.Identity())  # a timm norm computes the activation as well
            setattr(module, name, synchronised)
        elif isinstance(norm, _BatchNorm):
            kind = type(norm).__name__
            raise InputError(f"a {kind} of this backbone can't be shared; set devices and nodes to 1 (params.yaml)")
        else:
            convert_batch_norms(norm)
