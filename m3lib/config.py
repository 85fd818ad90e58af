"""params.yaml as frozen dataclasses, checked once; every value stands in params.yaml and nowhere else."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from m3lib.checked import Range, build, check, check_aliases, mapping, merge, read_yaml
from m3lib.errors import InputError, shown
from m3lib.taxonomy import nearest


def find_root() -> Path:
    """The workspace: the nearest folder upwards that holds dvc.yaml.

    An experiment runs in a copy of the repository; importing another copy's code would give its numbers silently,
    so that is refused.
    """
    here = Path.cwd()
    root = next((folder for folder in [here, *here.parents] if (folder / "dvc.yaml").is_file()), None)
    if root is None:
        raise InputError(f"no dvc.yaml in {here} or above it: start from inside the repository")
    if not Path(__file__).resolve().is_relative_to(root.resolve()):
        raise InputError(f"m3lib was imported from {Path(__file__).parent}, but the workspace is {root}")
    return root


def data_path(text: str) -> Path:
    """A path in params.yaml, relative to the repository that the person works in.

    An experiment from DVC's queue runs in a copy without the photos and weights; DVC_ROOT then names the original.
    """
    path = Path(os.path.expanduser(text))  # pathlib's own raises where there is no such user
    return path if path.is_absolute() else Path(os.environ.get("DVC_ROOT") or find_root()) / path


FIXED_IN_STAGES = [
    *(("train", key) for key in ("epochs", "batch", "sampler", "triplets", "optimizer", "weight_decay")),
    *(("train", key) for key in ("held_out", "precision")),
    *(("loss", key) for key in ("center_momentum", "positive_power")),
]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")  # goes into commands and file names
ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*:([0-9]{1,5})")
PRESET_SECTIONS = ("wardrobe", "csv", "benchmark", "images", "split", "model", "loss", "train", "umap", "systems")
Fraction = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0)]
Count = Annotated[int, Range(1)]
Network = Literal["classifier", "asen", "asen_v2", "asen_pp", "modc", "m3_a", "m3_c", "m3"]
Score = Literal["attribute", "segment", "soft_segment", "concat", "top_class", "weighted", "posterior"]


@dataclass(frozen=True)
class Wardrobe:
    track: Literal["multi", "single", "partial"]
    images: Annotated[int, Range(20)]
    size: Annotated[int, Range(32, 512)]
    seed: Annotated[int, Range(0)]


@dataclass(frozen=True)
class Csv:
    table: str
    image_column: str
    attributes: list
    multi: list
    single: list
    group_column: str
    split_column: str
    min_images: Count
    rare: Literal["drop", "fold"]


@dataclass(frozen=True)
class Benchmark:
    folder: str
    protocol: Literal["published", "pair", "row", "any"]
    maybe: Literal["keep", "drop"]
    box: bool
    share: Annotated[float, Range(0.0001, 1)]


@dataclass(frozen=True)
class Images:
    height: Annotated[int, Range(16, 1024)]
    width: Annotated[int, Range(16, 1024)]
    fit: Literal["crop", "pad"]
    store: Literal["raw", "jpeg"]
    max_bad: Fraction


@dataclass(frozen=True)
class Split:
    valid: Fraction
    test: Fraction
    query: Fraction


@dataclass(frozen=True)
class Model:
    backbone: str
    backbone_options: dict
    pretrained: bool
    weights: str
    input_scale: Annotated[float, Range(0.05, 1)]
    attention_width: Count
    attribute_embedding: Count
    class_embedding: Count
    queries: Literal["learned", "one_hot"]
    attention_batch_norm: bool
    attribute_conditioned: bool
    refine: bool
    local_backbone: str
    local_backbone_options: dict
    local_weights: str
    local_from_global: bool
    local_attention_width: Annotated[int, Range(2)]
    local_size: Annotated[float, Range(0.05, 1)]
    box_threshold: Fraction
    beta: Fraction
    temperature: Annotated[float, Range(0.001)]


@dataclass(frozen=True)
class Loss:
    asen_triplet: Weight
    asen_pp_local: Weight
    asen_pp_align: Weight
    modc_cluster: Weight
    modc_pseudo: Weight
    m3_classification: Weight
    m3_instance: Weight
    m3_cluster: Weight
    margin: Weight
    pseudo_margin: Weight
    hardness: Weight
    center_momentum: Fraction
    positive_power: Fraction


@dataclass(frozen=True)
class Train:
    epochs: Count
    sampler: Literal["uniform", "balanced", "asen", "asen_pp", "asen_pp_exact"]
    batch: Annotated[int, Range(2)]
    triplets: Count
    optimizer: Literal["adamw", "adam"]
    lr: Annotated[float, Range(0)]
    weight_decay: Weight
    schedule: Literal["cosine", "step"]
    warmup: Fraction
    step_epochs: Count
    step_factor: Fraction
    clip: Weight
    flip: bool
    shift: Fraction
    crop: Annotated[float, Range(0.05, 1)]
    jitter: Annotated[float, Range(0, 0.9)]
    held_out: list
    precision: Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class Umap:
    attributes: Count
    points: Annotated[int, Range(50)]
    neighbors: Annotated[int, Range(2)]
    min_dist: Fraction


@dataclass(frozen=True)
class Index:
    variant: str
    gallery: Literal["all", "test"]
    kind: Literal["auto", "exact", "compressed"]


@dataclass(frozen=True)
class Stage:
    """A part of one training, with its own losses and augmentation.

    epoch_share: its length in units of train.epochs, at least one epoch. restart: whether the schedule starts anew.
    global_lr: factor on the learning rate of all parameters but a local branch's.
    """

    epoch_share: Annotated[float, Range(0.001, 100)]
    restart: bool
    global_lr: Fraction
    loss: Loss
    train: Train


@dataclass(frozen=True)
class Variant:
    """One row of the comparison: a network, its score, and the sections with its own changes applied.

    changes: the settings that the row itself gives, such as `model.beta` or `stages.1.loss.asen_pp_align`.
    """

    name: str
    network: Network
    score: Score
    model: Model
    loss: Loss
    train: Train
    stages: tuple[Stage, ...]
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Machines:
    """Where one training runs: `devices` processes on each of `nodes` machines, which meet at `rendezvous`."""

    devices: int
    nodes: int
    rendezvous: str  # host:port of the first machine; not read where there is one

    @property
    def processes(self) -> int:
        return self.devices * self.nodes


ALONE = Machines(1, 1, "")


@dataclass(frozen=True)
class Settings:
    source: Literal["wardrobe", "csv", "deepfashion", "fashionai", "darn"]
    preset: str
    seed: Annotated[int, Range(0, 2**32 - 1)]  # UMAP takes no more
    threads: Annotated[int, Range(1, 1024)]
    accelerator: Literal["auto", "cpu", "cuda"]
    devices: Annotated[int, Range(1, 1024)]
    nodes: Annotated[int, Range(1, 1024)]
    rendezvous: str
    wardrobe: Wardrobe
    csv: Csv
    benchmark: Benchmark
    images: Images
    split: Split
    model: Model
    loss: Loss
    train: Train
    umap: Umap
    index: Index
    variants: list
    systems: dict
    presets: dict

    @property
    def machines(self) -> Machines:
        return Machines(self.devices, self.nodes, self.rendezvous)

    def variant(self, name: str) -> Variant:
        """The settings of one row; `systems.<name>` lists only what that row changes."""
        where = f"systems.{name}"
        own = self.systems[nearest(name, list(self.systems), "system in params.yaml, variants:")]
        mapping(own, where)
        for key in ("name", "changes"):
            if key in own:
                raise InputError(f"params.yaml, {where}.{key}: this follows from the row itself; remove the setting")
        own = dict(own)
        given = own.pop("stages", [])
        sections = {key: own.pop(key, {}) for key in ("model", "loss", "train")}
        merged = {key: merge(getattr(self, key), changes, f"{where}.{key}") for key, changes in sections.items()}
        stages = read_stages(given, merged, f"{where}.stages")
        changes = tuple(leaves({**sections, "stages": given}))
        return build(Variant, {"name": name, **own, **merged, "stages": stages, "changes": changes}, where)


def read_stages(stages: Any, merged: dict[str, Any], where: str) -> tuple[Stage, ...]:
    """A row's stages, each with the row's own losses and training where it changes nothing; one of them if none."""
    if not isinstance(stages, list):
        raise InputError(f"params.yaml, {where}: expected a list of stages, got {shown(stages)}")
    found = []
    for number, stage in enumerate(stages or [{"epoch_share": 1.0}]):
        at = f"{where}.{number}"
        mapping(stage, at)
        sections = {key: merge(merged[key], stage.get(key, {}), f"{at}.{key}") for key in ("loss", "train")}
        for section, key in FIXED_IN_STAGES:
            if key in stage.get(section, {}):
                raise InputError(f"params.yaml, {at}.{section}.{key}: a stage can't change this; set it for the row")
        found.append(build(Stage, {"restart": False, "global_lr": 1.0, **stage, **sections}, at))
    return tuple(found)


def leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The dotted names of every setting in nested mappings and lists of mappings."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if path == ("stages",) else None
    if items is None or path[-1:] in [("backbone_options",), ("local_backbone_options",)]:
        yield ".".join(path)
        return
    for key, value in items:
        yield from leaves(value, (*path, str(key)))


def load(path: Path) -> Settings:
    """Read and check params.yaml; raises InputError naming the first setting that is wrong."""
    values = read_yaml(path)
    check_aliases(values)
    settings = build(Settings, with_preset(values), "")
    if not settings.variants:
        raise InputError("params.yaml, variants: the list is empty; name at least one key of systems")
    for name in settings.systems:
        if not NAME.fullmatch(check(name, str, f"systems.{name}, the key itself")):
            raise InputError(f"params.yaml, systems: {shown(name)} is no name: letters, digits, _ . + -, up to 64")
    check_rendezvous(settings)
    for number, name in enumerate(settings.variants):
        settings.variant(check(name, str, "variants"))
        if name in settings.variants[:number]:
            raise InputError(f"params.yaml, variants: {name!r} is listed twice")
    if settings.index.variant:
        nearest(settings.index.variant, settings.variants, "variant in params.yaml, index.variant (one of variants):")
    if settings.split.valid + settings.split.test >= 1:
        raise InputError("params.yaml, split: valid + test must leave something to train on (less than 1)")
    return settings


def check_rendezvous(settings: Settings) -> None:
    """Raise InputError unless the machines of a training have an address to meet at."""
    found = ADDRESS.fullmatch(settings.rendezvous)
    if (settings.nodes > 1 or settings.rendezvous) and not (found and 0 < int(found[1]) < 2**16):
        wanted = f"expected host:port of the first machine (nodes: {settings.nodes}), such as 10.0.0.1:29500"
        raise InputError(f"params.yaml, rendezvous: {wanted}, got {shown(settings.rendezvous)}")


def with_preset(values: Any) -> Any:
    """The settings with the chosen preset's laid over them; a row of `systems` is replaced whole.

    `variants`, `seed` and `threads` stay out of presets: the pipeline's stages are named and cached by them.
    """
    readable = isinstance(values, dict) and isinstance(values.get("presets"), dict)
    if not readable or not isinstance(values.get("preset"), str):
        return values  # `build` says what is wrong
    presets = values["presets"]
    name = nearest(values["preset"], list(presets), "preset in params.yaml, preset:")
    where = f"presets.{name}"
    changed = dict(values)
    for section, changes in mapping(presets[name], where).items():
        if section not in PRESET_SECTIONS:
            allowed = ", ".join(PRESET_SECTIONS)
            raise InputError(f"params.yaml, {where}.{section}: a preset may set {allowed}, not this")
        changed[section] = mapping(values.get(section), section) | mapping(changes, f"{where}.{section}")
    return changed
