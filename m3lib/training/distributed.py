"""Data-parallel training of one variant: gather embeddings, sum gradients, synchronise batch norms.

Every process encodes its slice of a batch, gathers the embeddings of the other processes, and computes the losses of
the global batch, so that anchors meet all positives and negatives, and class centers move identically everywhere.
Gradients reach only the process's slice; the sum of the parameters' gradients over processes is the gradient that one
process would compute. With one process nothing is exchanged.

The pipeline's stage starts the processes of the first machine. With several machines (`nodes`), start each of the
others by its number, from the same clone, params.yaml and data/prepared:

    python -m m3lib.training.distributed m3 1
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm

from m3lib import config
from m3lib.errors import InputError
from m3lib.training import devices

TIMEOUT = timedelta(hours=6)  # to wait for another machine's start, and for the main process during validation


def launch(name: str, accelerator: str, machines: config.Machines, node: int = 0) -> int:
    """Train a variant in the processes of this machine, number `node`; returns torchrun's exit status.

    Raises InputError if the machine has too few devices.
    """
    devices.check_count(accelerator, machines.devices)
    torchrun = ["-m", "torch.distributed.run", *rendezvous_arguments(name, machines, node)]
    command = [sys.executable, *torchrun, f"--nproc-per-node={machines.devices}", "-m", "m3lib.training.worker", name]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # else torchrun warns; each process sets its threads later
    return subprocess.run(command, cwd=config.find_root(), env=environment, check=False).returncode


def rendezvous_arguments(name: str, machines: config.Machines, node: int) -> list[str]:
    """Return torchrun's arguments for how the machines of a training find each other.

    The static backend numbers ranks by node, so that rank 0, which writes the checkpoint, is on the first machine.
    """
    if machines.nodes == 1:
        return ["--standalone"]
    endpoint = ["--rdzv-backend=static", f"--rdzv-endpoint={machines.rendezvous}", f"--rdzv-id={name}"]
    timeout = f"--rdzv-conf=timeout={int(TIMEOUT.total_seconds())}"
    return [f"--nnodes={machines.nodes}", f"--node-rank={node}", *endpoint, timeout]


@contextmanager
def process_group(accelerator: str) -> Iterator[None]:
    """Connect to the other processes, each with a different GPU if there are GPUs."""
    gpu = accelerator != "cpu" and torch.cuda.is_available()
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


def comm_device() -> torch.device:
    """Return the device of tensors that are exchanged."""
    return torch.device("cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu")


def gather(rows: Tensor) -> Tensor:
    """Return the rows of all processes, (B, ...) from (b, ...); the gradient reaches only this process's rows."""
    if world_size() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows.detach().contiguous())
    gathered[dist.get_rank()] = rows
    return torch.cat(gathered)


def broadcast_bytes(produce: Callable[[], bytes]) -> bytes:
    """Return what `produce` returns in the main process; the others don't call it."""
    if world_size() == 1:
        return produce()
    content = produce() if is_main_process() else b""
    size = torch.tensor(len(content), device=comm_device())
    dist.broadcast(size, 0)
    array = np.frombuffer(content, np.uint8).copy() if content else np.empty(int(size), np.uint8)
    tensor = torch.from_numpy(array).to(comm_device())
    dist.broadcast(tensor, 0)
    return tensor.cpu().numpy().tobytes()


def all_equal(text: str) -> bool:
    """Return whether all processes hold the same text (of equal length); all get the same answer."""
    row = torch.tensor([list(text.encode())], dtype=torch.uint8, device=comm_device())
    return bool((gather(row) == row).all())


def all_reduce_sum(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in place, in one exchange per data type."""
    if world_size() == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for group in by_type.values():
        flat = torch.cat([tensor.flatten() for tensor in group])
        dist.all_reduce(flat)
        for tensor, total in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
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
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm(_BatchNorm):
    """A batch norm with the statistics of all processes' rows in training; torch's SyncBatchNorm needs GPUs."""

    def _check_input_dim(self, x: Tensor) -> None:
        """Accept rows and images: channels are the second dimension of both."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
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
        return torch.addcmul(self.bias.view(shape), centered, scale.view(shape)).to(x.dtype)


def convert_batch_norms(module: nn.Module) -> None:
    """Replace the batch norms in `module` by SyncBatchNorm if there are several processes; weights keep their names."""
    for name, norm in module.named_children() if world_size() > 1 else ():
        if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d):
            synchronised = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum).to(norm.weight)
            synchronised.load_state_dict(norm.state_dict())
            setattr(module, name, synchronised)
        elif isinstance(norm, _BatchNorm):
            kind = type(norm).__name__
            raise InputError(f"a {kind} of this backbone can't be shared; set devices and nodes to 1 (params.yaml)")
        else:
            convert_batch_norms(norm)


def main(arguments: Sequence[str]) -> int:
    """Start this machine's processes of a training whose first machine is another one; returns the exit status."""
    try:
        settings = config.load(config.find_root() / "params.yaml")
        name, node = arguments if len(arguments) == 2 else ("", "")
        if node not in map(str, range(1, settings.nodes)):
            number = f"this machine's number, above 0 and below nodes in params.yaml ({settings.nodes})"
            raise InputError(f"python -m m3lib.training.distributed takes a variant and {number}")
        return launch(settings.variant(name).name, settings.accelerator, settings.machines, int(node))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
