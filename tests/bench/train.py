"""`make bench WHAT=train`: the cost of a training step beside a plain classification step and the official style.

Every row is a ratio of two works that take turns within one run, so that a change of the machine's speed cancels out;
images and labels are random. The size is the default backbone's, some minutes on two cores; `python -m
tests.bench.train published` takes ResNet-50 at 224 px, which needs a GPU. With names of rows, only their steps are
measured: `python -m tests.bench.train published m3`. Memory is the peak of a new process.
"""

import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from m3lib import config
from m3lib.analysis.markdown import markdown_table
from m3lib.config import Variant
from m3lib.data import batches
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.systems import losses
from m3lib.systems.losses import Batch
from m3lib.taxonomy import Attribute, Taxonomy
from m3lib.training import augment, devices, inference
from m3lib.training import trainer as training
from tests.bench.measure import in_new_process, seconds

PLAIN = "classifier"
ROUNDS = 5  # each ratio is the median over these
LABELS = 1.5  # classes of an attribute that an image carries, of the labelled attributes
KNOWN = 0.7  # share of the attributes that are labelled
BASE = {"default": (64, 96, 70, 7), "published": (64, 224, 1000, 5)}  # batch, side, classes, attributes
GROWS = {  # one at a time: its position in BASE, and other values of it
    "default": {2: (100, 300, 1000), 3: (2, 14), 0: (128, 256), 1: (224,)},
    "published": {2: (100, 300), 3: (10,), 0: (128, 256), 1: (96,)},
}


def make_prepared(images: int, side: int, classes: int, attributes: int, folder: Path) -> Prepared:
    """Random images in a store on the disk, with long-tailed labels."""
    rng = np.random.default_rng(0)
    sizes = np.full(attributes, classes // attributes) + (np.arange(attributes) < classes % attributes)
    taxonomy = Taxonomy(
        tuple(
            Attribute(f"attribute {n}", tuple(f"{n}-{k}" for k in range(size)), multi=True)
            for n, size in enumerate(sizes)
        )
    )
    labels = []
    for _ in range(images):
        ids = set()
        for n in np.flatnonzero(rng.random(attributes) < KNOWN):
            count = 1 + rng.poisson(LABELS - 1)
            ids |= set((taxonomy.offsets[n] + (rng.random(count) ** 2 * sizes[n]).astype(int)).tolist())
        labels.append(sorted(ids))
    names = [f"{i}.jpg" for i in range(images)]
    table = pd.DataFrame({"image": names, "split": "train", "role": "", "labels": labels})
    path = folder / f"{images}-{side}.npy"
    if not path.exists():
        store = np.lib.format.open_memmap(path, "w+", np.uint8, (images, side, side, 3))
        store[:] = rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8)
        store.flush()
    return Prepared(taxonomy, table, np.load(path, mmap_mode="r"))


def make_row(network: str, size: str, batch: int) -> Variant:
    """A row of params.yaml with the losses of its last stage, which are all of them."""
    settings = config.load(config.find_root() / "params.yaml")
    row = settings.variant(network)
    model = row.model
    if size == "published":
        large = {"backbone": "resnet50", "pretrained": False, "trainable": "all"}
        large |= {"attention_width": 512, "attribute_embedding": 1024}
        local = {"local_backbone": "resnet34", "local_backbone_options": {}, "local_attention_width": 256}
        model = replace(model, **large, **local, local_from_global=False)
    last = replace(row.stages[-1], epoch_share=1.0, restart=False)
    train = {"batch": batch, "sampler": "uniform", "crop": 1.0, "jitter": 0.0}
    stage = replace(last, train=replace(last.train, **train))
    return replace(row, model=model, train=replace(row.train, **train), stages=(stage,))


class Stepper:
    """A trainer at its first epoch, whose next step is a call."""

    def __init__(self, prepared: Prepared, variant: Variant, threads: int, accelerator: str, cache: Path | None = None):
        """cache: a folder for the outputs of frozen blocks, which steps then read instead of images."""
        self.trainer = trainer = training.Trainer(prepared, variant, 0, threads, accelerator, cache)
        self.stage, self.generator = trainer.schedule.stage(0), torch.Generator().manual_seed(0)
        trainer.system.enter_stage(self.stage.loss)
        trainer.system.train()
        trainer.set_learning_rate(0, 0)
        self.items = self.endless()

    def endless(self) -> Iterator[tuple[tuple[Batch, Tensor], Tensor]]:
        trainer = self.trainer
        while True:
            drawn = trainer.draw(self.stage, self.generator)
            yield from batches.prefetch(drawn, lambda item: trainer.read(*item, self.stage))

    def step(self) -> dict[str, Tensor]:
        (batch, mirrored), pixels = next(self.items)
        return self.trainer.step(batch, mirrored, pixels, self.stage, self.generator, None)

    def load(self) -> None:
        """What a step does before the network: read, to the device, to floats, augmented."""
        (_, mirrored), pixels = next(self.items)
        images = batches.to_tensor(pixels.to(self.trainer.device, non_blocking=True))
        augment.augment(images, mirrored, self.generator, self.stage.train)

    def official(self) -> None:
        """The official style: triplets of one attribute, a forward pass each of anchors, positives and negatives."""
        trainer, rows = self.trainer, next(self.items)[1]
        third = len(rows) // 3
        images = batches.to_tensor(rows.to(trainer.device))
        with inference.autocast(self.stage.train.precision, trainer.device):
            a, p, n = (trainer.system(part).attribute[:, 0] for part in images.split(third)[:3])
        loss = losses.triplet_loss((a * p).sum(dim=1), (a * n).sum(dim=1), self.stage.loss.margin)
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trainer.optimizer.step()

    @torch.no_grad()
    def bare(self, rows: np.ndarray) -> None:
        """The backbone alone over some images, as extraction reads them."""
        trainer = self.trainer
        trainer.system.eval()
        parts = [rows[part] for part in inference.slices(len(rows), trainer.device.type == "cuda")]
        for _, pixels in batches.prefetch(parts, lambda part: batches.read(trainer.prepared.images, part)):
            with inference.autocast(self.stage.train.precision, trainer.device):
                trainer.system.backbone(batches.to_tensor(pixels.to(trainer.device))).mean(dim=1).cpu()

    def extract(self, rows: np.ndarray) -> None:
        trainer = self.trainer
        inference.embed(trainer.system, trainer.prepared, rows, self.stage.train.precision)


def take_turns(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each work in every round; a first round that warms up is left out."""
    times = [{name: seconds(work) for name, work in works.items()} for _ in range(rounds + 1)]
    return {name: [spent[name] for spent in times[1:]] for name in works}


def ratio(reference: list[float], times: list[float]) -> float:
    """The median over rounds of reference / times: the share of the reference's speed."""
    return median(a / b for a, b in zip(reference, times, strict=True))


def two_steps(size: str, network: str, accelerator: str, threads: int, shape: Sequence[int]) -> None:
    batch, side, classes, attributes = shape
    with tempfile.TemporaryDirectory() as folder:
        prepared = make_prepared(2 * batch, side, classes, attributes, Path(folder))
        stepper = Stepper(prepared, make_row(network, size, batch), threads, accelerator)
        stepper.step()
        stepper.step()


class Bench:
    """The rows of the table, as they are measured."""

    def __init__(self, size: str, folder: Path, rounds: int):
        settings = config.load(config.find_root() / "params.yaml")
        self.size, self.folder, self.rounds, self.threads = size, folder, rounds, settings.threads
        self.accelerator, self.variants = settings.accelerator, settings.variants
        device = devices.choose(self.accelerator, settings.train.precision)
        name = torch.cuda.get_device_name() if device.type == "cuda" else f"{cpu_name()}, {self.threads} threads"
        self.machine = {
            "device": name,
            "backbone": make_row(PLAIN, size, 2).model.backbone,
            "precision": devices.precision(settings.train.precision, device),
            "date": datetime.now(UTC).date().isoformat(),
        }
        self.rows: list[dict] = []

    def stepper(self, network: str, shape: Sequence[int], cache: Path | None = None) -> Stepper:
        batch, side, classes, attributes = shape
        prepared = make_prepared(max(512, 2 * batch), side, classes, attributes, self.folder)
        return Stepper(prepared, make_row(network, self.size, batch), self.threads, self.accelerator, cache)

    def peak_mb(self, network: str, shape: Sequence[int]) -> float:
        try:
            measured = in_new_process("train.two_steps", self.size, network, self.accelerator, self.threads, shape)
        except subprocess.CalledProcessError:  # out of memory
            return np.nan
        return 1000 * measured["peak GB"]

    def add(self, what: str, against: str, shape: Sequence[int], value: float, spent: list[float], mb: float = np.nan):
        row = {"what": what, "against": against}
        row |= dict(zip(("batch", "side", "classes", "attributes"), shape, strict=True))
        row |= {"ratio": round(value, 3), "ms": round(1000 * median(spent), 1), "peak_mb": mb}
        self.rows.append(row | self.machine)
        print(*(f"{key} {value}" for key, value in row.items()), sep="  ", flush=True)

    def steps(self, networks: Sequence[str], shape: Sequence[int]) -> None:
        """Each network's step in images per second, as a share of the plain classification step's; and its memory.

        As in the pipeline, a step reads the stored outputs of frozen blocks.
        """
        cache = self.folder / "activations"
        steppers = {name: self.stepper(name, shape, cache) for name in dict.fromkeys((PLAIN, *networks))}
        times = take_turns({name: s.step for name, s in steppers.items()}, self.rounds)
        for name, spent in times.items():
            mb = self.peak_mb(name, shape)
            self.add(f"step of {name}", f"step of {PLAIN}", shape, ratio(times[PLAIN], spent), spent, mb)

    def official(self, shape: Sequence[int]) -> None:
        """Supervised (image, attribute) pairs per second: m3's step against asen_v2 as the official code steps."""
        m3, asen = self.stepper("m3", shape), self.stepper("asen_v2", (48, *shape[1:]))
        times = take_turns({"m3": m3.step, "official": asen.official}, self.rounds)
        known = losses.known_attributes(m3.trainer.labels, m3.trainer.attribute_of_class).float().sum(dim=1).mean()
        pairs = float(known) * shape[0] / 48  # an official step supervises 3 x 16 images under one attribute
        self.add("pairs/s of m3", "official step", shape, pairs * ratio(times["official"], times["m3"]), times["m3"])

    def loading(self, shape: Sequence[int]) -> None:
        stepper = self.stepper("m3", shape)
        times = take_turns({"load": stepper.load, "step": stepper.step}, self.rounds)
        self.add("loading only", "step of m3", shape, ratio(times["step"], times["load"]), times["load"])

    def extraction(self, shape: Sequence[int]) -> None:
        for name in ("asen_v2", "m3"):
            stepper = self.stepper(name, shape)
            rows = np.arange(len(stepper.trainer.rows))
            works = {"bare": partial(stepper.bare, rows), "extract": partial(stepper.extract, rows)}
            times = take_turns(works, self.rounds)
            value = ratio(times["bare"], times["extract"])
            self.add(f"extraction by {name}", "bare backbone", shape, value, times["extract"])

    def run(self, networks: Sequence[str] = ()) -> pd.DataFrame:
        base = BASE[self.size]
        self.steps(networks or self.variants, base)
        if networks:
            return pd.DataFrame(self.rows)
        for attributes in (base[3], *GROWS[self.size][3]):  # one forward pass serves all labels of an image
            self.official((*base[:3], attributes))
        for side in (96, 224):
            self.loading((base[0], side, *base[2:]))
        self.extraction(base)
        self.rounds = min(3, self.rounds)
        for position, values in GROWS[self.size].items():
            for value in values:
                self.steps(("m3",), (*base[:position], value, *base[position + 1 :]))
        return pd.DataFrame(self.rows)


def cpu_name() -> str:
    return re.search(r"model name\s*: (.*)|$", Path("/proc/cpuinfo").read_text())[1] or platform.machine()


def page(table: pd.DataFrame) -> str:
    """The table as Markdown, one section per device and date."""
    about = "A ratio is a share of the other's speed, both in turns within one run: 1 is as fast, above 1 is faster."
    parts = ["# Training, measured", "", "Written by `make bench WHAT=train` from `data/results/training.csv`.", about]
    columns = ["what", "against", "batch", "side", "classes", "attributes", "ratio", "ms", "peak_mb"]
    for keys, rows in table.groupby(["device", "backbone", "precision", "date"], sort=False):
        memory = rows["peak_mb"].map(lambda value: "" if pd.isna(value) else f"{value:.0f}")
        cells = rows.assign(peak_mb=memory)[columns].astype(str).set_index("what")
        parts += ["", f"## {', '.join(map(str, keys))}", "", markdown_table(cells)]
    return "\n".join(parts) + "\n"


def main(size: str = "default", *networks: str, rounds: int = ROUNDS) -> int:
    if size not in BASE:
        raise InputError(f"python -m tests.bench.train takes one of {', '.join(BASE)}, got {size!r}")
    path = config.find_root() / "data" / "results" / "training.csv"
    for name in networks:
        make_row(name, size, 2)  # raises InputError for a wrong name before anything is measured
    with tempfile.TemporaryDirectory() as folder:
        table = Bench(size, Path(folder), rounds).run(networks)
    if path.exists():  # records of other devices and sizes stay
        old, new = pd.read_csv(path), table.iloc[0]
        others = (old["device"] != new["device"]) | (old["backbone"] != new["backbone"])
        table = pd.concat([old[others], table], ignore_index=True)
    table.to_csv(path, index=False)
    path.with_suffix(".md").write_text(page(table))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except InputError as error:
        sys.exit(f"error: {error}")
