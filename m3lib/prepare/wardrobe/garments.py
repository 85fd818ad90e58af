"""What a garment is: its parameters, and the outlines of its pieces as SVG path data.

Coordinates are figure units: x = 0 is the axis of the body, y grows downwards; chin 16, shoulders 24, waist 46,
hips 58, knees 80, soles 106. The camera (see `scene`) maps them to pixels.
"""

import math
from dataclasses import dataclass

import numpy as np

from m3lib.prepare.wardrobe.svg import Point, along, curve, tube, xy

WAIST, HIP, FLOOR = 46.0, 58.0, 104.0


@dataclass(frozen=True)
class Garment:
    """The parameters of an outfit; lengths in figure units, angles in degrees, colours in [0, 1]."""

    texture: str = "solid"
    second: str = ""  # texture of the sleeves; '' for that of the body
    fabric: str = "cotton"
    hue: float = 0.6
    saturation: float = 0.5
    lightness: float = 0.5
    ink: float = 0.1  # hue of the print
    ink_saturation: float = 0.5
    pitch: float = 1.0  # size of the print
    angle: float = 0.0  # of the print
    shape: str = "fitted"
    hem: float = 60.0
    lower: str = ""  # '' | skirt | trousers
    lower_shape: str = "straight leg"
    lower_hem: float = 102.0
    worn: str = "upper"  # the part with texture and fabric, the other is plain: upper | lower | both
    neckline: str = "crew"
    depth: float = 1.0  # of the neckline
    collar: str = ""
    sleeve: str = "straight"
    sleeve_length: float = 0.3  # share of the arm; 0 for no sleeves
    cuff: bool = False
    contrast_sleeves: bool = False
    open_front: bool = False
    details: tuple[str, ...] = ()
    buttons: str = ""
    arm: float = 22.0  # angle between the upper arm and the body
    bend: float = 10.0  # of the elbow
    lean: float = 0.0  # shear of the figure
    turn: float = 0.0  # rotation of the camera
    scale: float = 1.0  # zoom of the camera
    crop: str = "full"  # what the frame shows: full | upper | lower


# Half-widths at chest, waist and hips, and at the floor if the hem reaches it.
SHAPES: dict[str, tuple[float, float, float, float]] = {
    "fitted": (11.8, 10.0, 13.0, 15.0), "bodycon": (11.0, 8.2, 12.6, 9.5), "pencil": (11.4, 8.8, 13.2, 8.6),
    "a-line": (11.8, 10.0, 16.5, 29.0), "fit and flare": (11.4, 8.4, 20.0, 38.0), "shift": (13.0, 13.2, 14.2, 15.6),
    "boxy": (16.0, 16.2, 16.4, 17.0), "oversized": (18.0, 20.0, 20.5, 21.0), "swing": (12.0, 16.5, 22.0, 32.0),
    "mermaid": (11.2, 8.6, 12.6, 26.0), "tiered": (11.8, 9.8, 16.0, 27.0), "wrap": (11.8, 8.8, 15.5, 24.0),
    "empire": (11.4, 14.0, 18.5, 28.0), "peplum": (11.6, 8.4, 19.0, 26.0), "high-low": (11.8, 9.6, 16.0, 26.0),
    "cocoon": (14.0, 18.5, 19.5, 10.0), "straight": (12.6, 11.6, 13.6, 14.5),
}  # fmt: skip
# Half-widths of a trouser leg at thigh, knee and floor.
LEGS = {
    "skinny": (6.4, 4.2, 3.0), "straight leg": (6.8, 5.8, 5.4), "wide leg": (7.8, 9.2, 11.0),
    "flared leg": (6.4, 4.6, 10.5), "harem": (10.5, 10.0, 3.2),
}  # fmt: skip
# Half-widths along a sleeve, from the shoulder to its end.
SLEEVES: dict[str, tuple[float, ...]] = {
    "straight": (5.2, 4.9, 4.5, 4.3, 4.2), "fitted": (4.4, 3.9, 3.5, 3.2, 3.0), "puff": (5.0, 8.6, 9.2, 7.6, 3.2),
    "bell": (4.4, 4.0, 4.6, 7.0, 10.5), "bishop": (4.6, 5.0, 6.8, 8.8, 2.8), "batwing": (9.0, 7.0, 5.0, 4.0, 3.2),
    "wide": (8.0, 9.2, 9.8, 10.2, 10.6),
}  # fmt: skip
BARE_SHOULDERS = {"strapless", "sweetheart", "halter"}  # necklines without a shoulder that a sleeve could start from


def neck_edge(name: str, depth: float, side: int) -> list[Point]:
    """Return the upper edge of a garment from the axis outwards, on the right (side 1) or left (-1)."""
    rounds = {"crew": (5.4, 2.4), "scoop": (7.6, 10.5), "boat": (10.5, 1.6)}
    if name in rounds:
        width, drop = rounds[name]
        angles = np.linspace(0, math.pi / 2, 6)
        edge = [(width * math.sin(a), 18 + 0.5 * width + drop * depth * math.cos(a)) for a in angles] + [(13.2, 24)]
    else:
        edge = {
            "v": [(0, 20 + 12 * depth), (5.6, 20), (13.2, 24)],
            "deep v": [(0, 22 + 19 * depth), (6.6, 20.6), (13.2, 24)],
            "square": [(0, 22 + 8 * depth), (8, 22 + 8 * depth), (8.2, 21.6), (13.2, 24)],
            "straight": [(0, 29), (9.6, 29), (9.8, 22), (11.6, 22.6), (12, 29)],
            "sweetheart": [(0, 33), (1.6, 29), (5.5, 26.6), (9, 27.6), (11.5, 30.5)],
            "strapless": [(0, 30.5), (11.5, 30)],
            "off shoulder": [(0, 29.5), (9, 28), (15, 26.5)],
            "halter": [(0, 23), (4.6, 18), (6.2, 19)],
            "one shoulder": [(0, 27), (6, 20.4), (13.2, 24)] if side > 0 else [(0, 27), (11, 31)],
        }[name]
    return [(side * x, y) for x, y in edge]


def width_at(shape: str, y: float, hem: float) -> float:
    """Return the half-width of a silhouette at height y; hem: where it ends."""
    chest, waist, hip, floor = SHAPES[shape]
    if shape == "mermaid" and hem > 70:
        return float(np.interp(y, [31, WAIST, HIP, hem - 16, hem], [chest, waist, hip, 11, floor]))
    if shape == "peplum":
        return float(np.interp(y, [31, WAIST, max(hem, WAIST + 6)], [chest, waist, hip]))
    return float(np.interp(y, [31, WAIST, HIP, FLOOR], [chest, waist, hip, floor]))


def silhouette(shape: str, top: float, hem: float) -> str:
    """Return path data of an outline: from the top right corner down to the hem, and up to the top left corner."""
    stops = sorted({top, *(y for y in (31, 38, WAIST, HIP, hem - 16) if top < y < hem - 2), hem})
    right = [(width_at(shape, y, hem), y) for y in stops]
    left = [(-x, y) for x, y in right]
    x, y = right[-1]
    bottom = f"Q0,{y + 3.2:.1f} {xy(left[-1:])}"
    if shape == "high-low":
        bottom = f"Q{0.7 * x:.1f},{y - 13:.1f} 0,{y - 14:.1f}Q{-0.7 * x:.1f},{y - 13:.1f} {xy(left[-1:])}"
    return xy(right[:1]) + curve(right) + bottom + curve(left[::-1])


def bodice(g: Garment) -> str:
    """Return the outline of the upper garment, or of a dress."""
    right, left = neck_edge(g.neckline, g.depth, 1), neck_edge(g.neckline, g.depth, -1)
    return f"M{xy(right)}L{silhouette(g.shape, 31, g.hem)}L{xy(left[::-1])}z"


def lower_garment(g: Garment) -> str:
    """Return the outline of the skirt, or of both trouser legs."""
    if g.lower == "skirt":
        top, shape, hem = WAIST - 1, g.lower_shape, g.lower_hem
        return f"M{xy([(-width_at(shape, top, hem), top)])}L{silhouette(shape, top, hem)}z"
    y = np.linspace(64, g.lower_hem, 6)
    axis = 6.4 + (y - HIP) / 30
    width = np.interp(y, [60, 80, FLOOR], LEGS[g.lower_shape])
    outside, inside = zip(axis + width, y, strict=True), zip(np.maximum(axis - width, 0.4), y, strict=True)
    right = [(9.6, WAIST - 1), (12.8, HIP), *outside, *list(inside)[::-1]]
    return f"M{xy(right)}L0.4,62 -0.4,62 {xy([(-x, y) for x, y in right[::-1]])}z"


def arm_joints(g: Garment, side: int) -> list[Point]:
    """Return shoulder, elbow, wrist and finger tips of the right (side 1) or left (-1) arm."""
    x, y = 11.6, 26.0
    joints = [(side * x, y)]
    upper_arm, forearm = math.radians(g.arm), math.radians(g.arm - g.bend * (1.0 if side > 0 else 0.4))
    for angle, length in ((upper_arm, 16), (forearm, 15), (forearm, 5)):
        x, y = x + length * math.sin(angle), y + length * math.cos(angle)
        joints.append((side * x, y))
    return joints


def sleeve_and_cuff(g: Garment, side: int) -> tuple[str, str]:
    """Return the outlines of the right (side 1) or left (-1) sleeve and of its cuff; empty if there is no sleeve."""
    if g.sleeve_length < 0.04 or g.neckline in BARE_SHOULDERS or (g.neckline == "one shoulder" and side < 0):
        return "", ""
    start = 0.1 if g.neckline == "off shoulder" else 0.0
    widths = np.interp(np.linspace(0, 1, 7), np.linspace(0, 1, 5), SLEEVES[g.sleeve])
    axis = along(arm_joints(g, side), np.linspace(start, max(g.sleeve_length, start + 0.06), 7))
    cuff = tube(axis[-2:], widths[-1:].repeat(2) + 0.5) if g.cuff else ""
    if g.sleeve == "batwing":  # the cloth spans from the waist to the end of the sleeve
        x, y = axis[-1]
        return f"M{xy([(9 * side, 20.5), (x + 3 * side, y - 1), (x - side, y + 3), (8 * side, 45)])}z", cuff
    crown = axis[0] - 3 * (axis[1] - axis[0]) / np.linalg.norm(axis[1] - axis[0])  # rounds the shoulder
    return tube(np.vstack([crown, axis]), np.r_[0.45 * widths[0], widths]), cuff
