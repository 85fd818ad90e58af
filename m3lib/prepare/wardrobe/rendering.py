"""Draw a garment on a person: as SVG, and as pixels."""

import io

import numpy as np
import resvg_py
from PIL import Image

from m3lib.prepare.wardrobe.garments import Garment, bodice, lower_garment, sleeve_and_cuff
from m3lib.prepare.wardrobe.patterns import make_cloths
from m3lib.prepare.wardrobe.scene import background, camera, expose, occluder, person
from m3lib.prepare.wardrobe.svg import Inks, outlined, rgb
from m3lib.prepare.wardrobe.trims import HOOD_BACK, TRAIN, trims

DRAWING = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 96 96">
<defs>{defs}<linearGradient id="fold">
  <stop stop-color="#000" stop-opacity=".26"/><stop offset=".3" stop-color="#fff" stop-opacity=".1"/>
  <stop offset="1" stop-color="#000" stop-opacity=".3"/>
</linearGradient></defs>
{background}
<g transform="{camera}">
  <ellipse cx="{shadow_x:.1f}" cy="62" rx="22" ry="44" fill="#000" fill-opacity="{shadow:.2f}"/>
  {figure}
</g>
</svg>"""


def inks(g: Garment, skin: str) -> Inks:
    """Return the colours by letter, with clear differences in lightness; `low` is the end of an ombre gradient.

    a: ground, b and c: print, t: trim, k: dark outline, s: skin, w: light, m: metal.
    """
    sign = -1 if g.lightness > 0.5 else 1
    contrast = 0.42 if g.saturation > 0.15 else 0.5
    return {
        "a": rgb(g.hue, g.saturation, g.lightness),
        "b": rgb(g.ink, g.ink_saturation, g.lightness + sign * contrast),
        "c": rgb(g.ink + 0.28, g.ink_saturation, g.lightness + sign * 0.27),
        "t": rgb(g.ink + 0.1, 0.25, 0.14 if sign < 0 else 0.9),
        "k": rgb(g.hue, g.saturation * 0.8, max(g.lightness - 0.3, 0.04)),
        "s": skin, "w": "#f4f1ea", "m": "#c9b458",
        "low": f"{max(g.hem, g.lower_hem if g.worn != 'upper' else 0):.0f}",
    }  # fmt: skip


def to_svg(g: Garment, rng: np.random.Generator) -> str:
    """Return the image as SVG with a view box of 96 x 96; rng decides only what no label and no factor describes."""
    across, down, transform = camera(g, rng)
    room = background(rng)
    skin = rgb(rng.uniform(0.045, 0.09), rng.uniform(0.3, 0.55), rng.uniform(0.28, 0.82))
    ink = inks(g, skin)
    defs, cloth = make_cloths(g, ink, across, down)
    body, head = person(g, rng, skin)
    upper = cloth["other" if g.worn == "lower" else "main"].piece(bodice(g))
    for side, name in ((-1, "left"), (1, "right")):
        sleeve, cuff = sleeve_and_cuff(g, side)
        if sleeve:
            upper += cloth["other" if g.worn == "lower" else name].piece(sleeve, "#00000014")
        if cuff:
            upper += outlined(ink["t"], ink["k"], 0.5, cuff)
    lower = cloth["other" if g.worn == "upper" else "main"].piece(lower_garment(g)) if g.lower else ""
    pieces = upper + lower if g.worn == "lower" else lower + upper
    back = HOOD_BACK.format(**ink) if g.collar == "hood" or "hood back" in g.details else ""
    back += TRAIN.format(**ink) if "train" in g.details else ""
    figure = back + body + pieces + head + trims(g, ink) + occluder(rng)
    shadow = {"shadow_x": rng.uniform(-6, 6), "shadow": rng.uniform(0, 0.2)}
    return DRAWING.format(defs=defs, background=room, camera=transform, figure=figure, **shadow)


def render(g: Garment, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image as (size, size, 3) uint8 RGB, with light from one side, exposure and noise."""
    png = resvg_py.svg_to_bytes(svg_string=to_svg(g, rng), width=size, height=size, skip_system_fonts=True)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.float32)
    return np.clip(expose(pixels, rng), 0, 255).astype(np.uint8)
