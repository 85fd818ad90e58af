"""24 striped images that a network overfits in seconds, and short trainings on them."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from m3lib.config import Variant
from m3lib.data.manifest import Prepared
from m3lib.systems.base import System
from m3lib.taxonomy import Attribute, Taxonomy
from m3lib.training.run import fit
from tiny import make_prepared, make_variant

STRIPES = Taxonomy((Attribute("colour", ("red", "green", "blue")), Attribute("stripes", ("across", "down"))))
SIDE = 32


def draw_stripes(colour: int, down: bool, rng: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: bright stripes of one colour, at a random phase, in noise."""
    wave = (np.arange(SIDE) + rng.integers(8)) // 4 % 2  # (SIDE,)
    picture = rng.uniform(0, 40, (SIDE, SIDE, 3))
    picture[..., colour] += 40 + 170 * np.broadcast_to(wave if down else wave[:, None], (SIDE, SIDE))
    return picture.astype(np.uint8)


def make_stripes(seed: int = 0) -> Prepared:
    """24 pictures to train on, and the same ones as queries and candidates of validation."""
    rng, kinds = np.random.default_rng(seed), list(product(range(3), (False, True))) * 4
    images = np.stack([draw_stripes(colour, down, rng) for colour, down in kinds])
    labels = np.zeros((len(kinds), 5), bool)
    for row, (colour, down) in enumerate(kinds):
        labels[row, [colour, 3 + down]] = True
    parts = [("train", ""), ("valid", "query"), ("valid", "candidate")]
    return make_prepared(
        np.tile(labels, (3, 1)), [p for p in parts for _ in kinds], np.tile(images, (3, 1, 1, 1)), STRIPES
    )


def forget(prepared: Prepared, rows: slice, attribute: int) -> Prepared:
    """The same pictures, some of them unknown under one attribute."""
    labels = prepared.labels.copy()
    labels[rows, prepared.taxonomy.classes_of(attribute)] = False
    parts = list(zip(prepared.manifest["split"], prepared.manifest["role"], strict=True))
    return make_prepared(labels, parts, prepared.images, prepared.taxonomy)


PREPARED = make_stripes()
PARTIAL = forget(PREPARED, slice(14, 24), 1)


def short(network: str, epochs: int = 3, shares: tuple[float, ...] = (), **changes: object) -> Variant:
    """3 steps an epoch; shares: of the row's stages."""
    settings = {"batch": 8, "epochs": epochs, "lr": 0.01, "warmup": 0.1, "flip": True, "shift": 0.1}
    variant = make_variant(network, **(settings | changes))
    stages = [replace(stage, epoch_share=share) for stage, share in zip(variant.stages, shares, strict=bool(shares))]
    return replace(variant, stages=tuple(stages) or variant.stages)


def run(variant: Variant, path: Path, seed: int = 3, prepared: Prepared = PREPARED) -> tuple[System, list[dict]]:
    system, curves = fit(prepared, variant, seed, 1, path)
    return system, curves.to_dict("records")


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def weights(system: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in system.named_parameters()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}
