"""What surrounds a garment and no label describes: the person, background, camera and light."""

import math

import numpy as np

from m3lib.prepare.wardrobe.garments import Garment, arm_joints
from m3lib.prepare.wardrobe.svg import along, area, line, outlined, rgb, tube

FRAME = 96  # width and height of the SVG view box


def person(g: Garment, rng: np.random.Generator, skin: str) -> tuple[str, str]:
    """Return the body, which is drawn below the garment, and the head, which is drawn above it."""
    shoe = rgb(rng.random(), 0.3, rng.uniform(0.1, 0.85))
    stance, body = rng.uniform(0, 3), ""
    for side in (-1, 1):
        leg = [(side * 6, 56), (side * (6 + stance * 0.6), 80), (side * (6 + stance), 103)]
        leg = tube(along(leg, np.linspace(0, 1, 6)), np.array([6, 5.2, 4.2, 3.6, 3.4, 2.4]))
        arm = tube(along(arm_joints(g, side), np.linspace(0, 1, 7)), np.array([4, 3.6, 3.3, 3, 2.7, 2.5, 1.6]))
        body += outlined(skin, "#0004", 0.7, leg)
        body += f'<ellipse fill="{shoe}" cx="{side * (7 + stance):.1f}" cy="104.5" rx="4.4" ry="2.4"/>'
        body += outlined(skin, "#0004", 0.7, arm)
    trunk = "M-4 14V19Q-9 21-13 24.5L-11 34-8.6 46-12.4 60H12.4L8.6 46 11 34 13 24.5Q9 21 4 19V14z"
    body += outlined(skin, "#0004", 0.7, trunk)
    hair = rgb(rng.uniform(0.02, 0.13), rng.uniform(0.1, 0.6), rng.uniform(0.06, 0.6))
    head = f'<ellipse cy="8.6" rx="6.2" ry="7.8" fill="{skin}" stroke="#0003" stroke-width=".6"/>'
    head += area(hair, "M-7 8Q-8-1 0-1.4 8-1 7 8 4 2 0 2.6-4 2-7 8z")
    y = rng.uniform(9, 19)
    if rng.random() < 0.6:  # long hair
        left = f"M-7.6 6Q-9 {y:.1f}-6.6 {y + 3:.1f}L-4.6 {y:.1f}-5 6z"
        head += area(hair, left + f"M7.6 6Q9 {y:.1f} 6.6 {y + 3:.1f}L4.6 {y:.1f} 5 6z")
    return body, head + line("#5229", 1, "M-2 12.4h4M-3.4 8h1.8M1.6 8h1.8")


def background(rng: np.random.Generator) -> str:
    """Return a room: wall, floor, and up to four blocks of furniture."""
    light = rng.uniform(0.3, 0.92)
    room = f'<rect width="96" height="96" fill="{rgb(rng.random(), rng.uniform(0.05, 0.45), light)}"/>'
    if rng.random() < 0.5:
        floor = rgb(rng.random(), rng.uniform(0.05, 0.35), light * rng.uniform(0.7, 1.1))
        room += f'<rect y="{rng.uniform(60, 88):.0f}" width="96" height="40" fill="{floor}"/>'
    for x, y, w, h in rng.uniform((-10, -10, 6, 6), (96, 80, 34, 50), (rng.integers(0, 5), 4)):
        ink = rgb(rng.random(), rng.uniform(0.1, 0.5), light + rng.uniform(-0.25, 0.2))
        corner = rng.integers(0, 5)
        if rng.random() < 0.7:
            room += f'<rect x="{x:.0f}" y="{y:.0f}" width="{w:.0f}" height="{h:.0f}" rx="{corner}" fill="{ink}"/>'
        else:
            room += f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{w / 2:.0f}" fill="{ink}"/>'
    return room


def occluder(rng: np.random.Generator) -> str:
    """Return, in 22 % of the images, an object in front of the garment: a bag, a phone, or a plant; never centred."""
    kind, ink = rng.random(), rgb(rng.random(), 0.35, rng.uniform(0.15, 0.7))
    x = rng.choice([-1, 1]) * rng.uniform(15, 21)
    if kind < 0.1:
        square = f'x="{x - 6:.1f}" y="54" width="12" height="12" rx="2"'
        bag = f'<rect {square} fill="{ink}" stroke="#0006" stroke-width=".7"/>'
        return line(ink, 1.6, f"M{0.55 * x:.1f} 22L{x:.1f} 56") + bag
    if kind < 0.17:
        return f'<rect x="{x - 2.4:.1f}" y="{rng.uniform(34, 44):.1f}" width="5" height="9" rx="1" fill="#15161a"/>'
    if kind < 0.22:
        return f'<ellipse cx="{1.35 * x:.1f}" cy="{rng.uniform(60, 90):.0f}" rx="7" ry="16" fill="{ink}"/>'
    return ""


def camera(g: Garment, rng: np.random.Generator) -> tuple[float, float, str]:
    """Return pixels per figure unit across and down, and the transform that fits the garment into the frame."""
    low = g.hem if not g.lower or g.worn == "upper" else max(g.hem, g.lower_hem)
    top, bottom = {"full": (7, max(low + 7, 62)), "upper": (7, 58), "lower": (54, 110)}[g.crop]
    down = FRAME / (bottom - top) * g.scale
    across = (1.75 * down * g.scale) ** 0.5  # shrinks less than `down`: prints on a long outfit stay recognizable
    x, y = FRAME / 2 + rng.uniform(-3.5, 3.5, 2)
    pose = f"translate({x:.1f} {y:.1f}) rotate({g.turn:.1f}) skewX({g.lean:.1f})"
    return across, down, f"{pose} scale({across:.3f} {down:.3f}) translate(0 {-(top + bottom) / 2:.1f})"


def expose(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add light from one side, exposure and sensor noise to (size, size, 3) float pixels between 0 and 255."""
    size, angle = len(pixels), rng.uniform(0, 2 * math.pi)
    x = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + rng.uniform(0, 0.3) * (math.cos(angle) * x[None, :, None] + math.sin(angle) * x[:, None, None])
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(1, 6)
    return pixels * (light * rng.uniform(0.85, 1.1)) + rng.uniform(-8, 12) + noise
