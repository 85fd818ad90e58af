"""Training one variant, resumable at every epoch, and embedding images with it."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from m3lib import batches, losses, metrics, models, retrieval, samplers
from m3lib.config import Loss, Stage, Variant
from m3lib.errors import InputError
from m3lib.manifest import Prepared, hold_out
from m3lib.objective import total_loss, update_centers
from m3lib.samplers import Batch
from m3lib.schedule import Plan, learning_rate, make_optimizer
from m3lib.system import Outputs

EMBED_BATCH = 256  # images; only speed depends on it


def make_deterministic(seed: int, threads: int) -> None:
    """One place for seeds and kernels: equal bytes on one kind of machine with equal threads."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def autocast(precision: str) -> torch.autocast:
    """bf16 for the matrix products of the forward pass; losses and norms stay in fp32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


class Trainer:
    """One training run: what it holds is exactly what a checkpoint holds.

    Every epoch's randomness comes from (seed, epoch), so an epoch repeats bit by bit wherever it was resumed.
    """

    def __init__(self, prepared: Prepared, variant: Variant, seed: int, threads: int):
        make_deterministic(seed, threads)
        self.prepared, self.variant, self.seed = hold_out(prepared, variant.train.held_out), variant, seed
        self.rows = prepared.rows("train")
        self.labels = torch.from_numpy(self.prepared.labels)[self.rows]  # (I, M)
        self.system = models.build(variant, prepared.taxonomy).to(memory_format=torch.channels_last)
        self.system.count_classes(self.labels, variant.loss.positive_power)
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
        sums: dict[str, float] = {}
        drawn = samplers.epoch(self.labels, self.system.attribute_of_class, self.variant.train, generator)
        for number, batch in enumerate(drawn):
            self.set_learning_rate(epoch, number)
            try:
                parts = self.step(batch, stage, generator, None if pseudo is None else pseudo[batch.index])
            except FloatingPointError as error:
                place = f"{self.variant.name}, epoch {epoch + 1}, step {number + 1}"
                raise InputError(f"{place}: {error}; lower train.lr") from None
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value
            bar.update(1)
        return {name: value / self.steps_per_epoch for name, value in sums.items()}

    def run_epoch(self, bar: tqdm) -> None:
        """Train one epoch, look at validation, and keep the weights if they are the best so far."""
        parts = self.train_epoch(bar)
        embeddings = embed(self.system, self.prepared, self.prepared.rows("valid"), self.variant.train.precision)
        scores = retrieval.evaluate(self.prepared, "valid", self.variant.score, embeddings)
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

    def step(self, batch: Batch, stage: Stage, generator: torch.Generator, pseudo: Tensor | None) -> dict[str, float]:
        """Forward, loss, backward, step; returns the losses.

        Raises FloatingPointError, before any weight moves, where the loss or its gradient is not finite.
        """
        pixels = self.prepared.images[self.rows[batch.index.numpy()]]
        images = batches.views(batches.to_tensor(pixels), generator, stage.train)
        with autocast(stage.train.precision):
            outputs = self.system(images)
        parts = total_loss(outputs, batch, self.system, stage.loss, generator, pseudo)
        total = sum(parts.values())
        if not torch.isfinite(total):
            told = ", ".join(f"{name} {value.item():g}" for name, value in parts.items())
            raise FloatingPointError(f"the loss became not a finite number ({told})")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.system.parameters(), stage.train.clip or torch.inf)
        if not torch.isfinite(norm):
            raise FloatingPointError("the gradient became not a finite number")
        self.optimizer.step()
        update_centers(outputs, batch.labels, self.system, stage.loss)
        return {name: float(value.detach()) for name, value in parts.items()}

    @torch.no_grad()
    def refresh_centers(self, loss: Loss) -> Tensor | None:
        """MODC at the start of an epoch: exact centers, and (I, M) pseudo-labels where they are trained on."""
        if not (loss.center or loss.pseudo):
            return None
        own, centers, labels = self.system.attribute_of_class, self.system.centers, self.labels
        sums = torch.zeros_like(centers.value)
        for part, attribute in self.training_embeddings():
            sums += torch.einsum("bm,bmd->md", labels[part].float(), attribute[:, own])
        centers.set(sums, labels.sum(dim=0))
        if not loss.pseudo:
            return None
        cosines = [losses.center_cosines(f, centers.value, own) for _, f in self.training_embeddings()]
        cosines = torch.cat(cosines).masked_fill(~centers.seen, -1.0)  # (I, M); a class never seen is never nearest
        return losses.pseudo_labels(cosines, labels, own, self.system.multi, loss.pseudo_margin)

    def training_embeddings(self) -> Iterator[tuple[slice, Tensor]]:
        """(part of the training images, their attribute embeddings (b, N, D) in float32), in evaluation mode."""
        for start in range(0, len(self.rows), EMBED_BATCH):
            part = slice(start, start + EMBED_BATCH)
            yield part, forward(self.system, self.prepared, self.rows[part], self.variant.train.precision).attribute

    def save(self, path: Path, fingerprint: str) -> None:
        """Write a checkpoint, whole or not at all."""
        tensors = {f"system.{name}": value for name, value in self.system.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        write_whole(path, tensors, {"fingerprint": fingerprint, "history": json.dumps(self.history)})

    def resume(self, path: Path, fingerprint: str) -> bool:
        """Take up a checkpoint of this very run; one of other settings, data or code is left aside."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
            if metadata["fingerprint"] != fingerprint:
                return False
            tensors = load_file(path)
        except (OSError, SafetensorError, KeyError, TypeError):
            return False
        self.system.load_state_dict(strip(tensors, "system."))
        self.best = strip(tensors, "best.")
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in strip(tensors, "optimizer.").items():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        for weight, kept in self.optimizer.state.items():  # the fused step reads memory as it lies: channels last
            kept |= {k: torch.empty_like(weight).copy_(v) for k, v in kept.items() if v.shape == weight.shape}
        self.history = json.loads(metadata["history"])
        return True


def strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def write_whole(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial, metadata)
    os.replace(partial, path)


def run_fingerprint(prepared: Prepared, variant: Variant, seed: int, threads: int) -> str:
    """What a checkpoint belongs to: the settings, the manifest, and the code of m3lib."""
    digest = hashlib.sha256(json.dumps([asdict(variant), seed, threads]).encode())
    digest.update(pd.util.hash_pandas_object(prepared.manifest[["image", "split"]]).to_numpy().tobytes())
    digest.update(np.packbits(prepared.labels).tobytes() + f"{prepared.images.shape} {type(prepared.images)}".encode())
    for module in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()


def fit(
    prepared: Prepared, variant: Variant, seed: int, threads: int, checkpoint: Path
) -> tuple[models.System, pd.DataFrame]:
    """Train to the end, from a checkpoint where this run left one; returns the system at its best epoch, and curves.

    The curves have a row an epoch: epoch, the mean of each weighted loss, and valid_map_all (fraction). The checkpoint
    is written after every epoch; the caller removes it once the results are stored.
    """
    trainer = Trainer(prepared, variant, seed, threads)
    fingerprint = run_fingerprint(prepared, variant, seed, threads)
    if trainer.resume(checkpoint, fingerprint):
        print(f"resumed after epoch {len(trainer.history)}", file=sys.stderr)
    done, epochs = len(trainer.history), trainer.plan.epochs
    bar = tqdm(total=epochs * trainer.steps_per_epoch, initial=done * trainer.steps_per_epoch, desc=variant.name)
    with bar:
        for _ in range(done, epochs):
            trainer.run_epoch(bar)
            trainer.save(checkpoint, fingerprint)
            bar.set_postfix(valid_map=f"{100 * trainer.history[-1]['valid_map_all']:.1f}")
    trainer.system.load_state_dict(trainer.best)
    return trainer.system, pd.DataFrame(trainer.history)


@torch.no_grad()
def forward(system: models.System, prepared: Prepared, rows: np.ndarray, precision: str) -> Outputs:
    """The network's outputs for a few manifest rows, in evaluation mode."""
    system.eval()
    with autocast(precision):
        return system(batches.to_tensor(prepared.images[rows]))


def look(system: models.System, prepared: Prepared, rows: np.ndarray, precision: str) -> dict[str, Tensor]:
    """Where a network looks in some pictures: (B, N, H, W) float32 attention at pixel size, by whose it is.

    "attribute": of every attribute; "class": of the first class that the picture carries under each attribute, 0 where
    it is unknown. Sums over pixels are about 1. Empty for a network without attention.
    """
    outputs, found = forward(system, prepared, rows, precision), {}
    if outputs.attribute_maps is not None:
        found["attribute"] = outputs.attribute_maps
    if outputs.class_maps is not None:
        labels = torch.from_numpy(prepared.labels[rows])  # (B, M)
        groups = zip(labels.split(system.sizes, 1), outputs.class_maps.split(system.sizes, 1), strict=True)
        first = [(own.int().argmax(dim=1), own.any(dim=1), maps) for own, maps in groups]
        found["class"] = torch.stack([maps[range(len(rows)), m] * known[:, None] for m, known, maps in first], dim=1)
    sides = prepared.images.shape[1:3]
    with torch.no_grad():
        grid = system.backbone.features(batches.to_tensor(prepared.images[rows[:1]])).shape[2:]
    share = grid[0] * grid[1] / (sides[0] * sides[1])  # of a position's weight that each of its pixels gets
    large = {name: F.interpolate(maps.unflatten(2, grid), sides, mode="bilinear") for name, maps in found.items()}
    return {name: share * maps for name, maps in large.items()}


@torch.no_grad()
def embed(system: models.System, prepared: Prepared, rows: np.ndarray, precision: str) -> retrieval.Embeddings:
    """The embeddings of some manifest rows (rising), in evaluation mode and half precision."""
    parts: list[list[Tensor | None]] = []
    for start in range(0, len(rows), EMBED_BATCH):
        outputs = forward(system, prepared, rows[start : start + EMBED_BATCH], precision)
        kept = system.stored_attribute(outputs), system.posterior(outputs), outputs.classes
        parts.append([None if part is None else part.half() for part in kept])
    joined = (torch.cat(column) if column[0] is not None else None for column in zip(*parts, strict=True))
    return retrieval.Embeddings(torch.from_numpy(rows), *joined)
