"""Track `multi`, after DeepFashion: correlated attributes, several classes each, styles as combinations of classes."""

import numpy as np

from m3lib.prepare.wardrobe.garments import BARE_SHOULDERS, Garment
from m3lib.prepare.wardrobe.sampling import Labels, Weights, choose, long_tail, sample_nuisance

TEXTURE = long_tail(
    "solid, floral, horizontal stripe, plaid, polka dot, vertical stripe, abstract, color block, leopard, gingham, "
    "leaf, paisley, diagonal stripe, chevron, pinstripe, ombre, camouflage, houndstooth, windowpane, tie dye, argyle, "
    "zebra, star, heart", shift=5, power=1.4,
) | {"solid": 0.15}  # fmt: skip
FABRIC = long_tail(
    "cotton, denim, knit, lace, leather, chiffon, pleated, satin, cable knit, mesh, corduroy, quilted, sequin, tweed, "
    "velvet, linen, crochet, ruched, fur, metallic, fleece, distressed", shift=5, power=1.4,
)  # fmt: skip
CATEGORY = {"top": 0.36, "dress": 0.34, "skirt": 0.16, "trousers": 0.14}
SILHOUETTE = {
    "top": long_tail("fitted, boxy, oversized, peplum, swing, wrap, high-low"),
    "dress": long_tail(
        "fit and flare, bodycon, a-line, shift, tiered, empire, wrap, mermaid, high-low, oversized, pencil"
    ),
    "skirt": long_tail("a-line, pencil, fit and flare, tiered, wrap, mermaid, high-low"),
    "trousers": long_tail("skinny, wide leg, flared leg, harem"),
}
# Length class by category; "" is a length between the classes, without a label.
LENGTH = {
    "top": {"crop": 0.3, "": 0.7}, "dress": {"mini": 0.3, "": 0.25, "midi": 0.2, "maxi": 0.25},
    "skirt": {"mini": 0.35, "": 0.2, "midi": 0.25, "maxi": 0.2}, "trousers": {"shorts": 0.3, "": 0.7},
}  # fmt: skip
# Lowest and highest end of the hem, in figure units: by length class, or by category for a length without a label.
HEM = {
    "crop": (47, 49.5), "top": (58, 64), "mini": (64, 69), "dress": (75, 82), "skirt": (75, 82), "midi": (87, 92),
    "maxi": (100, 103), "shorts": (64, 69), "trousers": (93, 103),
}  # fmt: skip
# Neckline and collar that draw a class of the attribute `part`.
NECKS = {
    "v neck": ("v", ""), "shirt collar": ("crew", "shirt"), "lapel": ("v", "notched lapel"),
    "turtleneck": ("crew", "turtleneck"), "off shoulder": ("off shoulder", ""), "strapless": ("strapless", ""),
    "hood": ("crew", "hood"), "halter": ("halter", ""), "peter pan collar": ("crew", "peter pan"),
    "one shoulder": ("one shoulder", ""), "bow": ("crew", "pussy bow"), "square neck": ("square", ""),
}  # fmt: skip
NECK = long_tail(
    "v neck, shirt collar, off shoulder, lapel, turtleneck, strapless, hood, square neck, halter, bow, one shoulder, "
    "peter pan collar"
)
SLEEVES = {"puff sleeve": "puff", "bell sleeve": "bell", "balloon sleeve": "bishop", "batwing sleeve": "batwing"}
SLEEVE = long_tail(SLEEVES)
# Detail -> its position, the most frequent detail first; a garment has at most one detail per position.
POSITION = {
    "buttons": "front", "pocket": "pocket", "belt": "waist", "ruffle": "hem", "zip": "front", "slit": "hem",
    "fringe": "hem", "lace-up": "front", "cut-out": "waist",
}  # fmt: skip
DETAIL = long_tail(POSITION)
IMPOSSIBLE_DETAILS = {
    "top": {"slit"}, "dress": set(), "skirt": {"lace-up", "cut-out"},
    "trousers": {"lace-up", "cut-out", "ruffle", "fringe", "slit"},
}  # fmt: skip
# Textures and fabrics that are more frequent in a category, by factor.
BOOST: dict[str, Weights] = {
    "top": {"horizontal stripe": 2, "knit": 2, "cable knit": 2, "star": 2, "heart": 2, "argyle": 2, "gingham": 1.5},
    "dress": {"floral": 2, "leaf": 2, "paisley": 2, "lace": 2, "chiffon": 2, "satin": 2, "sequin": 2, "polka dot": 1.5},
    "skirt": {"pleated": 4, "tweed": 3, "houndstooth": 3, "plaid": 2, "corduroy": 2, "vertical stripe": 1.5},
    "trousers": {"denim": 3, "leather": 2, "camouflage": 3, "pinstripe": 3, "distressed": 4, "zebra": 2, "tie dye": 2},
}
# An image has a style if each group of the style contains one of the image's classes or marks (@...).
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
STYLE = long_tail(STYLES, shift=8)
SHAPES = dict.fromkeys(name for table in (*SILHOUETTE.values(), *LENGTH.values()) for name in table if name)
CLASSES = {
    "texture": TEXTURE, "fabric": FABRIC, "shape": SHAPES, "part": [*NECKS, *SLEEVES, *DETAIL], "style": STYLES,
}  # fmt: skip


def sample_style(rng: np.random.Generator) -> list[str]:
    """Return classes and marks that make up a random style, one per group of the style; none in 28 % of the cases."""
    if rng.random() > 0.72:
        return []
    return [str(rng.choice(group.split("|"))) for group in STYLES[choose(rng, STYLE)]]


def prefer(rng: np.random.Generator, style: list[str], weights: Weights, boost: Weights | None = None) -> str:
    """Return the name in the table `weights` that the intended style needs, or a random one if it needs none."""
    return next((name for name in style if name in weights), "") or choose(rng, weights, boost)


def sample_shape(rng: np.random.Generator, style: list[str]) -> tuple[str, str, str, dict]:
    """Return a category that allows the style (if any does), silhouette, length class ("" for none), Garment fields."""
    needed = set(style) & set(SHAPES)
    possible = {
        category: weight
        for category, weight in CATEGORY.items()
        if not IMPOSSIBLE_DETAILS[category] & set(style) and needed <= {*SILHOUETTE[category], *LENGTH[category]}
    }
    category = choose(rng, possible or CATEGORY)
    silhouette, length = prefer(rng, style, SILHOUETTE[category]), prefer(rng, style, LENGTH[category])
    hem = rng.uniform(*HEM[length or category])
    if category in ("skirt", "trousers"):
        fields = {"lower": category, "lower_shape": silhouette, "lower_hem": hem, "hem": 48.0, "worn": "lower"}
    else:
        fields = {"lower": "trousers" if category == "top" else "", "shape": silhouette, "hem": hem}
    return category, silhouette, length, fields


def sample_neck_and_sleeves(rng: np.random.Generator, style: list[str], plain: bool) -> tuple[dict, list[str]]:
    """Return Garment fields, and the neck and sleeve classes that are true; plain: no class that the style lacks."""
    neck, sleeve = prefer(rng, style, NECK), prefer(rng, style, SLEEVE)
    parts = [neck] if neck in style or (not plain and rng.random() < 0.5) else []
    neckline, collar = NECKS[neck] if parts else (str(rng.choice(["crew", "scoop", "boat"])), "")
    fields = {"neckline": neckline, "collar": collar, "sleeve": "straight", "sleeve_length": rng.uniform(0.2, 0.9)}
    if sleeve in style or (not plain and rng.random() < 0.35):
        if neckline not in BARE_SHOULDERS:
            parts.append(sleeve)
            fields |= {"sleeve": SLEEVES[sleeve], "sleeve_length": rng.uniform(0.4, 0.85)}
    elif rng.random() < 0.3:
        fields["sleeve_length"] = 0.0
    return fields, parts


def sample_details(rng: np.random.Generator, style: list[str], category: str, shape: str, plain: bool) -> list[str]:
    """Return the details that the style needs and up to two random ones (if not plain), one per position."""
    covered = ("front", "waist") if shape == "wrap" else ()
    possible = {
        name: weight
        for name, weight in DETAIL.items()
        if name not in IMPOSSIBLE_DETAILS[category] and POSITION[name] not in covered
    }
    names = [name for name in style if name in possible]
    names += [choose(rng, possible) for _ in range(0 if plain else int(rng.integers(0, 3)))]
    return sorted({POSITION[name]: name for name in reversed(names)}.values())


def sample_multi(rng: np.random.Generator) -> tuple[Garment, Labels]:
    """Sample a garment, usually with a style in mind, and all its classes, among them each style that results."""
    style, nuisance = sample_style(rng), sample_nuisance(rng)
    if "@blue" in style:
        nuisance["hue"] = rng.uniform(0.56, 0.68)
    if "@dark" in style:
        nuisance["lightness"] = rng.uniform(0.12, 0.24)
    plain = "@no part" in style
    category, silhouette, length, shape_fields = sample_shape(rng, style)
    texture, fabric = (prefer(rng, style, table, BOOST[category]) for table in (TEXTURE, FABRIC))
    second = choose(rng, TEXTURE) if not plain and category in ("top", "dress") and rng.random() < 0.12 else ""
    neck_fields, parts = sample_neck_and_sleeves(rng, style, plain)
    parts += sample_details(rng, style, category, silhouette, plain)
    buttons = "row" if "buttons" in parts else ""
    look = {"texture": texture, "second": second, "fabric": fabric, "details": tuple(parts), "buttons": buttons}
    garment = Garment(**look, **shape_fields, **neck_fields, **nuisance)
    second_is_visible = second and garment.sleeve_length > 0.2 and garment.neckline not in BARE_SHOULDERS
    labels = {
        "texture": sorted({texture, second if second_is_visible else texture}),
        "fabric": [fabric],
        "shape": [silhouette, length] if length else [silhouette],
        "part": sorted(set(parts)),
    }
    properties = {name for names in labels.values() for name in names}
    marks = {"@blue": 0.55 <= garment.hue <= 0.69, "@dark": garment.lightness < 0.25, "@no part": not parts}
    properties |= {mark for mark, present in marks.items() if present}
    styles = [name for name, groups in STYLES.items() if all(properties & set(group.split("|")) for group in groups)]
    return garment, labels | {"style": styles}
