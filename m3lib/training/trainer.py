"""Training one variant, resumable at every epoch."""

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor
from tqdm import tqdm

from m3lib import systems
from m3lib.config import ALONE, Loss, Machines, Stage, Variant
from m3lib.data import batches, files
from m3lib.data.manifest import Prepared, hold_out
from m3lib.errors import InputError
from m3lib.retrieval import metrics, ranking
from m3lib.systems import losses
from m3lib.systems.base import Outputs, System
from m3lib.systems.losses import Batch
from m3lib.systems.objective import total_loss, update_centers
from m3lib.training import augment, devices, distributed, inference, samplers
from m3lib.training.schedule import Plan, learning_rate, make_optimizer

COMPARING = ("asen_triplet", "asen_pp_local", "m3_instance", "m3_cluster")  # losses of triplets within a batch


def make_deterministic(seed: int, threads: int) -> None:
    """One place for seeds and kernels: equal bytes on one kind of machine with equal threads."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a check of kernels that costs a tenth of a step
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, CUDA's matrix products refuse to repeat


class Trainer:
    """One training run: what it holds is exactly what a checkpoint holds.

    Every epoch's randomness comes from (seed, epoch), so an epoch repeats bit by bit wherever it was resumed. It is
    drawn on the CPU whatever the device is: a seed means the same batches, views and triplets everywhere.
    """

    def __init__(self, prepared: Prepared, variant: Variant, seed: int, threads: int, accelerator: str = "cpu"):
        make_deterministic(seed, threads)
        self.device = devices.choose(accelerator, variant.train.precision)
        if variant.train.batch % distributed.count():
            given = f"train.batch {variant.train.batch} can't be shared by {distributed.count()} processes"
            raise InputError(f"{given}: set it to a multiple (params.yaml)")
        self.prepared, self.variant, self.seed = hold_out(prepared, variant.train.held_out), variant, seed
        self.rows = prepared.rows("train")
        self.labels = torch.from_numpy(self.prepared.labels)[self.rows]  # (I, M)
        self.own = torch.from_numpy(prepared.taxonomy.attribute_of_class)  # (M,)
        if any(getattr(stage.loss, name) for stage in variant.stages for name in COMPARING):
            samplers.check_batch(self.labels, variant.train)
        self.system = systems.build(variant, prepared.taxonomy).to(memory_format=torch.channels_last)
        self.system.count_classes(self.labels, variant.loss.positive_power)
        self.system.to(self.device)
        distributed.share_norms(self.system)
        self.optimizer = make_optimizer(self.system, variant.train)
        self.plan = Plan(variant)
        self.steps_per_epoch = samplers.steps_per_epoch(len(self.rows), variant.train)
        self.history: list[dict] = []  # one record an epoch
        self.best: dict[str, Tensor] = {}

    def train_epoch(self, bar: tqdm) -> dict[str, float]:
        """One epoch; returns the mean of each loss."""
        epoch = len(self.history)
        stage = self.plan.stage(epoch)
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        self.system.enter_stage(stage.loss)
        pseudo = self.refresh_centers(stage.loss)
        self.system.train()
        sums: dict[str, Tensor] = {}
        drawn = samplers.epoch(self.labels, self.own, self.variant.train, generator)
        for number, (batch, pixels) in enumerate(batches.prefetch(drawn, self.read)):
            self.set_learning_rate(epoch, number)
            try:
                parts = self.step(batch, pixels, stage, generator, None if pseudo is None else pseudo[batch.index])
            except FloatingPointError as error:
                place = f"{self.variant.name}, epoch {epoch + 1}, step {number + 1}"
                raise InputError(f"{place}: {error}; lower train.lr") from None
            except RuntimeError as error:
                if not devices.out_of_memory(error):
                    raise
                traceback.clear_frames(error.__traceback__)  # what the step had made so far
                place = f"out of memory on {self.device} at train.batch {self.variant.train.batch}"
                raise InputError(f"{place}: {self.advise(batch, pixels, stage)}") from None
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value.double()
            bar.update(1)
        return {name: float(value) / self.steps_per_epoch for name, value in sums.items()}

    def read(self, batch: Batch) -> Tensor:
        """(B, H, W, 3) uint8 pixels of a batch, on the CPU; of several processes, each reads its own share."""
        rows = self.rows[batch.index.numpy()][distributed.share(len(batch.index))]
        return batches.read(self.prepared.images, rows, pin=self.device.type == "cuda")

    def run_epoch(self, bar: tqdm) -> None:
        """Train one epoch, look at validation, and keep the weights if they are the best so far.

        Of several processes, the first one looks; the others only train.
        """
        parts = self.train_epoch(bar)
        if not distributed.is_first():
            self.history.append({"epoch": len(self.history) + 1, **parts})
            return
        embeddings = inference.embed(
            self.system, self.prepared, self.prepared.rows("valid"), self.variant.train.precision
        )
        scores = ranking.evaluate(self.prepared, "valid", self.variant.score, embeddings)
        reached = metrics.summarise(scores)["map_all"]["overall_by_query"]
        self.history.append({"epoch": len(self.history) + 1, **parts, "valid_map_all": reached})
        if reached >= max(record["valid_map_all"] for record in self.history):
            self.best = {name: value.clone() for name, value in self.system.state_dict().items()}

    def set_learning_rate(self, epoch: int, number: int) -> None:
        stage, each = self.plan.stage(epoch), self.steps_per_epoch
        first, last = self.plan.schedule(epoch)
        value = learning_rate((epoch - first) * each + number, (last - first) * each, stage.train, each)
        for group in self.optimizer.param_groups:
            group["lr"] = value * (stage.global_lr if group["global"] else 1.0)

    def step(
        self, batch: Batch, pixels: Tensor, stage: Stage, generator: torch.Generator, pseudo: Tensor | None
    ) -> dict[str, Tensor]:
        """Forward, loss, backward, step; returns the losses. pixels: of the batch, from `read`.

        Raises FloatingPointError, before any weight moves, where the loss or its gradient is not finite. That question
        is asked once a step: each time, a GPU has to be waited for.
        """
        outputs, parts = self.losses(batch, pixels, stage, generator, pseudo)
        total = sum(parts.values())
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        distributed.add_up(weight.grad for weight in self.system.parameters() if weight.grad is not None)
        norm = torch.nn.utils.clip_grad_norm_(self.system.parameters(), stage.train.clip or torch.inf)
        if not torch.isfinite(total.detach() + norm):
            told = ", ".join(f"{name} {value.item():g}" for name, value in parts.items())
            what = "gradient" if torch.isfinite(total) else "loss"
            raise FloatingPointError(f"the {what} became not a finite number ({told})")
        self.optimizer.step()
        update_centers(outputs, batch.labels.to(self.device), self.system, stage.loss)
        return {name: value.detach() for name, value in parts.items()}

    def losses(
        self, batch: Batch, pixels: Tensor, stage: Stage, generator: torch.Generator, pseudo: Tensor | None
    ) -> tuple[Outputs, dict[str, Tensor]]:
        images = batches.to_tensor(pixels.to(self.device, non_blocking=True))
        whole = augment.BatchSlice(len(batch.labels), distributed.share(len(batch.labels)))
        images = augment.augment(images, generator, stage.train, whole)
        some = (batch.labels.any(dim=0).nonzero().flatten(),) if "classes" in self.system.outputs else ()
        with inference.autocast(stage.train.precision, self.device):
            outputs = self.system(images, *some)
        parts = (part if part is None else distributed.gather(part) for part in outputs[:4])
        outputs = Outputs(*parts, wanted=None if outputs.wanted is None else outputs.wanted.to(self.device))
        batch, pseudo = batch.to(self.device), None if pseudo is None else pseudo.to(self.device)
        return outputs, total_loss(outputs, batch, self.system, stage.loss, generator, pseudo)

    def advise(self, batch: Batch, pixels: Tensor, stage: Stage) -> str:
        """What to do after a step that ran out of memory, tried out: half of the batch, a quarter, ... or none."""
        if distributed.count() > 1:  # the other processes wait for another step
            return "lower train.batch"
        size = len(pixels)
        while size := size // 2:
            self.optimizer.zero_grad(set_to_none=True)
            devices.empty()
            some = samplers.batch_of(torch.arange(size), batch.labels[:size].cpu(), self.own)
            try:
                sum(self.losses(some, pixels[:size], stage, torch.Generator(), None)[1].values()).backward()
            except RuntimeError as error:
                if not devices.out_of_memory(error):
                    raise
            else:
                fits = max(1, size * self.variant.train.batch // len(pixels))
                return f"lower train.batch, {fits} fit"
        return "lower images.height, images.width or the model"

    @torch.no_grad()
    def refresh_centers(self, loss: Loss) -> Tensor | None:
        """MODC at the start of an epoch: exact centers, and (I, M) pseudo-labels where they are trained on."""
        if not (loss.modc_cluster or loss.modc_pseudo):
            return None
        own, centers, labels = self.system.attribute_of_class, self.system.centers, self.labels.to(self.device)
        sums = torch.zeros_like(centers.value)
        for part, attribute in self.training_embeddings():
            sums += torch.einsum("bm,bmd->md", labels[part].float(), attribute[:, own])
        distributed.add_up([sums])
        centers.set(sums, labels.sum(dim=0))
        if not loss.modc_pseudo:
            return None
        cosines = torch.zeros(labels.shape, device=self.device)  # (I, M)
        for part, attribute in self.training_embeddings():
            cosines[part] = losses.center_cosines(attribute, centers.value, own)
        distributed.add_up([cosines])
        cosines = cosines.masked_fill(~centers.seen, -1.0)  # a class never seen is never nearest
        return losses.pseudo_labels(cosines, labels, own, self.system.multi, loss.pseudo_margin).cpu()

    def training_embeddings(self) -> Iterator[tuple[slice, Tensor]]:
        """(part of the training images, their attribute embeddings (b, N, D) in float32), in evaluation mode.

        Of several processes, each goes through its share of the images.
        """
        own = distributed.share(len(self.rows))
        for start in range(own.start, own.stop, inference.EMBED_BATCH):
            part = slice(start, min(start + inference.EMBED_BATCH, own.stop))
            pixels = batches.read(self.prepared.images, self.rows[part])
            yield part, inference.see(self.system, pixels, self.variant.train.precision).attribute

    def save(self, path: Path, fingerprint: str) -> None:
        """Write a checkpoint, whole or not at all; of several processes, the first one writes."""
        if not distributed.is_first():
            return
        tensors = {f"system.{name}": value for name, value in self.system.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        write_whole(path, tensors, {"fingerprint": fingerprint, "history": json.dumps(self.history)})

    def resume(self, path: Path, fingerprint: str) -> bool:
        """Take up a checkpoint of this very run; one of other settings, data or code is left aside.

        Of several processes, the first one reads it for all: the other machines may have none.
        """
        history = json.loads(distributed.from_first(lambda: json.dumps(history_in(path, fingerprint)).encode()))
        if history is None:
            return False
        tensors, self.history = load(distributed.from_first(path.read_bytes)), history
        self.system.load_state_dict(strip(tensors, "system."))
        self.best = strip(tensors, "best.")
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in strip(tensors, "optimizer.").items():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        for weight, kept in self.optimizer.state.items():  # the fused step reads memory as it lies: channels last
            kept |= {k: torch.empty_like(weight).copy_(v) for k, v in kept.items() if v.shape == weight.shape}
        return True


def strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def write_whole(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    with files.atomic(path) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)


def run_fingerprint(
    prepared: Prepared, variant: Variant, seed: int, threads: int, accelerator: str = "cpu", processes: int = 1
) -> str:
    """What a checkpoint belongs to: the settings, the manifest, and the code of m3lib."""
    digest = hashlib.sha256(json.dumps([asdict(variant), seed, threads, accelerator, processes]).encode())
    digest.update(pd.util.hash_pandas_object(prepared.manifest[["image", "split"]]).to_numpy().tobytes())
    digest.update(np.packbits(prepared.labels).tobytes() + f"{prepared.images.shape} {type(prepared.images)}".encode())
    for module in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()


def fit(
    prepared: Prepared,
    variant: Variant,
    seed: int,
    threads: int,
    checkpoint: Path,
    accelerator: str = "cpu",
    machines: Machines = ALONE,
) -> tuple[System, pd.DataFrame]:
    """Train to the end, from a checkpoint where this run left one; returns the system at its best epoch, and curves.

    The curves have a row an epoch: epoch, the mean of each weighted loss, and valid_map_all (fraction). The checkpoint
    is written after every epoch; the caller removes it once the results are stored.

    machines: where it is not this process alone, this machine's processes are started here, each on a device of its
    own; with those of the other machines (`parallel`) they leave a checkpoint of the whole run.
    """
    processes, shown = machines.processes, distributed.is_first()
    fingerprint = run_fingerprint(prepared, variant, seed, threads, accelerator, processes)
    alone = distributed.count() == 1
    if processes > 1 and alone and len(history_in(checkpoint, fingerprint) or []) < Plan(variant).epochs:
        if machines.nodes > 1:
            other = f"python -m m3lib.training.distributed {variant.name} N"
            print(f"waiting for the other machines: `{other}`, N from 1 to {machines.nodes - 1}", file=sys.stderr)
        distributed.launch(variant.name, accelerator, machines)
    if not distributed.agree(fingerprint):
        raise InputError(f"{variant.name}: the machines differ in params.yaml, data/prepared or code; make them alike")
    trainer = Trainer(prepared, variant, seed, threads, accelerator)
    if shown:
        check_disk(trainer, checkpoint)
    if trainer.resume(checkpoint, fingerprint):
        print(f"resumed after epoch {len(trainer.history)}", file=sys.stderr)
    done, epochs = len(trainer.history), trainer.plan.epochs
    if processes > 1 and alone and done < epochs:
        raise InputError(f"{variant.name}: {processes} processes ended before their last epoch, for the reason above")
    each = trainer.steps_per_epoch
    with tqdm(total=epochs * each, initial=done * each, desc=variant.name, disable=not shown) as bar:
        for _ in range(done, epochs):
            trainer.run_epoch(bar)
            trainer.save(checkpoint, fingerprint)
            if shown:
                bar.set_postfix(valid_map=f"{100 * trainer.history[-1]['valid_map_all']:.1f}")
    if shown:
        trainer.system.load_state_dict(trainer.best)
    return trainer.system, pd.DataFrame(trainer.history)


def check_disk(trainer: Trainer, checkpoint: Path) -> None:
    """Raise InputError, before the first step, unless the disk has room for all that this run will write."""
    prepared, sample = trainer.prepared, trainer.prepared.rows("valid")[:1]
    weights = sum(value.nbytes for value in trainer.system.state_dict().values())
    checkpoints = 2 * 4 * weights  # the old one and the new: weights, the best ones, and two moments of each
    embedded = vars(inference.embed(trainer.system, prepared, sample, "fp32")).values()
    image = sum(tensor.nbytes for tensor in embedded if tensor is not None)
    needed = checkpoints + image * (len(prepared.rows("valid")) + len(prepared.rows("test")))
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    what = f"the checkpoints and embeddings of {trainer.variant.name} take"
    files.require_space(checkpoint.parent, needed, what, "free some space, or make model.class_embedding smaller")


def history_in(checkpoint: Path, fingerprint: str) -> list[dict] | None:
    """The records of the epochs that a checkpoint of this very run holds; None without one."""
    try:
        with safe_open(checkpoint, framework="pt") as file:
            told = file.metadata()
        return json.loads(told["history"]) if told["fingerprint"] == fingerprint else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
