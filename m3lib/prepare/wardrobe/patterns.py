"""Textile prints and fabric surfaces as SVG tiles, and the fill of a piece of cloth.

A tile is drawn in its own pixels, about 10 of them per repeat, and continues without a seam. Its colours are {a}, the
ground, and {b} and {c}, the print.
"""

from dataclasses import dataclass

from m3lib.prepare.wardrobe.garments import Garment
from m3lib.prepare.wardrobe.svg import Inks, area, dots, line

Tile = tuple[float, float, str]  # width, height, SVG elements
A, B, C = "{a}", "{b}", "{c}"
LIGHT, SHADE = "#fff", "#000"
DASHED = 'fill="none" stroke-width="3.4" stroke-opacity=".75" stroke-dasharray="9 1.5 5 1"'
FADE = (
    '<linearGradient id="{name}" gradientUnits="userSpaceOnUse" x1="0" x2="0" y1="24" y2="{low}">'
    '<stop offset=".15" stop-color="{a}"/><stop offset=".85" stop-color="{b}"/></linearGradient>'
)

STAR = "M0-4.2 1.1-1.4 4-1.3 1.7.5 2.5 3.4 0 1.7-2.5 3.4-1.7.5-4-1.3-1.1-1.4z"
HEART = "M0 3.9C-6.5-1-3.2-4.9 0-2 3.2-4.9 6.5-1 0 3.9z"
LEAF = "M0-7Q5-1 0 7Q-5-1 0-7z"
PAISLEY = "M-1 5.6C-6 4-5-3.5 3.4-5.4 1.6-2.8 5.6 1 3.6 4 2.4 5.8.6 6.1-1 5.6z"
SPOT = "M-3.2-1.6Q-1-4 2-2.6L1.2-1.2Q-1-2-2-.4zM3.2-.6Q3.4 2.6.4 3.2L.2 1.9Q2 1.4 1.9-.4zM-2.8 1Q-2.4 2.6-1 3L-1.4 1.6z"


def flower(x: float, y: float, scale: float, ink: str, eye: str) -> str:
    """Return a five-petalled blossom, about 9 px across at scale 1."""
    petals = dots(ink, (0, -2.6, 2), (2.5, -0.8, 2), (1.5, 2.1, 2), (-1.5, 2.1, 2), (-2.5, -0.8, 2))
    return f'<g transform="translate({x} {y}) scale({scale})">{petals}{dots(eye, (0, 0, 1.5))}</g>'


def copies(d: str, *transforms: tuple[float, float, float, float, str]) -> str:
    """Return copies of one path: x, y, rotation in degrees, scale and ink of each."""
    return "".join(
        f'<path transform="translate({x} {y}) rotate({rotation}) scale({scale})" fill="{ink}" d="{d}"/>'
        for x, y, rotation, scale, ink in transforms
    )


# fmt: off
TEXTURES: dict[str, Tile] = {
    "solid": (10, 10, ""),
    "ombre": (10, 10, ""),  # the ground colour itself fades, see FADE
    "horizontal stripe": (10, 10, area(B, "M0 0h10v4.6H0z")),
    "vertical stripe": (10, 10, area(B, "M0 0h4.8v10H0z")),
    "diagonal stripe": (12, 12, line(B, 4.2, "M-3 9 9-3M-3 21 21-3M3 15 15 3M9 21 21 9")),
    "pinstripe": (8, 8, area(B, "M0 0h1.5v8H0z")),
    "polka dot": (12, 12, dots(B, (3, 3, 2.7), (9, 9, 2.7))),
    "plaid": (20, 20, area(B, "M0 0h8v20H0zM0 0h20v8H0z", 0.55) + area(C, "M13 0h1.8v20H13zM0 13h20v1.8H0z")
        + area(B, "M0 0h8v8H0z", 0.6)),
    "gingham": (9, 9, area(B, "M0 0h4.5v9H0zM0 0h9v4.5H0z", 0.5) + area(B, "M0 0h4.5v4.5H0z")),
    "windowpane": (13, 13, line(B, 1.7, "M0 6.5h13M6.5 0v13")),
    "houndstooth": (12, 12, area(B, "M0 0h6l6 6v3L6 3v3H0zM6 6v6H3zM6 9l3 3H6zM0 9l3 3H0z")),
    "argyle": (16, 22, area(B, "M8 0 16 11 8 22 0 11z") + line(C, 1.1, "M0 0 16 22M16 0 0 22")),
    "chevron": (14, 10, line(B, 4, "M-1 8 7 1 15 8M-1 18 7 11 15 18M-1-2 7-9 15-2")),
    "floral": (22, 22, flower(6, 6, 1.15, B, C) + flower(17, 16, 1.25, C, B) + flower(17, 4, 0.6, B, A)),
    "leaf": (18, 18, copies(LEAF, (5, 8, 35, 0.95, B), (14, 9, -30, 0.95, C))),
    "leopard": (18, 18, copies(SPOT, (4, 4, 0, 1, B), (13, 5, 100, 1.1, B), (5, 13, 200, 1.1, B),
        (14, 14, 50, 0.9, B))),
    "zebra": (26, 18, area(B, "M0 1Q7 6 13 1.6 20-1 26 1V3.6Q19 2 14 5.4 7 9 0 4zM2 9Q9 14 15 9.4 21 7 26 10L18 "
        "11.6Q12 15.6 2 9zM0 14Q6 17 11 14.6L6 18Q3 18 0 16.8z")),
    "camouflage": (30, 30,
        area(B, "M2 3Q9-2 14 3 20 7 14 11 6 9 5 13-2 10 2 3zM18 17Q26 12 29 19 26 27 19 25 12 22 18 17z")
        + area(C, "M18 2Q26-1 28 7 21 14 18 9zM3 18Q10 14 13 20 11 29 4 27-1 23 3 18z")),
    "paisley": (18, 20, copies(PAISLEY, (5, 6, 0, 0.95, B), (13, 15, 180, 0.95, B), (5, 6.6, 0, 0.4, C))
        + dots(C, (13.4, 14.4, 1.6))),
    "abstract": (28, 28, line(B, 2.2, "M2 10q5-9 9 0t8-3M14 24q4-9 11-2")
        + area(C, "M20 4l7 3-6 6zM3 18h7v6H3z") + dots(B, (16, 16, 2.4))),
    "color block": (60, 36, area(B, "M0 0h60v13H0z") + area(C, "M30 13h30v23H30z")),
    "star": (16, 16, copies(STAR, (4, 4, 0, 1.05, B), (12, 12, 0, 1.05, C))),
    "heart": (16, 16, copies(HEART, (4, 4, 0, 0.95, B), (12, 12, 0, 0.95, C))),
    "tie dye": (44, 44, "".join(f'<circle cx="22" cy="22" r="{radius}" stroke="{ink}" {DASHED}/>'
        for radius, ink in ((3, B), (9, C), (15, B), (21, C)))),
}
# Light and shade of a surface, drawn over the print.
FABRICS: dict[str, Tile] = {
    "cotton": (10, 10, ""),
    "denim": (10, 10, line(LIGHT, 1.2, "M-1 6 6-1M-1 11 11-1M4 11 11 4", 0.5)
        + line(SHADE, 1, "M-1 3.5 3.5-1M-1 8.5 8.5-1M1.5 11 11 1.5M6.5 11 11 6.5", 0.35)),
    "knit": (9.2, 8, line(SHADE, 1.6, "M0 0v8M4.6 0v8M9.2 0v8", 0.45) + line(LIGHT, 1, "M2.2 0v8M6.8 0v8", 0.45)),
    "cable knit": (13, 11, line(SHADE, 1.4, "M3 0Q3 3 7 5.5T10 11M10 0Q10 3 7 5.5T3 11", 0.5)
        + line(LIGHT, 1.2, "M1 0v11M12 0v11", 0.6)),
    "lace": (9, 9, dots(LIGHT, (4.5, 4.5, 1.3), (4.5, 1.6, 1.2), (4.5, 7.4, 1.2), (1.6, 4.5, 1.2), (7.4, 4.5, 1.2),
        opacity=0.72) + line(LIGHT, 0.7, "M0 0 9 9M9 0 0 9", 0.6)),
    "leather": (30, 44, area(LIGHT, "M4 0Q10 16 3 34L6 44Q15 20 9 0z", 0.55)
        + area(LIGHT, "M20 6Q26 22 19 40 24 26 20 6z", 0.35) + area(SHADE, "M12 0Q18 20 11 44H16Q22 18 17 0z", 0.4)),
    "chiffon": (16, 10, area(LIGHT, "M0 0h4v10H0z", 0.3) + area(LIGHT, "M8 0h3v10H8z", 0.16)),
    "satin": (40, 26, area(LIGHT, "M0 4Q18 12 40 0V7Q18 20 0 9z", 0.5)
        + area(SHADE, "M0 15Q20 25 40 12V17Q20 30 0 20z", 0.28)),
    "fur": (9, 10, line(LIGHT, 1.1, "M1 0l-1 4M5 2l1 5M8 6l-2 4", 0.6)
        + line(SHADE, 1.1, "M3 1l1 5M7 0l1 4M2 6l-1 4", 0.45)),
    "mesh": (5.2, 5.2, line(SHADE, 1.1, "M0 0 5.2 5.2M5.2 0 0 5.2", 0.7)),
    "corduroy": (5, 10, area(SHADE, "M0 0h1.8v10H0z", 0.38) + area(LIGHT, "M2.6 0h1.2v10H2.6z", 0.28)),
    "quilted": (13, 13, line(SHADE, 1.4, "M0 0 13 13M13 0 0 13", 0.6)
        + dots(LIGHT, (6.5, 1.4, 2.2), (0, 6.5, 2.2), opacity=0.45)),
    "sequin": (7, 7, dots(LIGHT, (1.7, 1.7, 1.5), opacity=0.9) + dots(LIGHT, (5.2, 5.2, 1.5), opacity=0.5)
        + dots(SHADE, (5.2, 1.7, 1.3), opacity=0.4) + dots(SHADE, (1.7, 5.2, 1.3), opacity=0.2)),
    "tweed": (8, 8, line(LIGHT, 1.3, "M0 0l2 2M4 4l2 2M5 1l2-1M1 6l2-1", 0.6)
        + line(SHADE, 1.3, "M4 0l-2 2M8 4l-2 2M1 4l1-1M5 7l1 1", 0.55)),
    "crochet": (8, 8, dots(SHADE, (4, 4, 2.6), opacity=0.55)
        + '<circle fill="none" stroke="#fff" cx="4" cy="4" r="3.4" stroke-opacity=".7"/>'),
    "velvet": (34, 34, area(SHADE, "M0 0h13Q17 17 13 34H0Q5 17 0 0z", 0.42)
        + area(LIGHT, "M17 0Q21 17 17 34H22Q26 17 22 0z", 0.34)),
    "fleece": (8, 8, line(SHADE, 1, "M0 2q2-3 4 0t4 0M0 6q2 3 4 0t4 0", 0.5) + dots(LIGHT, (2, 4, 1.2), opacity=0.5)),
    "linen": (11, 9, line(LIGHT, 0.9, "M0 2h6M5 6.5h6", 0.6) + line(SHADE, 0.9, "M2 0v5M8 3v6", 0.4)),
    "pleated": (10, 10, area(SHADE, "M0 0h1.4v10H0z", 0.5) + area(SHADE, "M1.4 0h3v10H1.4z", 0.2)
        + area(LIGHT, "M7 0h2.4v10H7z", 0.4)),
    "ruched": (26, 7, line(SHADE, 1.3, "M0 2q6 4 13 0t13 0", 0.5) + line(LIGHT, 1.2, "M0 4.6q6 4 13 0t13 0", 0.45)),
    "metallic": (18, 60, area(LIGHT, "M3 0h3v60H3z", 0.75) + area(SHADE, "M8 0h4v60H8z", 0.45)
        + '<path fill="#fff" opacity=".4" d="M14 0h2v60H14z"/>'),
    "distressed": (26, 24, area(LIGHT, "M4 6h9l-1 3H3zM15 16h8v3h-9z", 0.85)
        + line(SHADE, 0.8, "M3 6h11M3 9.4h10M14 15.6h10M13 19.4h11", 0.8)),
}
# fmt: on
SHEER = {"chiffon": 0.62, "lace": 0.8, "mesh": 0.72}  # opacity of fabrics that skin shows through
SOFT_EDGE = {"fur": "1.1 .9", "fleece": "2 1.4", "lace": ".1 2.6"}  # dashes of a fuzzy edge, in figure units


@dataclass(frozen=True)
class Cloth:
    """How a piece of a garment is filled and outlined."""

    fills: list[str]  # from bottom to top
    outline: str
    opacity: float  # of the first fill
    edge_dashes: str  # "" for a clean edge

    def piece(self, d: str, fold: str = "url(#fold)") -> str:
        """Return the path with data d in this cloth; fold: the shade over all fills."""
        ground, *layers = self.fills
        stroke = f'stroke="{ground}" stroke-width="3" stroke-linecap="round" stroke-dasharray="{self.edge_dashes}"'
        edge = f'<path d="{d}" fill="none" {stroke}/>' if self.edge_dashes else ""
        stroke = f'stroke="{self.outline}" stroke-width=".65" stroke-linejoin="round"'
        layers = "".join(area(fill, d) for fill in layers)
        return f'{edge}{area(ground, d, self.opacity)}{layers}<path d="{d}" fill="{fold}" {stroke}/>'


def make_cloths(g: Garment, inks: Inks, across: float, down: float) -> tuple[str, dict[str, Cloth]]:
    """Return SVG definitions, and the cloth of each piece: main, other (not printed), left and right sleeve.

    across, down: pixels per figure unit; tiles undo this scale. The print of a sleeve turns with the arm.
    """
    plain = ("solid", "cotton", {**inks, "a": inks["w"] if g.lightness < 0.5 else "#39414f"})
    sleeves = plain if g.contrast_sleeves else (g.second or g.texture, g.fabric, inks)
    pieces = {
        "main": (g.texture, g.fabric, inks, g.angle), "other": (*plain, 0),
        "left": (*sleeves, g.angle + g.arm), "right": (*sleeves, g.angle - g.arm),
    }  # fmt: skip
    defs, cloths = "", {}
    for piece, (texture, fabric, ink, angle) in pieces.items():
        fills = [f"url(#fade-{piece})" if texture == "ombre" else ink["a"]]
        if texture == "ombre":
            defs += FADE.format(name=f"fade-{piece}", **ink)
        grain = f"scale({1 / across:.3f} {1 / down:.3f}) rotate({angle:.0f})"
        tiles = {"print": (TEXTURES[texture], f"{grain} scale({g.pitch:.3f})"), "surface": (FABRICS[fabric], grain)}
        for layer, ((width, height, elements), transform) in tiles.items():
            if elements:
                tile = f'patternUnits="userSpaceOnUse" width="{width}" height="{height}" patternTransform="{transform}"'
                defs += f'<pattern id="{layer}-{piece}" {tile}>{elements.format(**ink)}</pattern>'
                fills.append(f"url(#{layer}-{piece})")
        cloths[piece] = Cloth(fills, ink["k"], SHEER.get(fabric, 1.0), SOFT_EDGE.get(fabric, ""))
    return defs, cloths
