"""Train one variant: the step and the epoch; `run` is the whole training."""

import math
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from m3lib import systems
from m3lib.compatibility import losses_of
from m3lib.config import Stage, Variant
from m3lib.data import batches
from m3lib.data.manifest import Prepared, hold_out
from m3lib.errors import InputError
from m3lib.retrieval import metrics, ranking
from m3lib.systems import losses
from m3lib.systems.base import Outputs, System
from m3lib.systems.losses import Batch
from m3lib.systems.objective import total_loss, update_centers
from m3lib.training import activations, augment, checkpoint, devices, distributed, inference, samplers
from m3lib.training.schedule import StageSchedule, learning_rate, make_optimizer


def advised(variant: Variant, name: str) -> str:
    """The name of a setting for a sentence that advises to change it for a row, which may set its own value."""
    return f"{name} (systems.{variant.name}.{name}: the row sets its own)" if name in variant.own else name


class Objective(nn.Module):
    """The losses of a global batch, with the network in it: the module whose gradients processes share."""

    def __init__(self, system: System):
        super().__init__()
        self.system = system

    def forward(
        self, images: Tensor, class_ids: Tensor, batch: Batch, pseudo: Tensor | None, stage: Stage, generator: Generator
    ) -> tuple[dict[str, Tensor], Outputs]:
        """Return the weighted losses, and what every process's slice of the batch was embedded as, without a gradient.

        images: of this process's slice; class_ids: (K,) int64, the classes of the batch. Losses compare images in
        their spaces, so that only these are embedded.
        """
        system = self.system
        with inference.autocast(stage.train.precision, images.device):
            outputs = system(images, *([class_ids] if "classes" in system.outputs else []))
        embeddings = {name: getattr(outputs, name) for name in ("attribute", "local", "logits", "classes")}
        gathered = {name: distributed.gather(value) for name, value in embeddings.items() if value is not None}
        ids = None if outputs.class_ids is None else outputs.class_ids.to(images.device)
        values = total_loss(Outputs(**gathered, class_ids=ids), batch, system, stage.loss, generator, pseudo)
        return values, Outputs(**{name: value.detach() for name, value in gathered.items()}, class_ids=ids)


class Trainer:
    """One training run: the network, its optimiser, and the history that a checkpoint holds.

    All randomness of an epoch comes from (seed, epoch), so an epoch repeats bit by bit wherever the run was resumed. It
    is drawn on the CPU, so that a seed means the same batches, augmentation and triplets on every device.
    """

    def __init__(
        self,
        prepared: Prepared,
        variant: Variant,
        seed: int,
        threads: int,
        accelerator: str = "cpu",
        cache: Path | None = None,
    ):
        """cache: a folder for the outputs of frozen blocks; without one, they are computed for every batch."""
        make_deterministic(seed, threads)
        self.device = devices.choose(accelerator, variant.train.precision)
        batch, processes = variant.train.batch, distributed.world_size()
        if batch % processes:
            problem = f"train.batch {batch} can't be shared by {processes} processes"
            raise InputError(f"{problem}: set it to a multiple (params.yaml)")
        self.prepared, self.variant, self.seed = hold_out(prepared, variant.train.held_out), variant, seed
        self.rows = prepared.rows("train")
        self.labels = torch.from_numpy(self.prepared.labels)[self.rows]  # (I, M)
        self.attribute_of_class = torch.from_numpy(prepared.taxonomy.attribute_of_class)  # (M,)
        if set(samplers.TRIPLET_LOSSES) & set(losses_of(variant)):
            samplers.check_batch(self.labels, variant.train)
        self.system = systems.build(variant, prepared.taxonomy).to(self.device, memory_format=torch.channels_last)
        if {"m3_classification", "duet_classification"} & set(losses_of(variant)):
            weight = losses.positive_weights(self.labels, self.attribute_of_class, variant.loss.positive_power)
            if "m3_classification" not in losses_of(variant):  # a softmax has no weight of positives
                weight[~self.system.multi.cpu()[self.attribute_of_class]] = 1
            self.system.positive_weight.copy_(weight)
        distributed.share_norms(self.system)
        self.objective = distributed.parallel(Objective(self.system))
        self.optimizer = make_optimizer(self.system, variant.train)
        self.schedule = StageSchedule(variant)
        self.cache = cache
        self.steps_per_epoch = samplers.steps_per_epoch(len(self.rows), variant.train)
        self.history: checkpoint.History = []
        self.best: dict[str, Tensor] = {}  # the weights of the epoch with the best validation MAP

    def step(
        self,
        batch: Batch,
        mirrored: Tensor,
        stored: Tensor,
        stage: Stage,
        generator: Generator,
        pseudo: Tensor | None,
    ) -> dict[str, Tensor]:
        """Take one training step and return its weighted losses.

        mirrored: (B,) bool, the images to mirror; stored: from `read`, pixels (B, H, W, 3) uint8 or outputs of frozen
        blocks (B, h, w, c) float16; pseudo: (B, M) bool, MODC's pseudo-labels. Raises FloatingPointError before any
        weight changes if the loss or its gradient is not finite.
        """
        images, size = batches.to_tensor(stored.to(self.device, non_blocking=True)), len(batch.labels)
        if stored.dtype == torch.uint8:
            mine = distributed.rank_slice(size)
            images = augment.augment(images, mirrored[mine], generator, stage.train, (size, mine))
        class_ids = batch.labels.any(dim=0).nonzero().flatten()  # (K,), on the CPU: a GPU would be waited for
        batch, pseudo = batch.to(self.device), None if pseudo is None else pseudo.to(self.device)
        values, outputs = self.objective(images, class_ids, batch, pseudo, stage, generator)
        total = sum(values.values())

        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.system.parameters(), stage.train.clip or torch.inf)
        check_finite(total.detach(), norm, values)

        self.optimizer.step()
        update_centers(outputs, batch.labels, self.system, stage.loss)
        return {name: value.detach() for name, value in values.items()}

    def read(self, batch: Batch, mirrored: Tensor, stage: Stage) -> Tensor:
        """Return what the network reads of this process's slice of a batch, on the CPU.

        The outputs of the frozen blocks (b, h, w, c) float16, mirrored (B,) bool or not, if they are stored and the
        stage augments in no other way; else the pixels (b, H, W, 3) uint8.
        """
        mine, pin = distributed.rank_slice(len(batch.index)), self.device.type == "cuda"
        rows = self.rows[batch.index.numpy()][mine]
        if self.outputs is None or not activations.fits(stage.train):
            return batches.read(self.prepared.images, rows, pin)
        stored = torch.from_numpy(self.outputs[rows, mirrored[mine].long().numpy()])
        return stored.pin_memory() if pin else stored

    @cached_property
    def stored(self) -> np.ndarray | None:
        """The stored outputs of the frozen blocks; None if there are none."""
        if self.cache is None:
            return None
        return activations.stored(self.system, self.prepared, self.variant, self.cache)

    @property
    def outputs(self) -> np.ndarray | None:
        """The same, but None while the network reads pixels as well."""
        return None if self.system.reads_pixels() else self.stored

    def draw(self, stage: Stage, generator: Generator) -> Iterator[tuple[Batch, Tensor]]:
        """Yield the batches of an epoch, and which of their images to mirror, (B,) bool."""
        for batch in samplers.epoch(self.labels, self.attribute_of_class, self.variant.train, generator):
            batch = samplers.with_copies(batch) if stage.train.keep_originals else batch
            chance = 0.5 if stage.train.flip else 0.0
            yield batch, torch.rand(len(batch.index), generator=generator) < chance

    def train_epoch(self, bar: tqdm) -> dict[str, float]:
        """Train for one epoch; returns the mean of each weighted loss."""
        epoch = len(self.history)
        stage = self.schedule.stage(epoch)
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        self.system.enter_stage(stage.loss)
        if epoch == self.schedule.cycle(epoch)[0]:
            self.optimizer = make_optimizer(self.system, stage.train)  # a restarted stage inherits no moments
        _ = self.outputs  # made here, and not by the thread that reads batches
        pseudo = self.guess_labels(stage.loss.pseudo_margin) if stage.loss.modc_pseudo else None
        self.system.train()
        sums: dict[str, Tensor] = {}
        read = batches.prefetch(self.draw(stage, generator), lambda drawn: self.read(*drawn, stage))
        for number, ((batch, mirrored), stored) in enumerate(read):
            self.set_learning_rate(epoch, number)
            try:
                guessed = None if pseudo is None else pseudo[batch.index]
                values = self.step(batch, mirrored, stored, stage, generator, guessed)
            except FloatingPointError as error:
                position = f"{self.variant.name}, epoch {epoch + 1}, step {number + 1}"
                raise InputError(f"{position}: {error}; lower {advised(self.variant, 'train.lr')}") from None
            except RuntimeError as error:
                if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                    raise
                problem = f"out of memory on {self.device} at train.batch {self.variant.train.batch}"
                raise InputError(f"{problem}: lower {advised(self.variant, 'train.batch')}") from None
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value.double()
            bar.update(1)
        return {name: float(value) / self.steps_per_epoch for name, value in sums.items()}

    def run_epoch(self, bar: tqdm) -> None:
        """Train for one epoch, evaluate on validation, and keep the weights unless an earlier epoch was better.

        With several processes, only the main one evaluates. If nothing can be validated, the last epoch is kept.
        """
        record = {"epoch": len(self.history) + 1, **self.train_epoch(bar)}
        self.history.append(record)
        if "centers" in self.system.outputs:
            self.refresh_centers()  # retrieval compares by them
        if not distributed.is_main_process():
            return
        record["valid_map_all"] = self.validate()
        if not record["valid_map_all"] < max(epoch["valid_map_all"] for epoch in self.history):  # NaN is never less
            self.best = {name: value.clone() for name, value in self.system.state_dict().items()}

    def validate(self) -> float:
        """Return the overall MAP@all of the validation queries, a fraction; NaN if nothing can be validated."""
        rows = self.prepared.rows("valid")
        if not len(rows):
            return math.nan
        embeddings = inference.embed(self.system, self.prepared, rows, self.variant.train.precision, self.outputs)
        scores = ranking.evaluate(self.prepared, "valid", self.variant.score, embeddings)
        return metrics.summarise(scores)["map_all"]["overall_by_query"]

    def set_learning_rate(self, epoch: int, number: int) -> None:
        """Set the learning rate of a step of an epoch."""
        stage, steps = self.schedule.stage(epoch), self.steps_per_epoch
        start, end = self.schedule.cycle(epoch)
        value = learning_rate((epoch - start) * steps + number, (end - start) * steps, stage.train, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = value * (stage.global_lr if group["global"] else 1.0)

    @torch.no_grad()
    def refresh_centers(self) -> None:
        """Set MODC's centers to the exact means of their classes' training images, as the network now embeds them."""
        of_class, centers, labels = self.system.attribute_of_class, self.system.centers, self.labels.to(self.device)
        sums = torch.zeros_like(centers.value)
        for block, attribute in self.iter_training_embeddings():
            sums += torch.einsum("bm,bmd->md", labels[block].float(), attribute[:, of_class])
        distributed.add_up(sums)
        centers.set(sums, labels.sum(dim=0))

    @torch.no_grad()
    def guess_labels(self, margin: float) -> Tensor:
        """Return MODC's pseudo-labels of the training images, (I, M) bool, by the class centers."""
        of_class, centers, labels = self.system.attribute_of_class, self.system.centers, self.labels.to(self.device)
        if not centers.seen.any():  # in the first epoch
            self.refresh_centers()
        cosines = torch.zeros(labels.shape, device=self.device)  # (I, M)
        for block, attribute in self.iter_training_embeddings():
            cosines[block] = losses.center_cosines(attribute, centers.value, of_class)
        distributed.add_up(cosines)
        cosines = cosines.masked_fill(~centers.seen, -1.0)  # a class without a center is never the nearest
        return losses.pseudo_labels(cosines, labels, of_class, self.system.multi, margin).cpu()

    def iter_training_embeddings(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (block of this process's training images, attribute embeddings (b, N, D)), in evaluation mode."""
        mine = distributed.rank_slice(len(self.rows))
        for start in range(mine.start, mine.stop, inference.EMBED_BATCH):
            block = slice(start, min(start + inference.EMBED_BATCH, mine.stop))
            store = self.prepared.images if self.outputs is None else self.outputs[:, 0]
            stored = batches.read(store, self.rows[block])
            yield block, inference.predict(self.system, stored, self.variant.train.precision).attribute

    def save(self, path: Path, fingerprint: str) -> None:
        """Write a checkpoint; with several processes, only the main one writes."""
        if distributed.is_main_process():
            checkpoint.save(path, fingerprint, self.system, self.optimizer, self.best, self.history)

    def resume(self, path: Path, fingerprint: str) -> bool:
        """Continue from the checkpoint of this run, and return whether there was one."""
        if state := checkpoint.resume(path, fingerprint, self.system, self.optimizer):
            self.best, self.history = state
        return state is not None


def make_deterministic(seed: int, threads: int) -> None:
    """Seed torch and choose deterministic kernels: equal bytes on one kind of machine with equal threads."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a check of kernels that costs a tenth of a step
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # makes CUDA's matrix products deterministic


def check_finite(total: Tensor, norm: Tensor, values: dict[str, Tensor]) -> None:
    """Raise FloatingPointError unless loss and gradient norm are finite; one check, since each waits for the GPU."""
    if not torch.isfinite(total + norm):
        listed = ", ".join(f"{name} {value.item():g}" for name, value in values.items())
        what = "gradient" if torch.isfinite(total) else "loss"
        raise FloatingPointError(f"the {what} is not a finite number ({listed})")
