"""Training one variant, resumable at every epoch, and embedding images with it."""

import hashlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from m3lib import batches, losses, metrics, models, retrieval
from m3lib.config import Loss, Train, Variant
from m3lib.errors import InputError
from m3lib.manifest import Prepared

EMBED_BATCH = 256  # images; only speed depends on it


def make_deterministic(seed: int, threads: int) -> None:
    """One place for seeds and kernels: equal bytes on one kind of machine with equal threads."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def autocast(precision: str) -> torch.autocast:
    """bf16 for the matrix products of the forward pass; losses and norms stay in fp32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def total_loss(
    outputs: models.Outputs, labels: Tensor, system: models.System, loss: Loss, generator: torch.Generator
) -> dict:
    """The weighted losses of one batch, by name; labels: (B, M) bool. Their sum is what is trained."""
    own = system.attribute_of_class
    anchors = losses.find_anchors(labels, own)
    parts = {}
    if loss.classification:
        parts["classification"] = loss.classification * losses.classification_loss(
            outputs.logits.float(), labels, system.positive_weight, own
        )
    if loss.attribute:
        alike = losses.attribute_similarity(outputs.attribute, anchors, own)
        pair = losses.draw_triplets(alike, anchors, loss.hardness, generator)
        parts["attribute"] = loss.attribute * losses.triplet_loss(*pair, loss.margin)
    if loss.instance or loss.cluster:
        alike = losses.class_similarity(outputs.classes, anchors)
        pair = losses.draw_triplets(alike, anchors, loss.hardness, generator)
    if loss.instance:  # Loss 2 (poster): anchor, positive and negative in the space of one class
        parts["instance"] = loss.instance * losses.triplet_loss(*pair, loss.margin)
    if loss.cluster:  # Loss 3 (poster): the positive is the class center
        parts["cluster"] = loss.cluster * cluster_loss(
            outputs.classes, anchors, pair.negative, system.centers, loss.margin
        )
    return parts


def cluster_loss(
    embedding: Tensor, anchors: losses.Anchors, negative: Tensor, centers: losses.Centers, margin: float
) -> Tensor:
    """Loss 3: max(0, margin - cos(phi_m, center_m) + cos(phi_m, phi_m of the negative)), over centers seen so far."""
    to_center = (embedding[anchors.image, anchors.class_id] * centers.value[anchors.class_id]).sum(dim=1)  # (A,)
    seen = centers.seen[anchors.class_id]
    return losses.triplet_loss(to_center[seen], negative[seen], margin)


def learning_rate(step: int, steps: int, train: Train) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    warmup = max(1, round(train.warmup * steps))
    if step < warmup:
        return train.lr * (step + 1) / warmup
    return train.lr * 0.5 * (1 + np.cos(np.pi * (step - warmup) / max(1, steps - warmup)))


class Trainer:
    """One training run: what it holds is exactly what a checkpoint holds.

    Every epoch's randomness comes from (seed, epoch), so an epoch repeats bit by bit wherever it was resumed.
    """

    def __init__(self, prepared: Prepared, variant: Variant, seed: int, threads: int):
        make_deterministic(seed, threads)
        self.prepared, self.variant, self.seed = prepared, variant, seed
        self.rows = prepared.rows("train")
        self.labels = torch.from_numpy(prepared.labels)
        self.system = models.build(variant, prepared.taxonomy).to(memory_format=torch.channels_last)
        self.system.count_classes(self.labels[self.rows], variant.loss.positive_power)
        train = variant.train
        self.optimizer = torch.optim.AdamW(
            self.system.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True
        )
        self.steps_per_epoch = max(1, len(self.rows) // train.batch)
        self.history: list[dict] = []  # one record an epoch
        self.best: dict[str, Tensor] = {}

    def train_epoch(self, bar: tqdm) -> dict[str, float]:
        """One pass over the training images; returns the mean of each loss."""
        epoch, train = len(self.history), self.variant.train
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        self.system.train()
        sums: dict[str, float] = {}
        for number, index in enumerate(batches.epoch_batches(len(self.rows), train.batch, generator)):
            self.set_learning_rate(epoch * self.steps_per_epoch + number)
            parts = self.step(self.rows[index.numpy()], generator)
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

    def set_learning_rate(self, step: int) -> None:
        value = learning_rate(step, self.steps_per_epoch * self.variant.train.epochs, self.variant.train)
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def step(self, rows: np.ndarray, generator: torch.Generator) -> dict[str, float]:
        """Forward, loss, backward, step; raises InputError, before any weight moves, when a loss is not finite."""
        train, rows = self.variant.train, np.sort(rows)  # rising rows read the memory map in one sweep
        images = batches.augment(batches.to_tensor(self.prepared.images[rows]), generator, train.flip, train.shift)
        labels = self.labels[rows]
        with autocast(train.precision):
            outputs = self.system(images)
        parts = total_loss(outputs, labels, self.system, self.variant.loss, generator)
        total = sum(parts.values())
        if not torch.isfinite(total):
            raise InputError(f"{self.variant.name}: the loss became {total.item()}; lower train.lr")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.system.parameters(), 5.0)
        self.optimizer.step()
        if self.variant.loss.cluster:
            self.system.centers.update(outputs.classes.detach(), labels)
        return {name: float(value.detach()) for name, value in parts.items()}

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
    digest.update(np.packbits(prepared.labels).tobytes() + str(prepared.images.shape).encode())
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
    done, epochs = len(trainer.history), variant.train.epochs
    bar = tqdm(total=epochs * trainer.steps_per_epoch, initial=done * trainer.steps_per_epoch, desc=variant.name)
    with bar:
        for _ in range(done, epochs):
            trainer.run_epoch(bar)
            trainer.save(checkpoint, fingerprint)
            bar.set_postfix(valid_map=f"{100 * trainer.history[-1]['valid_map_all']:.1f}")
    trainer.system.load_state_dict(trainer.best)
    return trainer.system, pd.DataFrame(trainer.history)


@torch.no_grad()
def embed(system: models.System, prepared: Prepared, rows: np.ndarray, precision: str) -> retrieval.Embeddings:
    """The embeddings of some manifest rows (rising), in evaluation mode and half precision."""
    system.eval()
    parts: list[list[Tensor | None]] = []
    for start in range(0, len(rows), EMBED_BATCH):
        images = batches.to_tensor(prepared.images[rows[start : start + EMBED_BATCH]])
        with autocast(precision):
            outputs = system(images)
        posterior = system.posterior(outputs.logits) if outputs.logits is not None else None
        parts.append([None if x is None else x.half() for x in (outputs.attribute, posterior, outputs.classes)])
    joined = (torch.cat(column) if column[0] is not None else None for column in zip(*parts, strict=True))
    return retrieval.Embeddings(torch.from_numpy(rows), *joined)
