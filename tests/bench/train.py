"""`make bench WHAT=train`: what a training step costs, against a plain classification step and the official style.

Every row is a ratio of two things that took turns within one run, so that a machine's mood falls out; pictures and
labels are random. The size is the default backbone's, some minutes on two cores; `python -m tests.bench.train
published` takes ResNet-50 at 224 px, which a GPU is for. Named networks are measured alone, by their steps: `python -m
tests.bench.train published m3`. Memory is the peak of a process of its own: of a GPU what torch allocated, else what
was resident.
"""

import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
from m3lib.training import augment, devices, inference, samplers
from m3lib.training import trainer as training

SYSTEMS = ("asen", "asen_v2", "asen_pp", "modc", "m3_a", "m3_c", "m3")
PLAIN = "classifier"
ROUNDS = 5  # each ratio is the median over so many turns
LABELS = 1.5  # classes of an attribute that an image carries, of the attributes known
KNOWN = 0.7  # share of the attributes that are
BASE = {"default": (64, 96, 70, 7), "published": (64, 224, 1000, 5)}  # batch, side, classes, attributes
GROWS = {  # one of them at a time: its place in BASE, and other values of it
    "default": {2: (100, 300, 1000), 3: (2, 14), 0: (128, 256), 1: (224,)},
    "published": {2: (100, 300), 3: (10,), 0: (128, 256), 1: (96,)},
}


def make_prepared(images: int, side: int, classes: int, attributes: int, folder: Path) -> Prepared:
    """Random pictures in a store on the disk, with labels of a long tail."""
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


def make_row(network: str, size: str, batch: int, **changes: object) -> Variant:
    """A row of params.yaml with every one of its losses on: its last stage's. changes: of its train settings."""
    settings = config.load(config.find_root() / "params.yaml")
    row = settings.variant(network)
    model = row.model
    if size == "published":
        large = {"backbone": "resnet50", "backbone_options": {}, "attention_width": 512, "attribute_embedding": 1024}
        local = {"local_backbone": "resnet34", "local_backbone_options": {}, "local_attention_width": 256}
        model = replace(model, **large, **local, local_from_global=False)
    last = replace(row.stages[-1], epoch_share=1.0, restart=False)
    train = {"batch": batch, "sampler": "uniform", "crop": 1.0, "jitter": 0.0} | changes
    stage = replace(last, train=replace(last.train, **train))
    return replace(row, model=model, train=replace(row.train, **train), stages=(stage,))


class Stepper:
    """A trainer at its first epoch, whose next step is a call."""

    def __init__(self, prepared: Prepared, variant: Variant, threads: int, accelerator: str):
        self.trainer = trainer = training.Trainer(prepared, variant, 0, threads, accelerator)
        self.stage, self.generator = trainer.schedule.stage(0), torch.Generator().manual_seed(0)
        trainer.system.enter_stage(self.stage.loss)
        trainer.system.train()
        trainer.set_learning_rate(0, 0)
        self.items = self.endless()

    def endless(self) -> Iterator[tuple[Batch, Tensor]]:
        trainer = self.trainer
        while True:
            drawn = samplers.epoch(trainer.labels, trainer.attribute_of_class, trainer.variant.train, self.generator)
            yield from batches.prefetch(drawn, trainer.read)

    def step(self) -> dict[str, Tensor]:
        batch, pixels = next(self.items)
        return self.trainer.step(batch, pixels, self.stage, self.generator, None)

    def load(self) -> None:
        """What a step does before the network: read, to the device, to floats, augmented."""
        _, pixels = next(self.items)
        images = batches.to_tensor(pixels.to(self.trainer.device, non_blocking=True))
        augment.augment(images, self.generator, self.stage.train)

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
        parts = [rows[k : k + inference.EMBED_BATCH] for k in range(0, len(rows), inference.EMBED_BATCH)]
        for _, pixels in batches.prefetch(parts, lambda part: batches.read(trainer.prepared.images, part)):
            with inference.autocast(self.stage.train.precision, trainer.device):
                trainer.system.backbone(batches.to_tensor(pixels.to(trainer.device))).mean(dim=1).cpu()

    def extract(self, rows: np.ndarray) -> None:
        trainer = self.trainer
        inference.embed(trainer.system, trainer.prepared, rows, self.stage.train.precision)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def by_turns(works: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds of each work, in rounds in which all take their turn; a first round that warms up is left out."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            spent = seconds(work, device)
            found[name] += [spent] if number else []
    return found


def ratio(floor: list[float], own: list[float]) -> float:
    """The median over rounds of floor / own: the share of the floor's speed."""
    return median(a / b for a, b in zip(floor, own, strict=True))


def peak(size: str, network: str, accelerator: str, threads: int, shape: tuple[int, ...]) -> float:
    """Largest memory in MB of a fresh process that makes two steps."""
    command = [sys.executable, "-m", "tests.bench.train", "peak", size, network, accelerator, str(threads)]
    done = subprocess.run([*command, *map(str, shape)], capture_output=True, text=True, cwd=config.find_root())
    return float(done.stdout.split()[-1]) if done.returncode == 0 else float("nan")


def two_steps(size: str, network: str, accelerator: str, threads: int, shape: tuple[int, ...]) -> float:
    batch, side, classes, attributes = shape
    with tempfile.TemporaryDirectory() as folder:
        prepared = make_prepared(2 * batch, side, classes, attributes, Path(folder))
        stepper = Stepper(prepared, make_row(network, size, batch), threads, accelerator)
        stepper.step()
        stepper.step()
    if stepper.trainer.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count what the parent had
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


class Bench:
    """The rows of the table, as they are measured."""

    def __init__(self, size: str, folder: Path, rounds: int):
        settings = config.load(config.find_root() / "params.yaml")
        self.size, self.folder, self.rounds, self.threads = size, folder, rounds, settings.threads
        self.accelerator = settings.accelerator
        self.device = devices.choose(self.accelerator, settings.train.precision)
        precision = devices.precision(settings.train.precision, self.device)
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else cpu_name(self.threads)
        backbone = make_row(PLAIN, size, 2).model.backbone
        date = datetime.now(UTC).date().isoformat()
        self.where = {"device": name, "backbone": backbone, "precision": precision, "date": date}
        self.rows: list[dict] = []

    def stepper(self, network: str, shape: tuple[int, ...], **changes: object) -> Stepper:
        batch, side, classes, attributes = shape
        prepared = make_prepared(max(512, 2 * batch), side, classes, attributes, self.folder)
        return Stepper(prepared, make_row(network, self.size, batch, **changes), self.threads, self.accelerator)

    def add(
        self, what: str, against: str, shape: tuple[int, ...], value: float, spent: list[float], mb: float = np.nan
    ) -> None:
        batch, side, classes, attributes = shape
        at = {"batch": batch, "side": side, "classes": classes, "attributes": attributes}
        row = {
            "what": what,
            "against": against,
            **at,
            "ratio": round(value, 3),
            "ms": round(1000 * median(spent), 1),
            "peak_mb": mb,
        }
        self.rows.append(row | self.where)
        print(*(f"{key} {told}" for key, told in row.items()), sep="  ", flush=True)

    def steps(self, networks: tuple[str, ...], shape: tuple[int, ...], memory: bool = False) -> None:
        """Each network's step in images a second, as a share of the plain classification step's."""
        steppers = {name: self.stepper(name, shape) for name in (PLAIN, *networks)}
        found = by_turns({name: s.step for name, s in steppers.items()}, self.device, self.rounds)
        for name, spent in found.items():
            mb = peak(self.size, name, self.accelerator, self.threads, shape) if memory else np.nan
            self.add(f"step of {name}", f"step of {PLAIN}", shape, ratio(found[PLAIN], spent), spent, mb)

    def official(self, shape: tuple[int, ...]) -> None:
        """Supervised (image, attribute) pairs a second: m3's step against asen_v2 as the official code steps."""
        own, rival = self.stepper("m3", shape), self.stepper("asen_v2", (48, *shape[1:]))
        found = by_turns({"own": own.step, "rival": rival.official}, self.device, self.rounds)
        known = losses.known_attributes(own.trainer.labels, own.trainer.attribute_of_class).float().sum(dim=1).mean()
        pairs = float(known) * shape[0] / 48  # an official step supervises 3 x 16 images under one attribute
        self.add("pairs/s of m3", "official step", shape, pairs * ratio(found["rival"], found["own"]), found["own"])

    def loading(self, shape: tuple[int, ...]) -> None:
        step = self.stepper("m3", shape)
        found = by_turns({"load": step.load, "step": step.step}, self.device, self.rounds)
        self.add("loading alone", "step of m3", shape, ratio(found["step"], found["load"]), found["load"])

    def extraction(self, shape: tuple[int, ...]) -> None:
        rows = np.arange(512)
        for name in ("asen_v2", "m3"):
            step = self.stepper(name, shape)
            works = {"bare": partial(step.bare, rows), "extract": partial(step.extract, rows)}
            found = by_turns(works, self.device, self.rounds)
            value = ratio(found["bare"], found["extract"])
            self.add(f"extraction by {name}", "bare backbone", shape, value, found["extract"])

    def run(self, networks: tuple[str, ...] = ()) -> pd.DataFrame:
        base = BASE[self.size]
        if networks:
            self.steps(networks, base, memory=True)
            return pd.DataFrame(self.rows)
        self.steps(SYSTEMS, base, memory=True)
        for attributes in (base[3], *GROWS[self.size][3]):  # an image's labels are what one forward pass is shared by
            self.official((*base[:3], attributes))
        for side in (96, 224):
            self.loading((base[0], side, *base[2:]))
        self.extraction(base)
        self.rounds = min(3, self.rounds)
        for place, values in GROWS[self.size].items():
            for value in values:
                shape = tuple(value if place == k else given for k, given in enumerate(base))
                self.steps(("m3",), shape, memory=True)
        return pd.DataFrame(self.rows)


def cpu_name(threads: int) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{(found or [platform.machine()])[0]}, {threads} threads"


def page(table: pd.DataFrame) -> str:
    """The table as Markdown; a section a device and date."""
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
    for name in networks:
        if name not in SYSTEMS:
            raise InputError(f"python -m tests.bench.train measures {', '.join(SYSTEMS)}, got {name!r}")
    path = config.find_root() / "data" / "results" / "training.csv"
    with tempfile.TemporaryDirectory() as folder:
        table = Bench(size, Path(folder), rounds).run(networks)
    if path.exists():  # records of other devices and sizes stay
        old, mine = pd.read_csv(path), table.iloc[0]
        others = (old["device"] != mine["device"]) | (old["backbone"] != mine["backbone"])
        table = pd.concat([old[others], table], ignore_index=True)
    table.to_csv(path, index=False)
    path.with_suffix(".md").write_text(page(table))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        _, _, size, network, accelerator, threads, *shape = sys.argv
        print(two_steps(size, network, accelerator, int(threads), tuple(map(int, shape))))
        sys.exit(0)
    try:
        sys.exit(main(*sys.argv[1:]))
    except InputError as error:
        sys.exit(f"error: {error}")
