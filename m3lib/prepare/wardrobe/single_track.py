"""Track `single`, after DARN: nine attributes, and exactly one class of each per image."""

import numpy as np

from m3lib.prepare.wardrobe.garments import Garment
from m3lib.prepare.wardrobe.sampling import Labels, Weights, choose, long_tail, sample_nuisance

# Category -> Garment fields that draw it, and its lengths, the most frequent first.
CATEGORY: dict[str, tuple[dict, str]] = {
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
# Lowest and highest end of the hem, in figure units.
LENGTH = {
    "crop": (47, 49), "waist": (52, 54.5), "hip": (58, 62), "thigh": (66, 71), "knee": (78, 84), "floor": (97, 103),
}  # fmt: skip
BUTTON = long_tail("no button, row, placket, double, single, toggles")
PATTERN = long_tail(
    "solid, horizontal stripe, floral, plaid, polka dot, vertical stripe, leopard, gingham, leaf, chevron, abstract, "
    "camouflage, star, heart", shift=4,
)  # fmt: skip
SHAPE = long_tail("straight, fitted, a-line, boxy, bodycon, oversized, swing, cocoon", shift=4)
# Neckline and collar that draw a class.
COLLAR = {
    "no collar": ("crew", ""), "shirt": ("crew", "shirt"), "v neck": ("v", ""), "notched lapel": ("v", "notched lapel"),
    "turtleneck": ("crew", "turtleneck"), "bow": ("crew", "pussy bow"), "peter pan": ("crew", "peter pan"),
    "shawl": ("v", "shawl"),
}  # fmt: skip
# Shortest and longest sleeve, as a share of the arm.
SLEEVE_LENGTH = {
    "short": (0.29, 0.35), "long": (0.85, 0.9), "sleeveless": (0, 0), "three quarter": (0.65, 0.7),
    "elbow": (0.47, 0.52), "cap": (0.13, 0.17),
}  # fmt: skip
SLEEVE_SHAPE = {name: name for name in ("straight", "puff", "bell", "batwing")} | {"balloon": "bishop", "wide": "wide"}
# Lowest and highest hue, saturation and lightness.
COLOR: dict[str, tuple[float, ...]] = {
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
# Classes that are more frequent in a category, by factor.
BOOST: dict[str, Weights] = {
    "shirt": {"shirt": 5, "row": 3, "gingham": 2}, "blouse": {"bow": 4, "puff": 2, "floral": 2},
    "coat": {"notched lapel": 4, "double": 3, "long": 4, "shawl": 3}, "jacket": {"notched lapel": 3, "long": 3},
    "sweater": {"turtleneck": 4, "long": 4, "balloon": 2}, "hoodie": {"long": 4, "no collar": 2, "straight": 2},
    "gown": {"sleeveless": 4, "a-line": 2, "floral": 2}, "tee": {"short": 4, "no collar": 3, "straight": 2},
    "cardigan": {"v neck": 4, "row": 3, "long": 3}, "dress": {"floral": 2, "peter pan": 3, "sleeveless": 2},
}  # fmt: skip
CLASSES = {
    "category": CATEGORY, "button": BUTTON, "color": COLOR, "length": LENGTH, "pattern": PATTERN, "shape": SHAPE,
    "collar": COLLAR, "sleeve length": SLEEVE_LENGTH, "sleeve shape": ["no sleeve", *SLEEVE_SHAPE],
}  # fmt: skip
FREQUENCY = {
    "color": long_tail(COLOR, shift=8), "button": BUTTON, "pattern": PATTERN, "shape": SHAPE,
    "collar": long_tail(COLLAR), "sleeve length": long_tail(SLEEVE_LENGTH), "sleeve shape": long_tail(SLEEVE_SHAPE),
}  # fmt: skip


def sample_single(rng: np.random.Generator) -> tuple[Garment, Labels]:
    """Sample a category, the other classes (some more frequent in that category), and a garment that shows them."""
    category, nuisance = choose(rng, long_tail(CATEGORY, shift=6)), sample_nuisance(rng)
    fields, lengths = CATEGORY[category]
    frequency, boost = {"length": long_tail(lengths), **FREQUENCY}, BOOST.get(category, {})
    labels = {"category": category} | {name: choose(rng, frequency[name], boost) for name in frequency}
    color = COLOR[labels["color"]]
    nuisance |= {"hue": rng.uniform(*color[:2]) % 1, "saturation": rng.uniform(*color[2:4])}
    nuisance |= {"lightness": rng.uniform(*color[4:]), "ink_saturation": 0.05}
    end = rng.uniform(*LENGTH[labels["length"]])
    hems = {"hem": end}
    if fields.get("worn") in ("both", "lower"):
        hems = {"hem": 45.0 if category == "skirt set" else 48.0, "lower_hem": end}
    neckline, collar = COLLAR[labels["collar"]]
    garment = Garment(
        texture=labels["pattern"], shape=labels["shape"],
        lower_shape=labels["shape"] if category == "skirt set" else "straight leg",
        neckline=neckline, collar=collar, buttons="" if labels["button"] == "no button" else labels["button"],
        sleeve=SLEEVE_SHAPE[labels["sleeve shape"]], sleeve_length=rng.uniform(*SLEEVE_LENGTH[labels["sleeve length"]]),
        **fields, **hems, **nuisance,
    )  # fmt: skip
    if labels["sleeve length"] == "sleeveless":
        labels["sleeve shape"] = "no sleeve"
    return garment, {attribute: [class_] for attribute, class_ in labels.items()}
