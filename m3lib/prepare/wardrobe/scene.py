"""The person, the room, the camera and the light: all that the labels do not speak of.

Points are (x, y) in figure units, see `garments`.
"""

import colorsys
import math

import numpy as np

Point = tuple[float, float]
FRAME = 96  # pixels of the view box, square


def rgb(hue: float, saturation: float, lightness: float) -> str:
    """#rrggbb; hue in turns (wraps around), the others in [0, 1] (clipped)."""
    r, g, b = colorsys.hls_to_rgb(hue % 1, min(max(lightness, 0), 1), min(max(saturation, 0), 1))
    return f"#{round(255 * r):02x}{round(255 * g):02x}{round(255 * b):02x}"


def xy(points: list[Point]) -> str:
    """Points as path data, to a tenth of a unit."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def tube(axis: np.ndarray, widths: np.ndarray) -> str:
    """A closed path around a bent axis, (n, 2), of half-widths (n,)."""
    step = np.gradient(axis, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], 1) / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-6)
    left, right = axis + normal * widths[:, None], axis - normal * widths[:, None]
    return "M" + xy(left.tolist()) + "L" + xy(right[::-1].tolist()) + "z"


def along(joints: list[Point], t: np.ndarray) -> np.ndarray:
    """(n, 2) points at the shares t of a limb's length."""
    joints = np.array(joints)
    reach = np.r_[0, np.cumsum(np.linalg.norm(np.diff(joints, axis=0), axis=1))]
    return np.stack([np.interp(t * reach[-1], reach, joints[:, i]) for i in (0, 1)], 1)


def arm_joints(arm: float, bend: float, side: int) -> list[Point]:
    """Shoulder, elbow, wrist and finger tips."""
    upper, fore = math.radians(arm), math.radians(arm - bend * (1.0 if side > 0 else 0.4))
    sx, sy = 11.6, 26.0
    ex, ey = sx + 16 * math.sin(upper), sy + 16 * math.cos(upper)
    wx, wy = ex + 15 * math.sin(fore), ey + 15 * math.cos(fore)
    tip = (wx + 5 * math.sin(fore), wy + 5 * math.cos(fore))
    return [(side * x, y) for x, y in [(sx, sy), (ex, ey), (wx, wy), tip]]


def person(arms: list[list[Point]], rng: np.random.Generator, skin: str) -> tuple[str, str]:
    """Limbs and trunk (drawn first), and the head (drawn last)."""
    line = f'stroke="#0004" stroke-width=".7" fill="{skin}"'
    shoe = rgb(rng.random(), 0.3, rng.uniform(0.1, 0.85))
    stance, parts = rng.uniform(0, 3), []
    for s, joints in zip((-1, 1), arms, strict=True):
        leg = along([(s * 6, 56), (s * (6 + stance * 0.6), 80), (s * (6 + stance), 103)], np.linspace(0, 1, 6))
        parts.append(f'<path {line} d="{tube(leg, np.array([6, 5.2, 4.2, 3.6, 3.4, 2.4]))}"/>')
        parts.append(f'<ellipse fill="{shoe}" cx="{s * (7 + stance):.1f}" cy="104.5" rx="4.4" ry="2.4"/>')
        arm = along(joints, np.linspace(0, 1, 7))
        parts.append(f'<path {line} d="{tube(arm, np.array([4, 3.6, 3.3, 3, 2.7, 2.5, 1.6]))}"/>')
    trunk = "M-4 14V19Q-9 21-13 24.5L-11 34-8.6 46-12.4 60H12.4L8.6 46 11 34 13 24.5Q9 21 4 19V14z"
    return "".join(parts) + f'<path {line} d="{trunk}"/>', head(rng, skin)


def head(rng: np.random.Generator, skin: str) -> str:
    """Face and hair, which now and then falls to the shoulders."""
    hair = rgb(rng.uniform(0.02, 0.13), rng.uniform(0.1, 0.6), rng.uniform(0.06, 0.6))
    lock = rng.uniform(9, 19)
    long = (
        f'<path fill="{hair}" d="M-7.6 6Q-9 {lock:.1f}-6.6 {lock + 3:.1f}L-4.6 {lock:.1f}-5 6zM7.6 6Q9 '
        f'{lock:.1f} 6.6 {lock + 3:.1f}L4.6 {lock:.1f} 5 6z"/>'
    )
    return (
        f'<ellipse cy="8.6" rx="6.2" ry="7.8" fill="{skin}" stroke="#0003" stroke-width=".6"/>'
        f'<path fill="{hair}" d="M-7 8Q-8-1 0-1.4 8-1 7 8 4 2 0 2.6-4 2-7 8z"/>{long if rng.random() < 0.6 else ""}'
        '<path stroke="#5229" stroke-width="1" d="M-2 12.4h4M-3.4 8h1.8M1.6 8h1.8"/>'
    )


def background(rng: np.random.Generator) -> str:
    """A room: wall, floor, furniture-like blocks. A gradient here would cost a millisecond; `expose` adds the light."""
    light = rng.uniform(0.3, 0.92)
    parts = [f'<rect width="96" height="96" fill="{rgb(rng.random(), rng.uniform(0.05, 0.45), light)}"/>']
    if rng.random() < 0.5:
        floor = rgb(rng.random(), rng.uniform(0.05, 0.35), light * rng.uniform(0.7, 1.1))
        parts.append(f'<rect y="{rng.uniform(60, 88):.0f}" width="96" height="40" fill="{floor}"/>')
    for x, y, w, h in rng.uniform((-10, -10, 6, 6), (96, 80, 34, 50), (rng.integers(0, 5), 4)):
        ink = rgb(rng.random(), rng.uniform(0.1, 0.5), light + rng.uniform(-0.25, 0.2))
        shape = (
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{w:.0f}" height="{h:.0f}" rx="{rng.integers(0, 5)}" fill="{ink}"/>'
        )
        parts.append(
            shape if rng.random() < 0.7 else f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{w / 2:.0f}" fill="{ink}"/>'
        )
    return "".join(parts)


def occluder(rng: np.random.Generator) -> str:
    """Now and then something stands before the garment, never before the middle of it."""
    kind, ink = rng.random(), rgb(rng.random(), 0.35, rng.uniform(0.15, 0.7))
    x = rng.choice([-1, 1]) * rng.uniform(15, 21)
    if kind < 0.1:  # shoulder bag
        return (
            f'<path stroke="{ink}" stroke-width="1.6" fill="none" d="M{0.55 * x:.1f} 22L{x:.1f} 56"/>'
            f'<rect x="{x - 6:.1f}" y="54" width="12" height="12" rx="2" fill="{ink}" stroke="#0006" '
            f'stroke-width=".7"/>'
        )
    if kind < 0.17:  # phone
        return f'<rect x="{x - 2.4:.1f}" y="{rng.uniform(34, 44):.1f}" width="5" height="9" rx="1" fill="#15161a"/>'
    if kind < 0.22:  # plant or chair edge in the foreground
        return f'<ellipse cx="{1.35 * x:.1f}" cy="{rng.uniform(60, 90):.0f}" rx="7" ry="16" fill="{ink}"/>'
    return ""


def camera(
    top: float, bottom: float, scale: float, turn: float, lean: float, shift: np.ndarray
) -> tuple[float, float, str]:
    """Pixels per unit across and down, and the transform that brings top to bottom into the frame.

    A long outfit is squashed rather than small: its prints and details stay readable.
    """
    down = FRAME / (bottom - top) * scale
    across = (1.75 * down * scale) ** 0.5
    return (
        across,
        down,
        (
            f"translate({FRAME / 2 + shift[0]:.1f} {FRAME / 2 + shift[1]:.1f}) rotate({turn:.1f}) skewX({lean:.1f}) "
            f"scale({across:.3f} {down:.3f}) translate(0 {-(top + bottom) / 2:.1f})"
        ),
    )


def expose(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A light from one side, exposure, and sensor noise; (size, size, 3) float, 0 to 255."""
    size, turn = len(pixels), rng.uniform(0, 2 * math.pi)
    x = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + rng.uniform(0, 0.3) * (math.cos(turn) * x[None, :, None] + math.sin(turn) * x[:, None, None])
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(1, 6)
    return pixels * (light * rng.uniform(0.85, 1.1)) + rng.uniform(-8, 12) + noise
