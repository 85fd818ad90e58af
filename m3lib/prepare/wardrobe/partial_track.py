"""Track `partial`, after FashionAI: eight attributes; each image is labelled under one of them, maybe as invisible."""

import numpy as np

from m3lib.prepare.wardrobe.garments import Garment
from m3lib.prepare.wardrobe.multi_track import HEM, TEXTURE
from m3lib.prepare.wardrobe.sampling import Labels, choose, long_tail, sample_nuisance

# Attribute -> class -> what draws the class: the lowest and highest end of the hem in figure units, the shortest and
# longest sleeve as a share of the arm, or the name of a collar or neckline.
DRAWN_AS: dict[str, dict] = {
    "skirt length": {"short": (62, 67), "knee": (74, 79), "midi": (85, 90), "ankle": (95, 98), "floor": (102, 104)},
    "sleeve length": {"sleeveless": (0, 0), "cup": (0.12, 0.15), "short": (0.25, 0.29), "elbow": (0.4, 0.44),
                      "three quarter": (0.56, 0.6), "wrist": (0.71, 0.75), "long": (0.85, 0.88),
                      "extra long": (0.98, 1.0)},
    "coat length": {"high waist": (47, 49), "regular": (53, 56), "long": (60, 63), "micro": (67, 70),
                    "knee": (76, 80), "midi": (86, 90), "ankle and floor": (97, 102)},
    "pant length": {"short": (63, 68), "mid": (73, 77), "three quarter": (82, 86), "cropped": (91, 94),
                    "full": (101, 104)},
    "collar design": {"shirt": "shirt", "peter pan": "peter pan", "puritan": "puritan", "rib": "rib"},
    "lapel design": {"notched": "notched lapel", "collarless": "collarless", "shawl": "shawl",
                     "plus size shawl": "big shawl"},
    "neckline design": {"round": "scoop", "v": "v", "square": "square", "off shoulder": "off shoulder",
                        "strapless": "strapless", "deep v": "deep v", "straight": "straight",
                        "sweetheart": "sweetheart", "one shoulder": "one shoulder"},
    "neck design": {"turtleneck": "turtleneck", "low turtleneck": "low turtleneck", "ruffle semi-high": "ruffle neck",
                    "draped": "cowl"},
}  # fmt: skip
CLASSES = {attribute: ("invisible", *classes) for attribute, classes in DRAWN_AS.items()}
INVISIBLE_RATE = 0.14


def sample_outfit(rng: np.random.Generator) -> dict:
    """Return Garment fields of a random outfit without a coat, collar or lapel; the labelled class is added later."""
    lower = str(rng.choice(["", "trousers", "skirt"], p=[0.45, 0.35, 0.2]))
    outfit = {
        "texture": choose(rng, TEXTURE),
        "fabric": choose(rng, {"cotton": 3, "denim": 1, "knit": 1, "satin": 1, "linen": 1}),
        "shape": str(rng.choice(["fitted", "straight", "a-line", "shift"])),
        "neckline": str(rng.choice(["crew", "boat"])),
        "sleeve_length": rng.uniform(0.2, 0.9),
        "lower": lower,
        "hem": rng.uniform(*HEM["top" if lower else "dress"]),
        "sleeve": choose(rng, {"straight": 3, "fitted": 2, "bell": 1, "bishop": 1}),
    }
    if lower == "skirt":
        outfit |= {"worn": "both", "hem": 48.0, "lower_shape": "a-line", "lower_hem": rng.uniform(66, 100)}
    return outfit


def show_class(rng: np.random.Generator, attribute: str, class_: str) -> dict:
    """Return the Garment fields that make this class true."""
    value = DRAWN_AS[attribute][class_]
    if attribute == "sleeve length":
        return {"sleeve_length": rng.uniform(*value)}
    if attribute == "neckline design":
        return {"neckline": value}
    if not attribute.endswith("length"):
        return {"collar": value, "neckline": "v" if attribute == "lapel design" else "crew"}
    if attribute == "coat length":
        coat = {"open_front": True, "collar": "notched lapel", "lower": "trousers", "lower_shape": "skinny"}
        return {**coat, "worn": "upper", "hem": rng.uniform(*value), "sleeve_length": rng.uniform(0.8, 0.9)}
    on_lower = {"worn": "lower", "hem": 48.0}
    if attribute == "pant length":
        legs = str(rng.choice(["straight leg", "wide leg", "skinny"]))
        return {**on_lower, "lower": "trousers", "lower_shape": legs, "lower_hem": rng.uniform(*value)}
    hem, shape = rng.uniform(*value), str(rng.choice(["a-line", "pencil", "fit and flare", "straight"]))
    if rng.random() < 0.5:  # the skirt of a dress
        return {"lower": "", "worn": "upper", "hem": hem, "shape": shape}
    return {**on_lower, "lower": "skirt", "lower_shape": shape, "lower_hem": hem}


def hide_class(rng: np.random.Generator, attribute: str) -> dict:
    """Return Garment fields that make the attribute invisible: out of the frame, or not part of the outfit."""
    if attribute in ("sleeve length", "neckline design"):
        return {"crop": "lower"}
    if not attribute.endswith("length"):
        return {"collar": "", "neckline": str(rng.choice(["crew", "boat", "scoop", "v"]))}
    if rng.random() < 0.5:
        other = "pant length" if attribute == "skirt length" else "skirt length"
        return show_class(rng, other, str(rng.choice(list(DRAWN_AS[other]))))
    return {"crop": "upper", "hem": 64.0, "lower": "trousers", "lower_shape": "straight leg", "worn": "upper"}


def sample_partial(rng: np.random.Generator) -> tuple[Garment, Labels]:
    """Sample the attribute that is labelled, an outfit, and the class, which the outfit shows or hides."""
    attribute = str(rng.choice(list(DRAWN_AS)))
    fields = sample_outfit(rng) | sample_nuisance(rng)
    if rng.random() < INVISIBLE_RATE:
        return Garment(**fields | hide_class(rng, attribute)), {attribute: ["invisible"]}
    class_ = choose(rng, long_tail(DRAWN_AS[attribute], shift=6))
    return Garment(**fields | show_class(rng, attribute, class_)), {attribute: [class_]}
