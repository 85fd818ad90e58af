"""SVG building blocks: colours, path data and elements. Points are (x, y) in figure units, see `garments`."""

import colorsys
import itertools

import numpy as np

Point = tuple[float, float]
Inks = dict[str, str]  # letter in a template -> colour, see `rendering.inks`


def rgb(hue: float, saturation: float, lightness: float) -> str:
    """Return #rrggbb; the hue wraps around at 1, saturation and lightness are clipped to [0, 1]."""
    channels = colorsys.hls_to_rgb(hue % 1, min(max(lightness, 0), 1), min(max(saturation, 0), 1))
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)


def xy(points: list[Point]) -> str:
    """Return points as path data, rounded to a tenth of a unit."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def curve(points: list[Point]) -> str:
    """Return path data that continues along two or more points as a smooth curve."""
    pairs = itertools.pairwise(points[:-1])
    bends = [f"Q{xy([p])} {xy([((p[0] + q[0]) / 2, (p[1] + q[1]) / 2)])}" for p, q in pairs]
    return "".join(bends) + f"Q{xy(points[-2:])}"


def along(joints: list[Point], shares: np.ndarray) -> np.ndarray:
    """Return (n, 2) points on a limb, at n shares of its length."""
    joints = np.array(joints)
    distance = np.r_[0, np.cumsum(np.linalg.norm(np.diff(joints, axis=0), axis=1))]
    return np.stack([np.interp(shares * distance[-1], distance, joints[:, i]) for i in (0, 1)], 1)


def tube(axis: np.ndarray, widths: np.ndarray) -> str:
    """Return the closed outline of a tube: (n, 2) points of its axis, (n,) half-widths."""
    step = np.gradient(axis, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], 1) / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-6)
    left, right = axis + normal * widths[:, None], axis - normal * widths[:, None]
    return f"M{xy(left.tolist())}L{xy(right[::-1].tolist())}z"


def area(ink: str, d: str, opacity: float = 1) -> str:
    """Return a filled path; d: its path data."""
    return f'<path fill="{ink}" fill-opacity="{opacity}" d="{d}"/>'


def line(ink: str, width: float, d: str, opacity: float = 1) -> str:
    """Return a stroked path without a fill."""
    return f'<path fill="none" stroke="{ink}" stroke-width="{width}" stroke-opacity="{opacity}" d="{d}"/>'


def outlined(ink: str, outline: str, width: float, d: str) -> str:
    """Return a filled path with an outline in another colour."""
    return f'<path fill="{ink}" stroke="{outline}" stroke-width="{width}" d="{d}"/>'


def dots(ink: str, *circles: tuple[float, float, float], opacity: float = 1) -> str:
    """Return filled circles: x, y and radius of each."""
    return "".join(f'<circle cx="{x}" cy="{y}" r="{r}" fill="{ink}" fill-opacity="{opacity}"/>' for x, y, r in circles)
