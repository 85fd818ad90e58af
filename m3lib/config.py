"""params.yaml as frozen settings, validated once by pydantic. Each setting has one place, in params.yaml."""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from m3lib.compatibility import COMMON_SETTINGS, LOSSES, SCORES, check_variant, declaration
from m3lib.errors import InputError
from m3lib.kinds import Count, Flag, Fraction, Text, Weight, integer, number
from m3lib.layers import with_preset, with_source
from m3lib.validation import general_faults, mapping, read_yaml, row_faults, row_values, validate


def find_root() -> Path:
    """Return the workspace: the nearest folder upwards that holds dvc.yaml.

    Raises InputError outside a workspace, and for a workspace whose m3lib is not the imported one: an experiment runs
    in a copy of the repository, and another copy's code would silently produce its numbers.
    """
    here = Path.cwd()
    root = next((folder for folder in [here, *here.parents] if (folder / "dvc.yaml").is_file()), None)
    if root is None:
        raise InputError(f"no dvc.yaml in {here} or above it: start from inside the repository")
    if not Path(__file__).resolve().is_relative_to(root.resolve()):
        raise InputError(f"m3lib was imported from {Path(__file__).parent}, but the workspace is {root}")
    return root


def data_path(text: str) -> Path:
    """Resolve a path of params.yaml, relative to the original repository.

    A queued experiment runs in a copy without the photos and weights; DVC_ROOT then names the original.
    """
    path = Path(os.path.expanduser(text))  # Path.expanduser raises where the user does not exist
    return path if path.is_absolute() else Path(os.environ.get("DVC_ROOT") or find_root()) / path


FORBID = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=FORBID)
class Wardrobe:
    track: Literal["multi", "single", "partial"]
    images: integer(20)
    size: integer(32, 512)
    seed: integer(0)


@dataclass(frozen=True, config=FORBID)
class Csv:
    table: Text
    delimiter: Literal["auto", "comma", "semicolon", "tab", "bar"]
    image_column: Text
    attributes: list[Text]
    multi: list[Text]
    single: list[Text]
    group_column: Text
    split_column: Text
    max_broken: Fraction
    separator: Annotated[Text, Field(min_length=1)]
    missing: list[Text]
    spellings: Literal["merge", "keep"]
    rename: dict[Text, dict[Text, Text]]
    min_images: Count
    rare: Literal["drop", "fold"]


@dataclass(frozen=True, config=FORBID)
class Benchmark:
    folder: Text
    protocol: Literal["published", "pair", "row", "any"]
    fraction: number(0.0001, 1)


@dataclass(frozen=True, config=FORBID)
class Images:
    height: integer(16, 1024)
    width: integer(16, 1024)
    fit: Literal["crop", "pad"]
    format: Literal["raw", "jpeg"]
    max_unreadable: Fraction


@dataclass(frozen=True, config=FORBID)
class Split:
    valid: Fraction
    test: Fraction
    query: Fraction
    group_duplicates: Flag
    seed: integer(0)


@dataclass(frozen=True, config=FORBID)
class Model:
    backbone: Text
    backbone_options: dict[Text, Any]
    pretrained: Flag
    weights: Text
    trainable: Text
    cache_frozen: Flag
    input_scale: number(0.05, 1)
    attention_width: Count
    attribute_embedding: Count
    class_embedding: Count
    class_projection: Literal["own", "factored", "masked", "shared"]
    normalise_queries: Flag
    queries: Literal["learned", "one_hot"]
    attention_batch_norm: Flag
    attribute_conditioned: Flag
    refine: Flag
    local_backbone: Text
    local_backbone_options: dict[Text, Any]
    local_weights: Text
    local_from_global: Flag
    local_attention_width: integer(2)
    local_size: number(0.05, 1)
    box_threshold: Fraction
    beta: Fraction
    temperature: Annotated[float, Field(strict=True, ge=0.001, allow_inf_nan=False)]
    views: Literal[1, 2]


@dataclass(frozen=True, config=FORBID)
class Loss:
    classification: Weight
    asen_triplet: Weight
    asen_pp_local: Weight
    asen_pp_align: Weight
    modc_cluster: Weight
    modc_pseudo: Weight
    m3_classification: Weight
    m3_instance: Weight
    m3_cluster: Weight
    duet_classification: Weight
    pairs: Literal["drawn", "all"]
    contrast_temperature: number(0.01, 100)
    margin: Weight
    pseudo_margin: Weight
    hardness: Weight
    center_momentum: Fraction
    positive_power: Fraction


@dataclass(frozen=True, config=FORBID)
class Train:
    epochs: Count
    sampler: Literal["uniform", "balanced", "asen", "asen_pp", "asen_pp_exact"]
    batch: integer(2)
    triplets: Count
    optimizer: Literal["adamw", "adam"]
    lr: Weight
    weight_decay: Weight
    schedule: Literal["cosine", "step"]
    warmup: Fraction
    step_epochs: Count
    step_factor: Fraction
    clip: Weight
    flip: Flag
    shift: Fraction
    crop: number(0.05, 1)
    jitter: number(0, 0.9)
    keep_originals: Flag
    held_out: list[Text]
    precision: Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True, config=FORBID)
class Umap:
    attributes: Count
    points: integer(50)
    neighbors: integer(2)
    min_dist: Fraction


@dataclass(frozen=True, config=FORBID)
class Index:
    variant: Text
    images: Literal["all", "test"]
    kind: Literal["auto", "exact", "compressed"]
    engine: Literal["faiss", "lancedb"]
    uri: Text
    columns: list[Text]


@dataclass(frozen=True, config=FORBID)
class Stage:
    """One stage of a training, with its losses and augmentation.

    epoch_share: length in units of train.epochs, at least one epoch. restart: whether a new optimiser begins a new
    learning-rate schedule. global_lr: factor on the learning rate of all parameters except a local branch's.
    """

    epoch_share: number(0.001, 100)
    restart: Flag
    global_lr: Fraction
    loss: Loss
    train: Train


@dataclass(frozen=True, config=FORBID)
class Variant:
    """One row of the comparison: a network, its score, and the sections with the row's changes applied.

    changes: what the row itself lists, such as `model.beta` or `stages.1.loss.asen_pp_align`. own: what it or a row
    that it is like lists in `model`, `loss` and `train`, so that the general settings do not reach it.
    """

    name: Text
    network: Text
    score: Literal[tuple(SCORES)]
    model: Model
    loss: Loss
    train: Train
    stages: tuple[Stage, ...]
    changes: tuple[Text, ...]
    own: tuple[Text, ...]

    def resolved(self) -> dict:
        """Everything that decides this row's training, for JSON: only settings that its network reads, only losses
        with a weight, so that a setting added for another network does not make this row stale. Where a value is set
        does not count."""
        read = COMMON_SETTINGS | declaration(self.network).settings
        values = asdict(replace(self, changes=(), own=()))
        values["model"] = {key: value for key, value in values["model"].items() if key in read}
        for section in (values, *values["stages"]):
            section["loss"] = {key: value for key, value in section["loss"].items() if value or key not in LOSSES}
        del values["changes"], values["own"]
        return values


@dataclass(frozen=True, config=FORBID)
class Settings:
    source: Literal["wardrobe", "csv", "deepfashion", "fashionai", "darn"]
    preset: Text
    seed: integer(0, 2**32 - 1)  # UMAP's limit
    threads: integer(1, 1024)
    accelerator: Literal["auto", "cpu", "cuda"]
    devices: integer(1, 1024)
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
    variants: list[Text]
    systems: dict[Text, Any]
    sources: dict[Text, Any]
    presets: dict[Text, Any]

    def variant(self, name: str) -> Variant:
        """Resolve one row: the general sections, then the rows it is `like`, then its own changes.

        Raises InputError with every fault of the row.
        """
        variant = validate(Variant, row_values(name, self), f"systems.{name}")
        check_variant(variant)
        return variant


def parse(values: dict) -> Settings:
    """Validate the values of params.yaml, with the preset laid over them and each `auto` replaced (m3lib.layers).

    Raises InputError with the faults of each setting; not with those of the rows.
    """
    return validate(Settings, with_source(with_preset(values), Settings))


def load(path: Path) -> Settings:
    """Read and validate params.yaml and every row of it, as `parse` does. Raises InputError with all faults."""
    settings = parse(mapping(read_yaml(path), "top level"))
    if faults := [*general_faults(settings), *row_faults(settings)]:
        raise InputError("params.yaml", *faults)
    return settings
