"""Weighted random choices, and the factors of an image that are sampled independently of its labels."""

from collections.abc import Iterable

import numpy as np

Weights = dict[str, float]
Labels = dict[str, list[str]]  # attribute -> classes that are true of an image


def long_tail(names: str | Iterable[str], shift: float = 3, power: float = 1.0) -> Weights:
    """Return one weight per name, 1 / (rank + shift)^power; names: a list, or text with commas, most frequent first."""
    names = names.split(", ") if isinstance(names, str) else names
    return {name: 1 / (rank + shift) ** power for rank, name in enumerate(names)}


def choose(rng: np.random.Generator, weights: Weights, boost: Weights | None = None) -> str:
    """Return a random name, with a probability proportional to its weight times its boost (1 by default)."""
    boosted = {name: weight * (boost or {}).get(name, 1) for name, weight in weights.items()}
    remaining = rng.random() * sum(boosted.values())
    for name, weight in boosted.items():
        remaining -= weight
        if remaining < 0:
            return name
    return name


def sample_nuisance(rng: np.random.Generator) -> dict[str, float]:
    """Sample the Garment fields that do not depend on any class (a track may overwrite some of them afterwards)."""
    return {
        "hue": rng.random(), "saturation": rng.uniform(0.15, 0.9), "lightness": rng.uniform(0.22, 0.82),
        "ink": rng.random(), "ink_saturation": rng.uniform(0.1, 0.8),
        "pitch": rng.uniform(0.8, 1.35), "angle": rng.normal(0, 6), "depth": rng.uniform(0.8, 1.3),
        "arm": rng.uniform(12, 42), "bend": rng.uniform(-8, 34), "lean": rng.normal(0, 3),
        "turn": rng.normal(0, 4), "scale": rng.uniform(0.88, 1.1),
    }  # fmt: skip
