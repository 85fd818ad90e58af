"""Train one variant: the step, the epoch, and the run, which resumes after any epoch."""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Generator, Tensor
from tqdm import tqdm

from m3lib import config, systems
from m3lib.compatibility import losses_of
from m3lib.config import ALONE, Loss, Machines, Stage, Variant
from m3lib.data import batches, files, manifest
from m3lib.data.manifest import Prepared, hold_out
from m3lib.errors import InputError
from m3lib.retrieval import metrics, ranking
from m3lib.systems import losses
from m3lib.systems.base import Outputs, System
from m3lib.systems.losses import Batch
from m3lib.systems.objective import total_loss, update_centers
from m3lib.training import augment, checkpoint, devices, distributed, inference, samplers
from m3lib.training.schedule import StageSchedule, learning_rate, make_optimizer


def advised(variant: Variant, name: str) -> str:
    """The name of a setting for a sentence that advises to change it for a row, which may set its own value."""
    return f"{name} (systems.{variant.name}.{name}: the row sets its own)" if name in variant.own else name


class Trainer:
    """One training run: the network, its optimiser, and the history that a checkpoint holds.

    All randomness of an epoch comes from (seed, epoch), so an epoch repeats bit by bit wherever the run was resumed. It
    is drawn on the CPU, so that a seed means the same batches, augmentation and triplets on every device.
    """

    def __init__(self, prepared: Prepared, variant: Variant, seed: int, threads: int, accelerator: str = "cpu"):
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
        self.system = systems.build(variant, prepared.taxonomy).to(memory_format=torch.channels_last)
        weight = losses.positive_weights(self.labels, self.attribute_of_class, variant.loss.positive_power)
        self.system.positive_weight.copy_(weight)
        self.system.to(self.device)
        distributed.convert_batch_norms(self.system)
        self.optimizer = make_optimizer(self.system, variant.train)
        self.schedule = StageSchedule(variant)
        self.steps_per_epoch = samplers.steps_per_epoch(len(self.rows), variant.train)
        self.history: checkpoint.History = []
        self.best: dict[str, Tensor] = {}  # the weights of the epoch with the best validation MAP

    def step(
        self, batch: Batch, pixels: Tensor, stage: Stage, generator: Generator, pseudo: Tensor | None
    ) -> dict[str, Tensor]:
        """Take one training step and return its weighted losses.

        pixels: (B, H, W, 3) uint8 from `read`; pseudo: (B, M) bool, MODC's pseudo-labels. Raises FloatingPointError
        before any weight changes if the loss or its gradient is not finite.
        """
        outputs = self.forward(batch, pixels, stage, generator)
        batch, pseudo = batch.to(self.device), None if pseudo is None else pseudo.to(self.device)
        values = total_loss(outputs, batch, self.system, stage.loss, generator, pseudo)
        total = sum(values.values())

        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        distributed.all_reduce_sum(weight.grad for weight in self.system.parameters() if weight.grad is not None)
        norm = torch.nn.utils.clip_grad_norm_(self.system.parameters(), stage.train.clip or torch.inf)
        check_finite(total.detach(), norm, values)

        self.optimizer.step()
        update_centers(outputs, batch.labels, self.system, stage.loss)
        return {name: value.detach() for name, value in values.items()}

    def forward(self, batch: Batch, pixels: Tensor, stage: Stage, generator: Generator) -> Outputs:
        """Return the outputs for the global batch: augment and encode this process's slice, gather the others'."""
        images = batches.to_tensor(pixels.to(self.device, non_blocking=True))
        size = len(batch.labels)
        images = augment.augment(images, generator, stage.train, (size, distributed.rank_slice(size)))
        # losses compare images in the spaces of the batch's classes, so that only these are embedded
        class_ids = (batch.labels.any(dim=0).nonzero().flatten(),) if "classes" in self.system.outputs else ()
        with inference.autocast(stage.train.precision, self.device):
            outputs = self.system(images, *class_ids)
        embeddings = {name: getattr(outputs, name) for name in ("attribute", "local", "logits", "classes")}
        gathered = {name: distributed.gather(value) for name, value in embeddings.items() if value is not None}
        return Outputs(**gathered, class_ids=None if outputs.class_ids is None else outputs.class_ids.to(self.device))

    def read(self, batch: Batch) -> Tensor:
        """Return the pixels (b, H, W, 3) uint8 of this process's slice of a batch, on the CPU."""
        rows = self.rows[batch.index.numpy()][distributed.rank_slice(len(batch.index))]
        return batches.read(self.prepared.images, rows, pin=self.device.type == "cuda")

    def train_epoch(self, bar: tqdm) -> dict[str, float]:
        """Train for one epoch; returns the mean of each weighted loss."""
        epoch = len(self.history)
        stage = self.schedule.stage(epoch)
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        self.system.enter_stage(stage.loss)
        pseudo = self.refresh_centers(stage.loss)
        self.system.train()
        sums: dict[str, Tensor] = {}
        drawn = samplers.epoch(self.labels, self.attribute_of_class, self.variant.train, generator)
        for number, (batch, pixels) in enumerate(batches.prefetch(drawn, self.read)):
            self.set_learning_rate(epoch, number)
            try:
                values = self.step(batch, pixels, stage, generator, None if pseudo is None else pseudo[batch.index])
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
        embeddings = inference.embed(self.system, self.prepared, rows, self.variant.train.precision)
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
    def refresh_centers(self, loss: Loss) -> Tensor | None:
        """Recompute MODC's centers exactly, before an epoch; returns pseudo-labels (I, M) if the epoch uses them."""
        if not (loss.modc_cluster or loss.modc_pseudo):
            return None
        of_class, centers, labels = self.system.attribute_of_class, self.system.centers, self.labels.to(self.device)
        sums = torch.zeros_like(centers.value)
        for block, attribute in self.iter_training_embeddings():
            sums += torch.einsum("bm,bmd->md", labels[block].float(), attribute[:, of_class])
        distributed.all_reduce_sum([sums])
        centers.set(sums, labels.sum(dim=0))
        if not loss.modc_pseudo:
            return None
        cosines = torch.zeros(labels.shape, device=self.device)  # (I, M)
        for block, attribute in self.iter_training_embeddings():
            cosines[block] = losses.center_cosines(attribute, centers.value, of_class)
        distributed.all_reduce_sum([cosines])
        cosines = cosines.masked_fill(~centers.seen, -1.0)  # a class without a center is never the nearest
        return losses.pseudo_labels(cosines, labels, of_class, self.system.multi, loss.pseudo_margin).cpu()

    def iter_training_embeddings(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (block of this process's training images, attribute embeddings (b, N, D)), in evaluation mode."""
        mine = distributed.rank_slice(len(self.rows))
        for start in range(mine.start, mine.stop, inference.EMBED_BATCH):
            block = slice(start, min(start + inference.EMBED_BATCH, mine.stop))
            pixels = batches.read(self.prepared.images, self.rows[block])
            yield block, inference.predict(self.system, pixels, self.variant.train.precision).attribute

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


def fit(
    prepared: Prepared,
    variant: Variant,
    seed: int,
    threads: int,
    path: Path,
    accelerator: str = "cpu",
    machines: Machines = ALONE,
) -> tuple[System, pd.DataFrame]:
    """Train a variant, from its checkpoint if there is one; returns the network at its best epoch, and the curves.

    Curves have one row per epoch: epoch, the mean of each weighted loss, and valid_map_all (a fraction; NaN if nothing
    can be validated). The checkpoint at `path` is written after every epoch; the caller removes it after storing the
    results.

    With several processes (`machines`), this starts those of this machine, and continues from their checkpoint.
    """
    fingerprint = checkpoint.run_fingerprint(prepared, variant, seed, threads, accelerator, machines.processes)
    epochs = StageSchedule(variant).epochs
    if machines.processes > 1 and distributed.world_size() == 1:
        if len(checkpoint.read_history(path, fingerprint) or []) < epochs:
            distributed.launch(variant.name, accelerator, machines)
        if len(checkpoint.read_history(path, fingerprint) or []) < epochs:
            problem = f"{machines.processes} processes ended before their last epoch"
            raise InputError(f"{variant.name}: {problem}, for the reason above")
    if not distributed.all_equal(fingerprint):
        raise InputError(f"{variant.name}: the machines differ in params.yaml, data/prepared or code; make them equal")
    trainer = Trainer(prepared, variant, seed, threads, accelerator)
    main = distributed.is_main_process()
    if main:
        check_disk(trainer, path)
    if trainer.resume(path, fingerprint):
        print(f"resumed after epoch {len(trainer.history)}", file=sys.stderr)
    elif main and path.exists():
        reason = "checkpoint of other settings, data or code set aside"
        print(f"{reason}: training {variant.name} from the start", file=sys.stderr)
    done, steps = len(trainer.history), trainer.steps_per_epoch
    with tqdm(total=epochs * steps, initial=done * steps, desc=variant.name, disable=not main) as bar:
        for _ in range(done, epochs):
            trainer.run_epoch(bar)
            trainer.save(path, fingerprint)
            if main:
                bar.set_postfix(valid_map=f"{100 * trainer.history[-1]['valid_map_all']:.1f}")
    if main:
        trainer.system.load_state_dict(trainer.best)
    return trainer.system, pd.DataFrame(trainer.history)


def check_disk(trainer: Trainer, path: Path) -> None:
    """Raise InputError before the first step unless the disk has room for everything that the run will write."""
    prepared, sample = trainer.prepared, trainer.rows[:1]
    weights = sum(value.nbytes for value in trainer.system.state_dict().values())
    checkpoints = 2 * 4 * weights  # the old and the new one: weights, best weights, and two moments of each
    embeddings = vars(inference.embed(trainer.system, prepared, sample, "fp32")).values()
    image = sum(tensor.nbytes for tensor in embeddings if tensor is not None)
    needed = checkpoints + image * (len(prepared.rows("valid")) + len(prepared.rows("test")))
    path.parent.mkdir(parents=True, exist_ok=True)
    what = f"the checkpoints and embeddings of {trainer.variant.name} take"
    files.require_space(path.parent, needed, what, "free some space, or make model.class_embedding smaller")


def main(name: str) -> int:
    """Train the variant `name` of params.yaml as one of several processes (`distributed.launch`); returns exit status.

    The main process leaves the checkpoint of the finished run, from which the pipeline's stage continues.
    """
    root = config.find_root()
    try:
        settings = config.load(root / "params.yaml")
        prepared, variant = manifest.open_prepared(root / "data" / "prepared"), settings.variant(name)
        path, accelerator = root / "data" / "work" / f"{name}.safetensors", settings.accelerator
        with distributed.process_group(accelerator):
            fit(prepared, variant, settings.seed, settings.threads, path, accelerator, settings.machines)
    except InputError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
