"""One training in several processes, started by torch's launcher: what each has to hear of the others.

Every process encodes its share of a batch, gathers the embeddings of the others, and finds the losses of the whole
batch: anchors meet all positives and negatives, and class centers move alike everywhere. Its own share alone carries a
gradient; the parameters' gradients are then summed over the processes, which is the gradient that one process would
find. Batch norms take their statistics over the whole batch. With one process nothing is exchanged.

The pipeline's stage starts the processes of the first machine. Where params.yaml asks for several (`nodes`), each of
the others, with the same clone, params.yaml and data/prepared, says which one it is:

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
from torch.nn.modules.batchnorm import _BatchNorm

from m3lib import config
from m3lib.errors import InputError
from m3lib.training import devices

PATIENCE = timedelta(hours=6)  # for another machine's start, and for the first process, which looks at validation


def launch(name: str, accelerator: str, machines: config.Machines, node: int = 0) -> int:
    """Train a variant of params.yaml in processes of this machine, the `node`-th; the launcher's exit status.

    Raises InputError where the machine has too few devices.
    """
    devices.check_count(accelerator, machines.devices)
    torchrun = ["-m", "torch.distributed.run", *meeting(name, machines, node), f"--nproc-per-node={machines.devices}"]
    command = [sys.executable, *torchrun, "-m", "m3lib.training.worker", name]
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}  # until each sets its `threads`; torchrun warns where it is not given
    return subprocess.run(command, cwd=config.find_root(), env=quiet, check=False).returncode


def meeting(name: str, machines: config.Machines, node: int) -> list[str]:
    """How the launchers of a training meet: static, so that ranks go by node and the first process is the first one's.

    With c10d, ranks would go by the machines' names, and the checkpoint might be left anywhere.
    """
    if machines.nodes == 1:
        return ["--standalone"]
    where = ["--rdzv-backend=static", f"--rdzv-endpoint={machines.rendezvous}", f"--rdzv-id={name}"]
    patient = f"--rdzv-conf=timeout={int(PATIENCE.total_seconds())}"
    return [f"--nnodes={machines.nodes}", f"--node-rank={node}", *where, patient]


@contextmanager
def join(accelerator: str) -> Iterator[None]:
    """Meet the other processes of the launcher; each takes a GPU of its own where there is one."""
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def share(size: int) -> slice:
    """This process's part of `size` rows; the parts are equal where `size` is a multiple of the processes."""
    number, each = dist.get_rank() if dist.is_initialized() else 0, -(-size // count())
    return slice(min(size, number * each), min(size, (number + 1) * each))


def gather(own: Tensor) -> Tensor:
    """(B, ...) of all processes' (b, ...) rows, in order; the gradient reaches this process's own."""
    if count() == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(count())]
    dist.all_gather(parts, own.detach().contiguous())
    parts[dist.get_rank()] = own
    return torch.cat(parts)


def from_first(find: Callable[[], bytes]) -> bytes:
    """What the first process finds, told to all; the others don't look."""
    if count() == 1:
        return find()
    own = find() if is_first() else b""
    size = torch.tensor(len(own), device=meeting_place())
    dist.broadcast(size, 0)
    told = torch.from_numpy(np.frombuffer(own, np.uint8).copy()) if own else torch.empty(int(size), dtype=torch.uint8)
    told = told.to(meeting_place())
    dist.broadcast(told, 0)
    return told.cpu().numpy().tobytes()


def agree(own: str) -> bool:
    """Whether all processes hold the same text, of one length; all get the same answer."""
    mine = torch.tensor([list(own.encode())], dtype=torch.uint8, device=meeting_place())
    return bool((gather(mine) == mine).all())


def meeting_place() -> torch.device:
    """Where a tensor has to be to reach the other processes."""
    return torch.device("cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu")


def add_up(tensors: Iterable[Tensor]) -> None:
    """Each tensor becomes its sum over the processes, in place and in one exchange a type."""
    if count() == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for group in by_type.values():
        flat = torch.cat([tensor.flatten() for tensor in group])
        dist.all_reduce(flat)
        for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view(tensor.shape))


class Total(torch.autograd.Function):
    """The sum over the processes, of the values and of their gradients."""

    @staticmethod
    def forward(_: torch.autograd.function.FunctionCtx, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SharedNorm(_BatchNorm):
    """A batch norm whose statistics, in training, are those of all processes' rows together.

    Written with two sums over the processes, so that it works on any device; torch's SyncBatchNorm knows GPUs alone.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        """Rows, or pictures: channels are the second dimension in both."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims, rows = [d for d in range(x.dim()) if d != 1], x.numel() // x.shape[1] * count()
        shape = [1, -1, *[1] * (x.dim() - 2)]
        wide = x.float() if x.dtype == torch.bfloat16 else x
        mean = Total.apply(wide.sum(dims)) / rows  # (C,)
        centred = wide - mean.view(shape)
        variance = Total.apply(centred.square().sum(dims)) / rows  # (C,)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * rows / max(1, rows - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return torch.addcmul(self.bias.view(shape), centred, scale.view(shape)).to(x.dtype)


def share_norms(module: nn.Module) -> None:
    """Let every batch norm inside `module` see all processes' rows; names and weights stay. Nothing to do for one."""
    for name, norm in module.named_children() if count() > 1 else ():
        if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d):
            shared = SharedNorm(norm.num_features, norm.eps, norm.momentum).to(norm.weight)
            shared.load_state_dict(norm.state_dict())
            setattr(module, name, shared)
        elif isinstance(norm, _BatchNorm):
            raise InputError(
                f"a {type(norm).__name__} of this backbone can't be shared; set devices and nodes to 1 (params.yaml)"
            )
        else:
            share_norms(norm)


def main(arguments: Sequence[str]) -> int:
    """Start this machine's processes of a training whose first machine is elsewhere."""
    try:
        settings = config.load(config.find_root() / "params.yaml")
        name, node = arguments if len(arguments) == 2 else ("", "")
        if node not in map(str, range(1, settings.nodes)):
            own = f"this machine's number, above 0 and below nodes in params.yaml ({settings.nodes})"
            raise InputError(f"python -m m3lib.training.distributed takes a variant and {own}")
        return launch(settings.variant(name).name, settings.accelerator, settings.machines, int(node))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
