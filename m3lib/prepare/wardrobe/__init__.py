"""The drawn benchmark: three tracks that mirror DeepFashion (multi), DARN (single) and FashionAI (partial).

Image `row` depends on (seed, row) alone: on no other image, on no order, and not on how many are asked for.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from m3lib import config
from m3lib.data.manifest import Source, assign_roles, assign_splits
from m3lib.prepare.wardrobe.garments import Garment, draw
from m3lib.prepare.wardrobe.multi_track import (
    CUT,
    DETAIL,
    FABRIC,
    HEM,
    LENGTH,
    NECKS,
    SHAPED,
    STYLES,
    TEXTURE,
    Truth,
    Weights,
    nuisance,
    pick,
    sample_multi,
    tail,
)
from m3lib.taxonomy import Attribute, Taxonomy

KEEP = 0.85  # share of the true labels that annotators wrote down, multi track
HIDDEN = (
    "hue", "saturation", "lightness", "ink", "pitch", "angle", "hem", "lower_hem", "depth", "sleeve_length", "arm",
    "bend", "lean", "turn", "scale",
)  # fmt: skip

# ---------------------------------------------------------------- single, after DARN

# Category: how it is built, and the lengths it comes in.
BUILDS: dict[str, tuple[dict, str]] = {
    "tee": ({"lower": "trousers"}, "crop, waist, hip, thigh"),
    "dress": ({"details": ("waist seam",)}, "knee, thigh, floor, hip"),
    "shirt": ({"lower": "trousers", "details": ("panel", "pocket")}, "hip, waist, thigh, crop"),
    "blouse": ({"lower": "trousers", "details": ("tie waist",)}, "hip, waist, thigh"),
    "sweater": ({"lower": "trousers", "details": ("rib hem",), "cuff": True}, "hip, waist, thigh, crop"),
    "coat": ({"lower": "trousers", "open_front": True, "details": ("pocket",)}, "knee, thigh, floor"),
    "jacket": ({"lower": "trousers", "open_front": True, "details": ("epaulettes",)}, "waist, hip, crop"),
    "skirt set": ({"lower": "skirt", "worn": "both"}, "knee, thigh, floor"),
    "hoodie": ({"lower": "trousers", "details": ("kangaroo", "hood back")}, "hip, thigh, waist"),
    "jumpsuit": ({"lower": "trousers", "worn": "both", "details": ("belt",)}, "floor, knee, thigh"),
    "vest": ({"lower": "trousers", "contrast_sleeves": True}, "hip, waist, thigh"),
    "cardigan": ({"lower": "trousers", "open_front": True, "details": ("rib hem",)}, "hip, thigh, knee"),
    "gown": ({"details": ("train", "waist seam")}, "floor, knee"),
    "overalls": ({"lower": "trousers", "worn": "lower", "details": ("bib",)}, "floor, thigh, knee"),
}
BUILD = tail(", ".join(BUILDS), shift=6)
LENGTHS = {
    "crop": (47, 49),
    "waist": (52, 54.5),
    "hip": (58, 62),
    "thigh": (66, 71),
    "knee": (78, 84),
    "floor": (97, 103),
}
BUTTON = tail("no button, row, placket, double, single, toggles")
SINGLE_PATTERN = tail(
    "solid, horizontal stripe, floral, plaid, polka dot, vertical stripe, leopard, gingham, leaf, chevron, abstract, "
    "camouflage, star, heart", shift=4,
)  # fmt: skip
SINGLE_SHAPE = tail("straight, fitted, a-line, boxy, bodycon, oversized, swing, cocoon", shift=4)
COLLAR = {
    "no collar": ("crew", ""), "shirt": ("crew", "shirt"), "v neck": ("v", ""), "notched lapel": ("v", "notched lapel"),
    "turtleneck": ("crew", "turtleneck"), "bow": ("crew", "pussy bow"), "peter pan": ("crew", "peter pan"),
    "shawl": ("v", "shawl"),
}  # fmt: skip
SLEEVE_LENGTH = {"short": (0.29, 0.35), "long": (0.85, 0.9), "sleeveless": (0, 0), "three quarter": (0.65, 0.7),
                 "elbow": (0.47, 0.52), "cap": (0.13, 0.17)}  # fmt: skip
SLEEVE_SHAPE = {"straight": "straight", "puff": "puff", "bell": "bell", "batwing": "batwing", "balloon": "bishop",
                "wide": "wide"}  # fmt: skip
# Hue, saturation, lightness: low and high.
COLORS: dict[str, tuple[float, ...]] = {
    "black": (0, 1, 0, 0.1, 0.06, 0.12), "white": (0, 1, 0, 0.15, 0.92, 0.97), "gray": (0, 1, 0, 0.05, 0.42, 0.6),
    "navy": (0.61, 0.66, 0.5, 0.8, 0.15, 0.22), "blue": (0.59, 0.64, 0.65, 0.9, 0.42, 0.52),
    "red": (-0.02, 0.01, 0.75, 0.95, 0.42, 0.5), "pink": (0.91, 0.96, 0.6, 0.9, 0.68, 0.78),
    "beige": (0.09, 0.12, 0.3, 0.45, 0.72, 0.8), "green": (0.32, 0.4, 0.5, 0.8, 0.3, 0.42),
    "brown": (0.05, 0.08, 0.45, 0.6, 0.24, 0.32), "light blue": (0.54, 0.58, 0.5, 0.8, 0.7, 0.8),
    "yellow": (0.14, 0.16, 0.8, 0.95, 0.5, 0.6), "burgundy": (0.95, 0.98, 0.55, 0.8, 0.2, 0.27),
    "purple": (0.75, 0.79, 0.45, 0.7, 0.36, 0.46), "olive": (0.17, 0.21, 0.35, 0.5, 0.28, 0.36),
    "orange": (0.06, 0.09, 0.85, 0.97, 0.5, 0.57), "mint": (0.43, 0.47, 0.4, 0.6, 0.68, 0.78),
    "lilac": (0.73, 0.78, 0.35, 0.6, 0.74, 0.82),
}  # fmt: skip
COLOR = tail(", ".join(COLORS), shift=8)
LEANING: dict[str, Weights] = {
    "shirt": {"shirt": 5, "row": 3, "gingham": 2}, "blouse": {"bow": 4, "puff": 2, "floral": 2},
    "coat": {"notched lapel": 4, "double": 3, "long": 4, "shawl": 3}, "jacket": {"notched lapel": 3, "long": 3},
    "sweater": {"turtleneck": 4, "long": 4, "balloon": 2}, "hoodie": {"long": 4, "no collar": 2, "straight": 2},
    "gown": {"sleeveless": 4, "a-line": 2, "floral": 2}, "tee": {"short": 4, "no collar": 3, "straight": 2},
    "cardigan": {"v neck": 4, "row": 3, "long": 3}, "dress": {"floral": 2, "peter pan": 3, "sleeveless": 2},
}  # fmt: skip


def sample_single(rng: np.random.Generator) -> tuple[Garment, Truth]:
    category, loose = pick(rng, BUILD), nuisance(rng)
    lean, (build, lengths) = LEANING.get(category, {}), BUILDS[category]
    length, color = pick(rng, tail(lengths)), pick(rng, COLOR)
    button, pattern, shape = (pick(rng, table, lean) for table in (BUTTON, SINGLE_PATTERN, SINGLE_SHAPE))
    collar, sleeve_length, sleeve = (pick(rng, tail(", ".join(t)), lean) for t in (COLLAR, SLEEVE_LENGTH, SLEEVE_SHAPE))
    hue, hue_to, saturation, saturation_to, lightness, lightness_to = COLORS[color]
    loose |= {"hue": rng.uniform(hue, hue_to) % 1, "saturation": rng.uniform(saturation, saturation_to)}
    loose |= {"lightness": rng.uniform(lightness, lightness_to), "ink_saturation": 0.05}
    end = rng.uniform(*LENGTHS[length])
    on_lower = build.get("worn") in ("both", "lower")
    places = {
        "hem": 45.0 if category == "skirt set" else 48.0 if on_lower else end,
        "lower_hem": end if on_lower else 102.0,
    }
    neckline, collar_drawn = COLLAR[collar]
    garment = Garment(
        texture=pattern, shape=shape, lower_shape=shape if build.get("lower") == "skirt" else "straight leg",
        neckline=neckline, collar=collar_drawn, sleeve=SLEEVE_SHAPE[sleeve],
        buttons="" if button == "no button" else button,
        sleeve_length=rng.uniform(*SLEEVE_LENGTH[sleeve_length]), **build, **places, **loose,
    )  # fmt: skip
    return garment, {
        "category": [category], "button": [button], "color": [color], "length": [length], "pattern": [pattern],
        "shape": [shape], "collar": [collar], "sleeve length": [sleeve_length],
        "sleeve shape": ["no sleeve" if sleeve_length == "sleeveless" else sleeve],
    }  # fmt: skip


# ---------------------------------------------------------------- partial, after FashionAI

SKIRT_LENGTH = {"short": (62, 67), "knee": (74, 79), "midi": (85, 90), "ankle": (95, 98), "floor": (102, 104)}
PANT_LENGTH = {"short": (63, 68), "mid": (73, 77), "three quarter": (82, 86), "cropped": (91, 94), "full": (101, 104)}
COAT_LENGTH = {"high waist": (47, 49), "regular": (53, 56), "long": (60, 63), "micro": (67, 70), "knee": (76, 80),
               "midi": (86, 90), "ankle and floor": (97, 102)}  # fmt: skip
ARM_LENGTH = {"sleeveless": (0, 0), "cup": (0.12, 0.15), "short": (0.25, 0.29), "elbow": (0.4, 0.44),
              "three quarter": (0.56, 0.6), "wrist": (0.71, 0.75),
              "long": (0.85, 0.88), "extra long": (0.98, 1.0)}  # fmt: skip
COLLAR_DESIGN = {"shirt": "shirt", "peter pan": "peter pan", "puritan": "puritan", "rib": "rib"}
LAPEL_DESIGN = {
    "notched": "notched lapel",
    "collarless": "collarless",
    "shawl": "shawl",
    "plus size shawl": "big shawl",
}
NECKLINE_DESIGN = {"round": "scoop", "v": "v", "square": "square", "off shoulder": "off shoulder",
                   "strapless": "strapless", "deep v": "deep v", "straight": "straight", "sweetheart": "sweetheart",
                   "one shoulder": "one shoulder"}  # fmt: skip
NECK_DESIGN = {
    "turtleneck": "turtleneck",
    "low turtleneck": "low turtleneck",
    "ruffle semi-high": "ruffle neck",
    "draped": "cowl",
}
PARTIAL: dict[str, dict] = {
    "skirt length": SKIRT_LENGTH, "sleeve length": ARM_LENGTH, "coat length": COAT_LENGTH, "pant length": PANT_LENGTH,
    "collar design": COLLAR_DESIGN, "lapel design": LAPEL_DESIGN, "neckline design": NECKLINE_DESIGN,
    "neck design": NECK_DESIGN,
}  # fmt: skip
INVISIBLE = 0.14


def outfit(rng: np.random.Generator) -> dict:
    """A complete random outfit without coat, collar or lapel; what is asked about is put on it afterwards."""
    lower = str(rng.choice(["", "trousers", "skirt"], p=[0.45, 0.35, 0.2]))
    look = {
        "texture": pick(rng, TEXTURE),
        "fabric": pick(rng, {"cotton": 3, "denim": 1, "knit": 1, "satin": 1, "linen": 1}),
        "shape": str(rng.choice(["fitted", "straight", "a-line", "shift"])),
        "neckline": str(rng.choice(["crew", "boat"])),
        "sleeve_length": rng.uniform(0.2, 0.9), "lower": lower, "hem": rng.uniform(*HEM["top" if lower else "knee"]),
        "sleeve": pick(rng, {"straight": 3, "fitted": 2, "bell": 1, "bishop": 1}), "lower_hem": 102.0,
    }  # fmt: skip
    if lower == "skirt":
        look |= {"worn": "both", "hem": 48.0, "lower_shape": "a-line", "lower_hem": rng.uniform(66, 100)}
    return look


def worn_skirt(rng: np.random.Generator, hem: float) -> dict:
    shape = str(rng.choice(["a-line", "pencil", "fit and flare", "straight"]))
    if rng.random() < 0.5:
        return {"lower": "", "worn": "upper", "hem": hem, "shape": shape}
    return {"lower": "skirt", "worn": "lower", "lower_shape": shape, "lower_hem": hem, "hem": 48.0}


def shown(rng: np.random.Generator, attribute: str, class_: str) -> dict:
    """What makes this class true."""
    value = PARTIAL[attribute][class_]
    if attribute == "skirt length":
        return worn_skirt(rng, rng.uniform(*value))
    if attribute == "pant length":
        legs = str(rng.choice(["straight leg", "wide leg", "skinny"]))
        return {
            "lower": "trousers",
            "worn": "lower",
            "lower_shape": legs,
            "lower_hem": rng.uniform(*value),
            "hem": 48.0,
        }
    if attribute == "coat length":
        coat = {"open_front": True, "lower": "trousers", "worn": "upper", "lower_shape": "skinny"}
        return {**coat, "hem": rng.uniform(*value), "sleeve_length": rng.uniform(0.8, 0.9), "collar": "notched lapel"}
    if attribute == "sleeve length":
        return {"sleeve_length": rng.uniform(*value)}
    if attribute == "neckline design":
        return {"neckline": value}
    return {"collar": value, "neckline": "v" if attribute == "lapel design" else "crew"}


def hidden(rng: np.random.Generator, attribute: str) -> dict:
    """What makes the asked-about part invisible: it is out of the frame, or the outfit has none."""
    if attribute in ("skirt length", "pant length", "coat length") and rng.random() < 0.5:
        other = {"skirt length": "pant length", "pant length": "skirt length", "coat length": "skirt length"}[attribute]
        return shown(rng, other, str(rng.choice(list(PARTIAL[other]))))
    if attribute in ("skirt length", "pant length", "coat length"):
        return {"crop": "upper", "hem": 64.0, "lower": "trousers", "lower_shape": "straight leg", "worn": "upper"}
    if attribute in ("sleeve length", "neckline design"):
        return {"crop": "lower"}
    return {"collar": "", "neckline": str(rng.choice(["crew", "boat", "scoop", "v"]))}


def sample_partial(rng: np.random.Generator) -> tuple[Garment, Truth]:
    attribute = str(rng.choice(list(PARTIAL)))
    look = outfit(rng) | nuisance(rng)
    if rng.random() < INVISIBLE:
        return Garment(**look | hidden(rng, attribute)), {attribute: ["invisible"]}
    class_ = pick(rng, tail(", ".join(PARTIAL[attribute]), shift=6))
    return Garment(**look | shown(rng, attribute, class_)), {attribute: [class_]}


# ---------------------------------------------------------------- the reader

TRACKS = {"multi": sample_multi, "single": sample_single, "partial": sample_partial}


def taxonomy_of(track: str) -> Taxonomy:
    """The fixed attributes and classes of a track."""
    if track == "partial":
        return Taxonomy(tuple(Attribute(name, ("invisible", *classes)) for name, classes in PARTIAL.items()))
    if track == "single":
        tables = {
            "category": BUILDS, "button": BUTTON, "color": COLORS, "length": LENGTHS, "pattern": SINGLE_PATTERN,
            "shape": SINGLE_SHAPE, "collar": COLLAR, "sleeve length": SLEEVE_LENGTH,
            "sleeve shape": ["no sleeve", *SLEEVE_SHAPE],
        }  # fmt: skip
        return Taxonomy(tuple(Attribute(name, tuple(classes)) for name, classes in tables.items()))
    shapes = dict.fromkeys(name for table in (*CUT.values(), *LENGTH.values()) for name in table if name)
    tables = {
        "texture": TEXTURE,
        "fabric": FABRIC,
        "shape": shapes,
        "part": [*NECKS, *SHAPED, *DETAIL],
        "style": STYLES,
    }
    return Taxonomy(tuple(Attribute(name, tuple(classes), multi=True) for name, classes in tables.items()))


def describe(track: str, seed: int, row: int) -> tuple[Garment, Truth, np.random.Generator]:
    """Image `row`: its garment, its true classes, and the generator that goes on to drop labels."""
    rng = np.random.default_rng([seed, row, 0])
    return *TRACKS[track](rng), rng


@dataclass(frozen=True)
class Draw:
    """Row number -> picture."""

    track: str
    size: int
    seed: int

    def __call__(self, row: int) -> np.ndarray:
        """(size, size, 3) uint8."""
        garment = describe(self.track, self.seed, row)[0]
        return draw(garment, self.size, np.random.default_rng([self.seed, row, 1]))


def read(settings: config.Wardrobe, split: config.Split) -> Source:
    """The track's taxonomy, its manifest with `factor_*` columns, and the loader that draws; draws nothing itself."""
    taxonomy = taxonomy_of(settings.track)
    ids = {(a.name, c): taxonomy.class_id(a.name, c) for a in taxonomy.attributes for c in a.classes}
    keep = KEEP if settings.track == "multi" else 1.0
    labels, factors = [], []
    for row in range(settings.images):
        garment, truth, rng = describe(settings.track, settings.seed, row)
        true = sorted(ids[attribute, class_] for attribute, classes in truth.items() for class_ in classes)
        labels.append([id_ for id_ in true if rng.random() < keep])
        factors.append([getattr(garment, name) for name in HIDDEN])
    names = [f"{settings.track}-{row:06d}" for row in range(settings.images)]
    splits = assign_splits(names, split)
    manifest = pd.DataFrame(
        {"image": names, "split": splits, "role": assign_roles(names, splits, split.query), "labels": labels}
    )
    hidden_factors = pd.DataFrame(factors, columns=[f"factor_{name}" for name in HIDDEN], dtype=float)
    return Source(taxonomy, manifest.join(hidden_factors), Draw(settings.track, settings.size, settings.seed))
