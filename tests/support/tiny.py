"""What several tests share: a small taxonomy, random labels, tiny variants of the repository's rows, a Prepared."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from torch import nn

from m3lib import config, systems
from m3lib.data.manifest import Prepared
from m3lib.systems.base import System
from m3lib.taxonomy import Attribute, Taxonomy

ROOT = Path(__file__).parents[2]
VALUES = yaml.safe_load((ROOT / "params.yaml").read_text())
SETTINGS = config.load(ROOT / "params.yaml")
PUBLISHED = config.parse(VALUES | {"preset": "published"})
TAXONOMY = Taxonomy(
    (
        Attribute("colour", ("red", "green", "blue")),
        Attribute("details", ("pocket", "collar", "belt", "hood"), multi=True),
        Attribute("sleeve", ("long", "short")),
    )
)
OWN = torch.from_numpy(TAXONOMY.attribute_of_class)  # (M,)
BACKBONE = {"channels": [8, 8, 16, 16], "stem_width": 8}
MODEL = {
    "backbone": "resnet10t", "backbone_options": BACKBONE, "pretrained": False, "weights": "", "trainable": "all",
    "attention_width": 12, "attribute_embedding": 10, "class_embedding": 6, "class_projection": "own",
    "normalise_queries": True, "local_weights": "", "local_attention_width": 8,
    "local_backbone": "resnet10t", "local_backbone_options": dict(BACKBONE),  # two mappings in a params.yaml too
}  # fmt: skip
MODEL_SETTINGS = {field.name for field in fields(config.Model)}


def make_variant(
    network: str, score: str | None = None, loss: dict | None = None, settings: config.Settings = SETTINGS, **changes
) -> config.Variant:
    """A row of params.yaml on a tiny backbone, in float32; changes: of its train and model settings.

    Each stage of the row gets the changes of loss and train too, over what the stage itself sets.
    """
    row = settings.variant(network)
    model = {key: changes.pop(key) for key in list(changes) if key in MODEL_SETTINGS}
    loss, train = loss or {}, {"precision": "fp32"} | changes
    return replace(
        row,
        score=score or row.score,
        model=replace(row.model, **(MODEL | model)),
        loss=replace(row.loss, **loss),
        train=replace(row.train, **train),
        stages=tuple(
            replace(stage, loss=replace(stage.loss, **loss), train=replace(stage.train, **train))
            for stage in row.stages
        ),
    )


def random_labels(kind: str, size: int, rng: np.random.Generator, taxonomy: Taxonomy = TAXONOMY) -> np.ndarray:
    """(size, M) bool. single: one class per attribute; multi: one or more; partial: several attributes unknown."""
    hot = np.zeros((size, taxonomy.num_classes), dtype=bool)
    for row in hot:
        for n in range(taxonomy.num_attributes):
            own = row[taxonomy.classes_of(n)]  # a view
            if kind == "partial" and rng.random() < 0.5:
                continue
            own[rng.integers(len(own))] = True
            if kind != "single":
                own |= rng.random(len(own)) < 0.25
    return hot


def make_prepared(
    labels: np.ndarray,
    parts: Sequence[tuple[str, str]],
    images: np.ndarray | None = None,
    taxonomy: Taxonomy = TAXONOMY,
) -> Prepared:
    """labels: (I, M) bool; parts: (split, role) of every image."""
    splits, roles = zip(*parts, strict=True)
    names = [f"{i:03}.jpg" for i in range(len(labels))]
    ids = [np.flatnonzero(row).tolist() for row in labels]
    manifest = pd.DataFrame({"image": names, "split": splits, "role": roles, "labels": ids})
    return Prepared(taxonomy, manifest, np.zeros((len(labels), 4, 4, 3), np.uint8) if images is None else images)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit_rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rows = torch.randn(*shape, generator=generator(seed), dtype=torch.float64)
    return nn.functional.normalize(rows, dim=-1).to(dtype)


def make_system(
    network: str, seed: int = 0, taxonomy: Taxonomy = TAXONOMY, loss: dict | None = None, **model: object
) -> System:
    """A tiny network whose batch norms are past their first state, so that each of their numbers counts."""
    torch.manual_seed(seed)
    system = systems.build(make_variant(network, loss=loss, **model), taxonomy)
    for module in system.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            unsettle(module)
    return system


def unsettle(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    nn.init.normal_(norm.running_mean, 0, 0.3)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, 0, 0.3)


def make_whole_system(network: str, seed: int = 0, loss: dict | None = None, **model: object) -> System:
    """make_system in its last stage: ASEN++ with its local branch joined, whose backbone is its own here."""
    system = make_system(network, seed, loss=loss, **{"local_from_global": False} | model)
    system.enter_stage(make_variant(network).stages[-1].loss)
    return system
