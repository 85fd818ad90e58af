"""Wardrobe, the benchmark of garments that are rendered here, in three tracks that mimic three public data sets.

- `multi` mimics DeepFashion: five attributes (texture, fabric, shape, part, style) with 20 or more classes each, often
  several classes per attribute, long-tailed and correlated frequencies. A style is a combination of other classes.
  15 % of the true labels are missing, as if annotators had overlooked them.
- `single` mimics DARN: nine attributes (category, button, color, ...), and exactly one class of each per image.
- `partial` mimics FashionAI: eight attributes (lengths and designs), each with a class "invisible". An image is
  labelled under one attribute only; the others are unknown.

Each image also has 15 hidden factors, the columns `factor_*` of the manifest: numbers that determine how the garment
is drawn (hue, hem, pose, camera, ...). No system sees them; analyses compare them with what a system has learnt.
Images are square, 32 to 512 pixels wide. Image `row` depends only on the seed and on `row`, not on how many there are.

multi_track, single_track, partial_track: the classes of a track, and how an image and its labels are sampled
sampling: weighted random choices, and factors that are independent of the labels
garments: the parameters of a garment, and the outlines of its pieces
patterns: textile prints and fabric surfaces
trims: collars, details, seams and buttons
scene: the person, background, camera and light
svg: colours, path data and elements
rendering: the image as SVG and as pixels
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from m3lib import config
from m3lib.data.manifest import Source
from m3lib.prepare.wardrobe import multi_track, partial_track, single_track
from m3lib.prepare.wardrobe.garments import Garment
from m3lib.prepare.wardrobe.rendering import render
from m3lib.prepare.wardrobe.sampling import Labels
from m3lib.taxonomy import Attribute, Taxonomy

# Track -> how to sample an image, the classes of each attribute, and the share of the true labels in the manifest.
TRACKS = {
    "multi": (multi_track.sample_multi, multi_track.CLASSES, 0.85),
    "single": (single_track.sample_single, single_track.CLASSES, 1.0),
    "partial": (partial_track.sample_partial, partial_track.CLASSES, 1.0),
}
HIDDEN_FACTORS = (
    "hue", "saturation", "lightness", "ink", "pitch", "angle", "hem", "lower_hem", "depth", "sleeve_length", "arm",
    "bend", "lean", "turn", "scale",
)  # fmt: skip


def taxonomy_of(track: str) -> Taxonomy:
    """Return the attributes and classes of a track, the same for every seed."""
    classes = TRACKS[track][1]
    return Taxonomy(tuple(Attribute(name, tuple(classes[name]), multi=track == "multi") for name in classes))


def sample_image(track: str, seed: int, row: int) -> tuple[Garment, Labels, np.random.Generator]:
    """Return the garment of image `row`, its true classes, and the generator that decides which labels are missing."""
    rng = np.random.default_rng([seed, row, 0])
    return *TRACKS[track][0](rng), rng


@dataclass(frozen=True)
class GarmentRenderer:
    """Draw the image of a manifest row: (size, size, 3) uint8 RGB."""

    track: str
    size: int
    seed: int

    def __call__(self, row: int) -> np.ndarray:
        garment = sample_image(self.track, self.seed, row)[0]
        return render(garment, self.size, np.random.default_rng([self.seed, row, 1]))


def read(settings: config.Wardrobe) -> Source:
    """Return the taxonomy and the manifest (with `factor_*` columns) of the track; images are drawn when loaded."""
    taxonomy, label_share = taxonomy_of(settings.track), TRACKS[settings.track][2]
    labels, factors = [], []
    for row in range(settings.images):
        garment, classes, rng = sample_image(settings.track, settings.seed, row)
        ids = sorted(taxonomy.class_id(attribute, class_) for attribute in classes for class_ in classes[attribute])
        labels.append([id_ for id_ in ids if rng.random() < label_share])
        factors.append([getattr(garment, name) for name in HIDDEN_FACTORS])
    names = [f"{settings.track}-{row:06d}" for row in range(settings.images)]
    manifest = pd.DataFrame({"image": names, "split": "", "role": "", "key": names, "labels": labels})
    manifest[[f"factor_{name}" for name in HIDDEN_FACTORS]] = np.array(factors, dtype=float)
    return Source(taxonomy, manifest, GarmentRenderer(settings.track, settings.size, settings.seed))
