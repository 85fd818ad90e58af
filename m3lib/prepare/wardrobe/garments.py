"""The drawing: a garment on a person, as SVG, and as pixels.

The figure stands in its own units: x = 0 is its axis, y grows downwards; chin 16, shoulders 24, waist 46, hips 58,
knees 80, soles 106. The camera maps the part around the garment to a frame of 96 x 96, whatever `size` asks for.
"""

import io
import itertools
import math
from dataclasses import dataclass

import numpy as np
import resvg_py
from PIL import Image

from m3lib.prepare.wardrobe.patterns import BUTTONS, COLLARS, DETAILS, HOOD_BACK, SHEER, SOFT_EDGE, TRAIN, definitions
from m3lib.prepare.wardrobe.scene import (
    Point,
    along,
    arm_joints,
    background,
    camera,
    expose,
    occluder,
    person,
    rgb,
    tube,
    xy,
)

WAIST, HIP, FLOOR = 46.0, 58.0, 104.0


@dataclass(frozen=True)
class Garment:
    """All that an outfit is; lengths in figure units, angles in degrees, colours in [0, 1]."""

    texture: str = "solid"
    second: str = ""  # print of sleeves and of the lower part; '' repeats the first
    fabric: str = "cotton"
    hue: float = 0.6
    saturation: float = 0.5
    lightness: float = 0.5
    ink: float = 0.1  # hue of the print
    ink_saturation: float = 0.5
    pitch: float = 1.0
    angle: float = 0.0
    shape: str = "fitted"
    hem: float = 60.0
    lower: str = ""  # '' | skirt | trousers
    lower_shape: str = "straight leg"
    lower_hem: float = 102.0
    worn: str = "upper"  # what carries the print: upper | lower | both
    neckline: str = "crew"
    depth: float = 1.0
    collar: str = ""
    sleeve: str = "straight"
    sleeve_length: float = 0.3  # of the arm; 0 is none
    cuff: bool = False
    contrast_sleeves: bool = False
    open_front: bool = False
    details: tuple[str, ...] = ()
    buttons: str = ""
    arm: float = 22.0
    bend: float = 10.0
    lean: float = 0.0
    turn: float = 0.0
    scale: float = 1.0
    crop: str = "full"  # full | upper | lower


# Half-widths at chest, waist, hips, and at the floor when the hem reaches it.
SHAPES: dict[str, tuple[float, float, float, float]] = {
    "fitted": (11.8, 10.0, 13.0, 15.0),
    "bodycon": (11.0, 8.2, 12.6, 9.5),
    "pencil": (11.4, 8.8, 13.2, 8.6),
    "a-line": (11.8, 10.0, 16.5, 29.0),
    "fit and flare": (11.4, 8.4, 20.0, 38.0),
    "shift": (13.0, 13.2, 14.2, 15.6),
    "boxy": (16.0, 16.2, 16.4, 17.0),
    "oversized": (18.0, 20.0, 20.5, 21.0),
    "swing": (12.0, 16.5, 22.0, 32.0),
    "mermaid": (11.2, 8.6, 12.6, 26.0),
    "tiered": (11.8, 9.8, 16.0, 27.0),
    "wrap": (11.8, 8.8, 15.5, 24.0),
    "empire": (11.4, 14.0, 18.5, 28.0),
    "peplum": (11.6, 8.4, 19.0, 26.0),
    "high-low": (11.8, 9.6, 16.0, 26.0),
    "cocoon": (14.0, 18.5, 19.5, 10.0),
    "straight": (12.6, 11.6, 13.6, 14.5),
}
# Half-widths of a trouser leg at thigh, knee and floor.
LEGS = {
    "skinny": (6.4, 4.2, 3.0),
    "straight leg": (6.8, 5.8, 5.4),
    "wide leg": (7.8, 9.2, 11.0),
    "flared leg": (6.4, 4.6, 10.5),
    "harem": (10.5, 10.0, 3.2),
}
# Half-widths along a sleeve, from the shoulder to its end.
SLEEVES: dict[str, tuple[float, ...]] = {
    "straight": (5.2, 4.9, 4.5, 4.3, 4.2),
    "fitted": (4.4, 3.9, 3.5, 3.2, 3.0),
    "puff": (5.0, 8.6, 9.2, 7.6, 3.2),
    "bell": (4.4, 4.0, 4.6, 7.0, 10.5),
    "bishop": (4.6, 5.0, 6.8, 8.8, 2.8),
    "batwing": (9.0, 7.0, 5.0, 4.0, 3.2),
    "wide": (8.0, 9.2, 9.8, 10.2, 10.6),
}
BARE = {"strapless", "sweetheart", "halter"}  # necklines that have no shoulder for a sleeve


def curve(points: list[Point]) -> str:
    """A rounded continuation of a path through (nearly) all points."""
    pairs = itertools.pairwise(points[:-1])
    bends = [f"Q{xy([p])} {xy([((p[0] + q[0]) / 2, (p[1] + q[1]) / 2)])}" for p, q in pairs]
    return "".join(bends) + f"Q{xy(points[-2:])}" if len(points) > 1 else "L" + xy(points)


def neck_edge(name: str, depth: float, side: int) -> list[Point]:
    """The upper edge of a garment from the axis outwards, on the right (side 1) or left (-1)."""
    d = depth
    if name == "one shoulder" and side < 0:
        return [(0, 27), (-11, 31)]
    rounds = {"crew": (5.4, 2.4), "scoop": (7.6, 10.5), "boat": (10.5, 1.6)}
    if name in rounds:
        w, drop = rounds[name]
        turns = np.linspace(0, math.pi / 2, 6)
        edge = [(w * math.sin(a), 18 + 0.5 * w + drop * d * math.cos(a)) for a in turns] + [(13.2, 24)]
    else:
        edge = {
            "v": [(0, 20 + 12 * d), (5.6, 20), (13.2, 24)],
            "deep v": [(0, 22 + 19 * d), (6.6, 20.6), (13.2, 24)],
            "square": [(0, 22 + 8 * d), (8, 22 + 8 * d), (8.2, 21.6), (13.2, 24)],
            "straight": [(0, 29), (9.6, 29), (9.8, 22), (11.6, 22.6), (12, 29)],
            "sweetheart": [(0, 33), (1.6, 29), (5.5, 26.6), (9, 27.6), (11.5, 30.5)],
            "strapless": [(0, 30.5), (11.5, 30)],
            "off shoulder": [(0, 29.5), (9, 28), (15, 26.5)],
            "halter": [(0, 23), (4.6, 18), (6.2, 19)],
            "one shoulder": [(0, 27), (6, 20.4), (13.2, 24)],
        }[name]
    return [(side * x, y) for x, y in edge]


def width_at(shape: str, y: float, hem: float) -> float:
    """Half-width of a silhouette at height y, given where it ends."""
    chest, waist, hip, floor = SHAPES[shape]
    if shape == "mermaid" and hem > 70:
        return float(np.interp(y, [31, WAIST, HIP, hem - 16, hem], [chest, waist, hip, 11, floor]))
    if shape == "peplum":
        return float(np.interp(y, [31, WAIST, max(hem, WAIST + 6)], [chest, waist, hip]))
    return float(np.interp(y, [31, WAIST, HIP, FLOOR], [chest, waist, hip, floor]))


def side(shape: str, top: float, hem: float) -> list[Point]:
    """The right outline of a silhouette, downwards."""
    stops = sorted({top, *(y for y in (31, 38, WAIST, HIP, hem - 16) if top < y < hem - 2), hem})
    return [(width_at(shape, y, hem), y) for y in stops]


def hem_line(shape: str, right: Point, left: Point) -> str:
    """From the right end of the hem to the left one."""
    (x, y), (u, v) = right, left
    if shape == "high-low":
        return f"Q{0.7 * x:.1f},{y - 13:.1f} 0,{y - 14:.1f}Q{0.7 * u:.1f},{v - 13:.1f} {xy([left])}"
    return f"Q0,{y + 3.2:.1f} {xy([left])}"


def bodice(g: Garment) -> str:
    """The outline of the upper garment, or of a dress."""
    right, left = side(g.shape, 31, g.hem), [(-x, y) for x, y in side(g.shape, 31, g.hem)]
    edge, other = neck_edge(g.neckline, g.depth, 1), neck_edge(g.neckline, g.depth, -1)
    hem = hem_line(g.shape, right[-1], left[-1])
    return f"M{xy(edge)}L{xy(right[:1])}{curve(right)}{hem}{curve(left[::-1])}L{xy(other[::-1])}z"


def skirt(shape: str, hem: float) -> str:
    """The outline of a skirt."""
    right = side(shape, WAIST - 1, hem)
    left = [(-x, y) for x, y in right]
    return f"M{xy(left[:1])}L{xy(right[:1])}{curve(right)}{hem_line(shape, right[-1], left[-1])}{curve(left[::-1])}z"


def trousers(shape: str, hem: float) -> str:
    """The outline of both legs."""
    thigh, knee, floor = LEGS[shape]
    right = [(9.6, WAIST - 1), (12.8, HIP)]
    y = np.linspace(64, hem, 6)
    axis = 6.4 + (y - HIP) / 30
    wide = np.interp(y, [60, 80, FLOOR], [thigh, knee, floor])
    right += list(zip(axis + wide, y, strict=True)) + list(zip(np.maximum(axis - wide, 0.4), y, strict=True))[::-1]
    return f"M{xy(right)}L0.4,62 -0.4,62 {xy([(-x, y) for x, y in right[::-1]])}z"


@dataclass(frozen=True)
class Cloth:
    """How a piece is filled: fills over one another, the first of which skin may shine through, and the rim."""

    fills: list[str]
    line: str
    sheer: float = 1.0
    rim: str = ""

    def piece(self, d: str, fold: str = "url(#fold)") -> str:
        """The outline d, filled; fold is the shade that lies over all."""
        ground, *over = self.fills
        edge = f'stroke="{ground}" stroke-width="3" stroke-linecap="round" stroke-dasharray="{self.rim}"'
        rim = f'<path d="{d}" fill="none" {edge}/>' if self.rim else ""
        layers = "".join(f'<path d="{d}" fill="{fill}"/>' for fill in over)
        return (
            f'{rim}<path d="{d}" fill="{ground}" fill-opacity="{self.sheer}"/>{layers}'
            f'<path d="{d}" fill="{fold}" stroke="{self.line}" stroke-width=".65" stroke-linejoin="round"/>'
        )


def inks(g: Garment, skin: str) -> dict[str, str]:
    """Ground, two print inks, trim and line: always far enough apart in lightness to be told apart."""
    away = -1 if g.lightness > 0.5 else 1
    contrast = 0.42 if g.saturation > 0.15 else 0.5
    b = rgb(g.ink, g.ink_saturation, g.lightness + away * contrast)
    c = rgb(g.ink + 0.28, g.ink_saturation, g.lightness + away * 0.27)
    trim = rgb(g.ink + 0.1, 0.25, 0.14 if away < 0 else 0.9)
    line = rgb(g.hue, g.saturation * 0.8, max(g.lightness - 0.3, 0.04))
    ground = rgb(g.hue, g.saturation, g.lightness)
    low = f"{max(g.hem, g.lower_hem if g.worn != 'upper' else 0):.0f}"
    fixed = {"s": skin, "w": "#f4f1ea", "m": "#c9b458", "low": low}
    return {"a": ground, "b": b, "c": c, "t": trim, "k": line, **fixed}


def sleeve(g: Garment, sign: int, cloth: Cloth, ink: dict[str, str]) -> str:
    """One sleeve along its arm, on the right (sign 1) or left (-1), where there is one."""
    if g.sleeve_length < 0.04 or g.neckline in BARE or (g.neckline == "one shoulder" and sign < 0):
        return ""
    start = 0.1 if g.neckline == "off shoulder" else 0.0
    t = np.linspace(start, max(g.sleeve_length, start + 0.06), 7)
    widths = np.interp(np.linspace(0, 1, 7), np.linspace(0, 1, 5), SLEEVES[g.sleeve])
    axis = along(arm_joints(g.arm, g.bend, sign), t)
    if g.sleeve == "batwing":  # cloth spans from the waist to the end of the sleeve
        x, y = axis[-1]
        outline = [(9 * sign, 20.5), (x + 3 * sign, y - 1), (x - sign, y + 3), (8 * sign, 45)]
        drawn = cloth.piece(f"M{xy(outline)}z", "#00000014")
    else:
        crown = axis[0] - 3 * (axis[1] - axis[0]) / np.linalg.norm(axis[1] - axis[0])  # rounds the shoulder
        drawn = cloth.piece(tube(np.vstack([crown, axis]), np.r_[0.45 * widths[0], widths]), "#00000014")
    if g.cuff:
        drawn += (
            f'<path fill="{ink["t"]}" stroke="{ink["k"]}" stroke-width=".5" '
            f'd="{tube(axis[-2:], widths[-1:].repeat(2) + 0.5)}"/>'
        )
    return drawn


def edge_details(g: Garment, ink: dict[str, str]) -> str:
    """Details that follow the hem of what carries the print."""
    shape, hem = (g.lower_shape, g.lower_hem) if g.worn == "lower" and g.lower == "skirt" else (g.shape, g.hem)
    w, parts = width_at(shape, hem, hem), []
    stroke = f'stroke="{ink["k"]}" stroke-width=".6"'
    if "fringe" in g.details:
        xs = np.arange(-w, w + 0.1, 1.9)
        ends = "".join(f"M{x:.1f} {hem - 1:.1f}v9" for x in xs)
        parts.append(f'<path stroke="{ink["t"]}" stroke-width="1.1" d="{ends}"/>')
    if "ruffle" in g.details:
        xs, mark = np.arange(-w + 1, w, 4), f'rx="2.6" ry="3.6" fill="{ink["t"]}" {stroke}'
        parts += [f'<ellipse cx="{x:.1f}" cy="{hem - 1:.1f}" {mark}/>' for x in xs]
    if "slit" in g.details:
        parts.append(
            f'<path fill="{ink["s"]}" {stroke} d="M{0.3 * w:.1f} {hem - 24:.1f}L{0.75 * w:.1f} '
            f'{hem + 3:.1f}H{0.12 * w:.1f}z"/>'
        )
    return "".join(parts)


def seams(g: Garment, ink: dict[str, str]) -> str:
    """Lines that belong to a cut: wrap, tiers, empire, peplum, open front."""
    bold = f'fill="none" stroke="{ink["k"]}" stroke-width="1.3"'
    shape, hem = (g.lower_shape, g.lower_hem) if g.worn == "lower" and g.lower == "skirt" else (g.shape, g.hem)
    w = width_at(shape, hem, hem)
    if shape == "wrap":
        top = "M6 21-9 46" if g.worn != "lower" else "M-9 46"
        return (
            f'<path {bold} d="{top}Q2 58 {0.75 * w:.1f} {hem + 1:.1f}"/><path stroke="{ink["t"]}" '
            f'stroke-width="2.4" fill="none" d="M-9 46H9M-8 46-11 57M-8 46-6 58"/>'
        )
    if shape == "tiered":
        ys = np.linspace(WAIST, hem, 4)[:-1]
        lines = "".join(
            f"M{-width_at(shape, y, hem):.1f} {y:.1f}q{width_at(shape, y, hem):.1f} 4 "
            f"{2 * width_at(shape, y, hem):.1f} 0"
            for y in ys
        )
        return f'<path fill="none" stroke="{ink["k"]}" stroke-width="2.2" d="{lines}"/>'
    if shape == "empire":
        return f'<path fill="none" stroke="{ink["t"]}" stroke-width="2.4" d="M-11.5 34.5Q0 37 11.5 34.5"/>'
    if shape in ("peplum", "fit and flare") and hem > WAIST + 2:
        folds = "".join(f"M{x} 47L{2.1 * x:.1f} {min(hem, WAIST + 26):.1f}" for x in (-5, 0, 5))
        return f'<path fill="none" stroke="{ink["k"]}" stroke-width=".9" d="M-8.6 46H8.6{folds}"/>'
    return ""


def open_front(g: Garment, ink: dict[str, str]) -> str:
    """A strip of what is worn below, between the two fronts."""
    low = g.hem + 2
    return (
        f'<path fill="{ink["w"]}" stroke="{ink["k"]}" d="M-4.5 19-4.8 {low:.1f}H4.8L4.5 19Q0 24-4.5 19z"/>'
        f'<path fill="none" stroke="{ink["t"]}" stroke-width="1.6" d="M-5 19-5.6 {low:.1f}M5 19 5.6 {low:.1f}"/>'
    )


def details(g: Garment, ink: dict[str, str]) -> str:
    """Details with a place of their own, on what carries the print, and the buttons over them."""
    on_lower = g.worn == "lower"
    hem = g.lower_hem if on_lower else g.hem
    top = WAIST if on_lower and "bib" not in g.details else 24
    end = min(hem - 1, 66) if on_lower else hem
    b, e = width_at(g.shape, WAIST, g.hem), width_at(g.shape, g.hem, g.hem)
    y = 52 if on_lower else min(34, hem - 14) if hem < 56 else 50
    places = {"u": f"{b:.1f}", "uu": f"{2 * b:.1f}", "e": f"{e:.1f}", "ee": f"{2 * e:.1f}", "rib": f"{g.hem - 2.5:.1f}"}
    places |= {"top": top, "end": f"{end:.1f}", "y": y}
    drawn = "".join(DETAILS[name].format(**ink, **places) for name in g.details if name in DETAILS)
    return drawn + button_row(g, ink, top, min(end - 2, 70))


def button_row(g: Garment, ink: dict[str, str], top: float, end: float) -> str:
    """Buttons between two heights; beside an open front, on its edge."""
    if not g.buttons:
        return ""
    aside, radius = 8 if g.open_front else 0, 2.9 if g.buttons == "single" else 1.9
    spots = [(x + (aside if x >= 0 else -aside), y) for x, y in BUTTONS[g.buttons] if top <= y <= end]
    mark = '<circle cx="{x}" cy="{y}" r="{r}" fill="{t}" stroke="{k}" stroke-width=".6"/>'
    if g.buttons == "toggles":
        mark = (
            '<path stroke="{t}" stroke-width="1.2" d="M-5 {y}h10"/><ellipse cx="{x}" cy="{y}" rx="2.8" '
            'ry="1.3" fill="{m}" stroke="{k}" stroke-width=".6"/>'
        )
    strips = {
        "row": f'<path stroke="{ink["k"]}" stroke-width=".9" d="M{aside + 2.6} {top}V{end:.1f}"/>',
        "placket": f'<path fill="{ink["b"]}" stroke="{ink["k"]}" stroke-width=".7" d="M{aside - 3} 24h6v20.5h-6z"/>',
    }
    return strips.get(g.buttons, "") + "".join(mark.format(x=x, y=y, r=radius, **ink) for x, y in spots)


def cloths(g: Garment, ink: dict[str, str], across: float, down: float) -> tuple[str, dict[str, Cloth]]:
    """Definitions and fills of the main pieces and the two sleeves, whose grain turns with the arm."""
    plain = {**ink, "a": ink["w"] if g.lightness < 0.5 else "#39414f"}
    unit = f"scale({1 / across:.3f} {1 / down:.3f})"
    second = g.second or g.texture
    sleeves = ("solid", "cotton", plain) if g.contrast_sleeves else (second, g.fabric, ink)
    looks = {
        "main": (g.texture, g.fabric, ink, g.angle),
        "other": ("solid", "cotton", plain, 0),
        "left": (*sleeves, g.angle + g.arm),
        "right": (*sleeves, g.angle - g.arm),
    }
    defs, pieces = "", {}
    for tag, (texture, fabric, shade, angle) in looks.items():
        new, fills = definitions(texture, fabric, shade, g.pitch, f"{unit} rotate({angle:.0f})", tag)
        defs += new
        pieces[tag] = Cloth(fills, ink["k"], SHEER.get(fabric, 1.0), SOFT_EDGE.get(fabric, ""))
    return defs, pieces


def figure(g: Garment, rng: np.random.Generator, across: float, down: float) -> tuple[str, str]:
    """Definitions and body of the person and what is worn, from back to front."""
    skin = rgb(rng.uniform(0.045, 0.09), rng.uniform(0.3, 0.55), rng.uniform(0.28, 0.82))
    ink = inks(g, skin)
    defs, fill = cloths(g, ink, across, down)
    body, face = person([arm_joints(g.arm, g.bend, s) for s in (-1, 1)], rng, skin)
    upper = fill["other"] if g.worn == "lower" else fill["main"]
    lower = fill["other"] if g.worn == "upper" else fill["main"]
    outline = trousers if g.lower == "trousers" else skirt
    below = lower.piece(outline(g.lower_shape, g.lower_hem)) if g.lower else ""
    above = upper.piece(bodice(g)) + "".join(
        sleeve(g, s, upper if g.worn == "lower" else fill[tag], ink) for s, tag in ((-1, "left"), (1, "right"))
    )
    order = above + below if g.worn == "lower" else below + above
    trims = seams(g, ink) + edge_details(g, ink) + details(g, ink)
    if g.open_front:
        trims = open_front(g, ink) + trims
    if g.collar:
        trims += f'<g stroke="{ink["k"]}" stroke-width=".8">{COLLARS[g.collar].format(**ink)}</g>'
    back = HOOD_BACK.format(**ink) if g.collar == "hood" or "hood back" in g.details else ""
    back += TRAIN.format(**ink) if "train" in g.details else ""
    return defs, back + body + order + face + trims + occluder(rng)


def svg(g: Garment, rng: np.random.Generator) -> str:
    """The picture as SVG with a view box of 96 x 96; rng moves only what no label speaks of."""
    low = g.hem if not g.lower or g.worn == "upper" else max(g.hem, g.lower_hem)
    top, bottom = {"full": (7, max(low + 7, 62)), "upper": (7, 58), "lower": (54, 110)}[g.crop]
    across, down, place = camera(top, bottom, g.scale, g.turn, g.lean, rng.uniform(-3.5, 3.5, 2))
    room = background(rng)
    defs, body = figure(g, rng, across, down)
    fold = (
        '<linearGradient id="fold"><stop stop-color="#000" stop-opacity=".26"/><stop offset=".3" stop-color="#fff" '
        'stop-opacity=".1"/><stop offset="1" stop-color="#000" stop-opacity=".3"/></linearGradient>'
    )
    cast = (
        f'<ellipse cx="{rng.uniform(-6, 6):.1f}" cy="62" rx="22" ry="44" fill="#000" '
        f'fill-opacity="{rng.uniform(0, 0.2):.2f}"/>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 96 96"><defs>{fold}{defs}</defs>'
        f'{room}<g transform="{place}">{cast}{body}</g></svg>'
    )


def draw(g: Garment, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3) uint8."""
    png = resvg_py.svg_to_bytes(svg_string=svg(g, rng), width=size, height=size, skip_system_fonts=True)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.float32)
    return np.clip(expose(pixels, rng), 0, 255).astype(np.uint8)
