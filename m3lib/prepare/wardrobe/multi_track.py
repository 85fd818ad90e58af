"""The multi track, after DeepFashion: correlated factors, several classes per attribute, styles as combinations."""

from collections.abc import Sequence

import numpy as np

from m3lib.prepare.wardrobe.garments import BARE, Garment

Weights = dict[str, float]
Truth = dict[str, list[str]]  # attribute -> classes


def tail(names: str, shift: float = 3, power: float = 1.0) -> Weights:
    """Weights of a long-tailed draw; names, parted by commas, the most frequent first."""
    return {name.strip(): 1 / (rank + shift) ** power for rank, name in enumerate(names.split(","))}


def pick(rng: np.random.Generator, weights: Weights, boost: Weights | None = None) -> str:
    """A name with a probability in proportion to its weight times its boost."""
    boosted = {name: weight * (boost or {}).get(name, 1) for name, weight in weights.items()}
    mark = rng.random() * sum(boosted.values())
    for name, weight in boosted.items():
        mark -= weight
        if mark < 0:
            return name
    return name


def nuisance(rng: np.random.Generator) -> dict[str, float]:
    """Factors that no class speaks of, each drawn independently of all classes."""
    return {
        "hue": rng.random(),
        "saturation": rng.uniform(0.15, 0.9),
        "lightness": rng.uniform(0.22, 0.82),
        "ink": rng.random(),
        "ink_saturation": rng.uniform(0.1, 0.8),
        "pitch": rng.uniform(0.8, 1.35),
        "angle": rng.normal(0, 6),
        "depth": rng.uniform(0.8, 1.3),
        "arm": rng.uniform(12, 42),
        "bend": rng.uniform(-8, 34),
        "lean": rng.normal(0, 3),
        "turn": rng.normal(0, 4),
        "scale": rng.uniform(0.88, 1.1),
    }


TEXTURE = tail(
    "solid, floral, horizontal stripe, plaid, polka dot, vertical stripe, abstract, color block, leopard, "
    "gingham, leaf, paisley, diagonal stripe, chevron, pinstripe, ombre, camouflage, houndstooth, windowpane, "
    "tie dye, argyle, zebra, star, heart",
    shift=5,
    power=1.4,
) | {"solid": 0.15}
FABRIC = tail(
    "cotton, denim, knit, lace, leather, chiffon, pleated, satin, cable knit, mesh, corduroy, quilted, sequin, "
    "tweed, velvet, linen, crochet, ruched, fur, metallic, fleece, distressed",
    shift=5,
    power=1.4,
)
CATEGORY = {"top": 0.36, "dress": 0.34, "skirt": 0.16, "trousers": 0.14}
CUT = {
    "top": tail("fitted, boxy, oversized, peplum, swing, wrap, high-low"),
    "dress": tail("fit and flare, bodycon, a-line, shift, tiered, empire, wrap, mermaid, high-low, oversized, pencil"),
    "skirt": tail("a-line, pencil, fit and flare, tiered, wrap, mermaid, high-low"),
    "trousers": tail("skinny, wide leg, flared leg, harem"),
}
# Where a hem ends, by category: a length class, or a length between classes that has no name.
LENGTH = {
    "top": {"crop": 0.3, "": 0.7},
    "dress": {"mini": 0.3, "": 0.25, "midi": 0.2, "maxi": 0.25},
    "skirt": {"mini": 0.35, "": 0.2, "midi": 0.25, "maxi": 0.2},
    "trousers": {"shorts": 0.3, "": 0.7},
}
HEM = {"crop": (47, 49.5), "top": (58, 64), "mini": (64, 69), "knee": (75, 82), "midi": (87, 92), "maxi": (100, 103),
       "shorts": (64, 69), "trousers": (93, 103)}  # fmt: skip
# What a part looks like: neckline and collar, or the shape of a sleeve.
NECKS = {
    "v neck": ("v", ""), "shirt collar": ("crew", "shirt"), "lapel": ("v", "notched lapel"),
    "turtleneck": ("crew", "turtleneck"), "off shoulder": ("off shoulder", ""), "strapless": ("strapless", ""),
    "hood": ("crew", "hood"), "halter": ("halter", ""), "peter pan collar": ("crew", "peter pan"),
    "one shoulder": ("one shoulder", ""), "bow": ("crew", "pussy bow"), "square neck": ("square", ""),
}  # fmt: skip
NECK = tail("v neck, shirt collar, off shoulder, lapel, turtleneck, strapless, hood, square neck, halter, bow, "
    "one shoulder, "
            "peter pan collar")  # fmt: skip
SHAPED = {"puff sleeve": "puff", "bell sleeve": "bell", "balloon sleeve": "bishop", "batwing sleeve": "batwing"}
SLEEVE = tail(", ".join(SHAPED))
DETAIL = tail("buttons, pocket, belt, ruffle, zip, slit, fringe, lace-up, cut-out")
PLACE = {"buttons": "front", "zip": "front", "lace-up": "front", "belt": "waist", "cut-out": "waist", "ruffle": "hem",
         "slit": "hem", "fringe": "hem", "pocket": "pocket"}  # fmt: skip
# Parts that a category has no place for.
MISSING = {
    "top": {"slit"},
    "dress": set(),
    "skirt": {"lace-up", "cut-out"},
    "trousers": {"lace-up", "cut-out", "ruffle", "fringe", "slit"},
}
BOOST: dict[str, Weights] = {
    "top": {"horizontal stripe": 2, "knit": 2, "cable knit": 2, "star": 2, "heart": 2, "argyle": 2, "gingham": 1.5},
    "dress": {"floral": 2, "leaf": 2, "paisley": 2, "lace": 2, "chiffon": 2, "satin": 2, "sequin": 2, "polka dot": 1.5},
    "skirt": {"pleated": 4, "tweed": 3, "houndstooth": 3, "plaid": 2, "corduroy": 2, "vertical stripe": 1.5},
    "trousers": {"denim": 3, "leather": 2, "camouflage": 3, "pinstripe": 3, "distressed": 4, "zebra": 2, "tie dye": 2},
}
# A style holds when each of its groups has a member among the true classes or the marks of an image.
STYLES: dict[str, tuple[str, ...]] = {
    "bohemian": ("floral|paisley", "bell sleeve|fringe|maxi|tiered"),
    "minimal": ("solid", "@no part"),
    "preppy": ("argyle|gingham|plaid|windowpane", "shirt collar|peter pan collar|buttons"),
    "romantic": ("lace|chiffon", "ruffle|bow|puff sleeve|off shoulder"),
    "office": ("pinstripe|solid|houndstooth", "lapel|shirt collar", "pencil|fitted|shift|bodycon"),
    "glam": ("sequin|metallic|satin", "mini|bodycon|one shoulder|strapless"),
    "nautical": ("horizontal stripe", "@blue"),
    "sporty": ("hood|zip", "color block|vertical stripe|mesh|fleece"),
    "cosy": ("knit|cable knit|fleece|fur", "turtleneck|hood|oversized|batwing sleeve"),
    "western": ("denim", "fringe|shirt collar|buttons|pocket"),
    "retro": ("polka dot", "fit and flare|halter|bow|belt"),
    "evening": ("maxi|mermaid", "velvet|satin|lace|sequin"),
    "tropical": ("leaf", "off shoulder|halter|strapless|wide leg|wrap"),
    "mod": ("color block|houndstooth|chevron", "shift|a-line|mini|boxy"),
    "punk": ("leather", "zip|lace-up|skinny|belt"),
    "wild": ("leopard|zebra", "bodycon|mini|crop|cut-out|slit"),
    "festival": ("tie dye|crochet", "crop|fringe|halter|shorts|harem"),
    "gothic": ("@dark", "lace|velvet|leather|mesh"),
    "cute": ("heart|star|polka dot", "puff sleeve|peter pan collar|ruffle|bow"),
    "military": ("camouflage", "pocket|belt|zip|lapel|buttons"),
    "grunge": ("plaid|distressed", "oversized|boxy|zip|shorts"),
}
STYLE = tail(", ".join(STYLES), shift=8)


def styles_of(marks: set[str]) -> list[str]:
    """The styles that these classes and marks combine to."""
    return [name for name, groups in STYLES.items() if all(marks & set(group.split("|")) for group in groups)]


def wishes(rng: np.random.Generator) -> list[str]:
    """One member of each group of a style that the designer had in mind; usually, not always, there is one."""
    if rng.random() > 0.72:
        return []
    return [str(rng.choice(group.split("|"))) for group in STYLES[pick(rng, STYLE)]]


def wish_or(rng: np.random.Generator, wished: Sequence[str], weights: Weights, boost: Weights | None = None) -> str:
    fitting = [name for name in wished if name in weights]
    return fitting[0] if fitting else pick(rng, weights, boost)


def category_for(rng: np.random.Generator, wished: Sequence[str]) -> str:
    """A category in which the wishes can come true; where none is, they fall short later."""
    named = {name for table in (*CUT.values(), *LENGTH.values()) for name in table}
    able = {
        category: weight
        for category, weight in CATEGORY.items()
        if not MISSING[category] & set(wished)
        and all(name in CUT[category] or name in LENGTH[category] for name in wished if name in named)
    }
    return pick(rng, able or CATEGORY)


def hem_of(rng: np.random.Generator, category: str, length: str) -> float:
    unnamed = "knee" if category in ("dress", "skirt") else category
    return rng.uniform(*HEM[length or unnamed])


def neck_and_sleeves(rng: np.random.Generator, wished: Sequence[str], plain: bool) -> tuple[dict, list[str]]:
    neck, sleeve = wish_or(rng, wished, NECK), wish_or(rng, wished, SLEEVE)
    named = [neck] if neck in wished or (not plain and rng.random() < 0.5) else []
    neckline, collar = NECKS[neck] if named else (str(rng.choice(["crew", "scoop", "boat"])), "")
    look = {"neckline": neckline, "collar": collar, "sleeve": "straight", "sleeve_length": rng.uniform(0.2, 0.9)}
    if sleeve in wished or (not plain and rng.random() < 0.35):
        if neckline not in BARE:
            named.append(sleeve)
            look |= {"sleeve": SHAPED[sleeve], "sleeve_length": rng.uniform(0.4, 0.85)}
    elif rng.random() < 0.3:
        look["sleeve_length"] = 0.0
    return look, named


def details_of(rng: np.random.Generator, wished: Sequence[str], category: str, cut: str, plain: bool) -> list[str]:
    able = {name: weight for name, weight in DETAIL.items() if name not in MISSING[category]}
    if cut == "wrap":
        able = {name: weight for name, weight in able.items() if PLACE[name] not in ("front", "waist")}
    chosen = [name for name in wished if name in able]
    for _ in range(0 if plain else int(rng.integers(0, 3))):
        chosen.append(pick(rng, able))
    by_place = {PLACE[name]: name for name in reversed(chosen)}
    return sorted(by_place.values())


def cut_of(rng: np.random.Generator, wished: Sequence[str]) -> tuple[str, str, str, dict]:
    """Category, silhouette, length class, and how that is drawn."""
    category = category_for(rng, wished)
    cut, length = wish_or(rng, wished, CUT[category]), wish_or(rng, wished, LENGTH[category])
    hem = hem_of(rng, category, length)
    if category in ("skirt", "trousers"):
        lower = {"lower": category, "lower_shape": cut, "lower_hem": hem}
        return category, cut, length, {"shape": "fitted", "hem": 48.0, "worn": "lower", **lower}
    under = {"lower": "trousers" if category == "top" else "", "lower_shape": "straight leg", "lower_hem": 102.0}
    return category, cut, length, {"shape": cut, "hem": hem, **under}


def sample_multi(rng: np.random.Generator) -> tuple[Garment, Truth]:
    wished, loose = wishes(rng), nuisance(rng)
    if "@blue" in wished:
        loose["hue"] = rng.uniform(0.56, 0.68)
    if "@dark" in wished:
        loose["lightness"] = rng.uniform(0.12, 0.24)
    plain = "@no part" in wished
    category, cut, length, shape = cut_of(rng, wished)
    texture, fabric = (wish_or(rng, wished, table, BOOST[category]) for table in (TEXTURE, FABRIC))
    second = pick(rng, TEXTURE) if not plain and category in ("top", "dress") and rng.random() < 0.12 else ""
    neck, parts = neck_and_sleeves(rng, wished, plain)
    parts += details_of(rng, wished, category, cut, plain)
    garment = Garment(
        texture=texture, second=second, fabric=fabric, details=tuple(parts),
        buttons="row" if "buttons" in parts else "",
        **shape, **neck, **loose,
    )  # fmt: skip
    visible = second if second and garment.sleeve_length > 0.2 and garment.neckline not in BARE else texture
    truth = {
        "texture": sorted({texture, visible}),
        "fabric": [fabric],
        "shape": [cut, length] if length else [cut],
        "part": sorted(set(parts)),
    }
    marks = {name for names in truth.values() for name in names} | marks_of(garment, parts)
    return garment, truth | {"style": styles_of(marks)}


def marks_of(garment: Garment, parts: Sequence[str]) -> set[str]:
    """What a style asks for beside classes."""
    marks = {"@blue": 0.55 <= garment.hue <= 0.69, "@dark": garment.lightness < 0.25, "@no part": not parts}
    return {name for name, holds in marks.items() if holds}
