"""What is sewn onto a garment, as SVG: collars, details, seams and buttons.

Colours in templates: {t} trim, {k} dark outline, {w} light, {m} metal, {s} skin, {a} ground, {b} and {c} print.
"""

import numpy as np

from m3lib.prepare.wardrobe.garments import WAIST, Garment, width_at
from m3lib.prepare.wardrobe.svg import Inks, area, dots, line, outlined

# fmt: off
COLLARS: dict[str, str] = {
    "shirt": area("{t}", "M0 25.5-5.6 17.5-10 24.5-3.4 30zM0 25.5 5.6 17.5 10 24.5 3.4 30z"),
    "peter pan": area("{t}", "M0 23C-1 31-12 31-11.5 22Q-8 18-5 18.5-3 22 0 23z"
                             "M0 23C1 31 12 31 11.5 22Q8 18 5 18.5 3 22 0 23z"),
    "puritan": area("{t}", "M0 23-5 18-15.5 24.5-12 34-3.5 32.5zM0 23 5 18 15.5 24.5 12 34 3.5 32.5z"),
    "notched lapel": area("{w}", "M-5 18.5 0 43 5 18.5z") + area("{t}", "M-5 17.5-9 22.5-13 25-9.5 28.5-12 31 0 46"
                                  "-3.5 33zM5 17.5 9 22.5 13 25 9.5 28.5 12 31 0 46 3.5 33z"),
    "shawl": area("{w}", "M-5 18.5 0 43 5 18.5z")
             + area("{t}", "M-5 17.5C-15 22-13 34 0 46Q-4 34-3.6 24zM5 17.5C15 22 13 34 0 46Q4 34 3.6 24z"),
    "big shawl": area("{w}", "M-5 18.5 0 48 5 18.5z")
                 + area("{t}", "M-5 15C-22 20-19 42 0 54Q-4 38-3.6 24zM5 15C22 20 19 42 0 54Q4 38 3.6 24z"),
    "collarless": area("{w}", "M-5.5 19 0 46 5.5 19z") + line("{t}", 2, "M-6 18.5 0 46 6 18.5"),
    "turtleneck": area("{a}", "M-6 12.5Q0 15 6 12.5L6.8 22.5Q0 27-6.8 22.5z") + line("{k}", 0.8, "M-6 17Q0 20 6 17"),
    "low turtleneck": area("{a}", "M-6.4 17.5Q0 20 6.4 17.5L7.4 22.5Q0 27-7.4 22.5z"),
    "rib": line("{t}", 3, "M-6 20Q0 28.5 6 20"),
    "cowl": area("{a}", "M-9 20Q0 26 9 20 13 32 0 37-13 32-9 20z")
            + line("{k}", 1.2, "M-8 23Q0 31 8 23M-8.5 26Q0 36 8.5 26"),
    "ruffle neck": dots("{t}", (-6, 17, 3), (6, 17, 3), (-3.6, 20.5, 3), (3.6, 20.5, 3), (0, 22, 3)),
    "pussy bow": area("{t}", "M0 25-11 19-11 30zM0 25 11 19 11 30zM-1 25-6 42-1 41.5 0 28 1 41.5 6 42 1 25z")
                 + dots("{t}", (0, 25, 2.4)),
    "hood": area("{a}", "M-7.5 20Q0 31 7.5 20L10 23Q0 36-10 23z") + line("{w}", 1.3, "M-3 29v11M3 29v11"),
}
HOOD_BACK = outlined("{a}", "{k}", 0.7, "M-13 25C-17-4 17-4 13 25z")
TRAIN = outlined("{c}", "{k}", 0.7, "M-8 40Q-16 80-33 104Q0 110 33 104Q16 80 8 40z")
OPEN_FRONT = (outlined("{w}", "{k}", 1, "M-4.5 19-4.8 {bottom}H4.8L4.5 19Q0 24-4.5 19z")
              + line("{t}", 1.6, "M-5 19-5.6 {bottom}M5 19 5.6 {bottom}"))
# Positions in templates: {y} pockets; {top} and {end} of the front; {u} half-width and {uu} width of the waist, {e} and
# {ee} of the hem; {rib} top of a ribbed hem.
DETAILS: dict[str, str] = {
    "pocket": outlined("{t}", "{k}", 0.8, "M-10.4 {y}h7v8l-3.5 2-3.5-2zM10.4 {y}h-7v8l3.5 2 3.5-2z"),
    "zip": line("{m}", 2.6, "M0 {top}V{end}")
           + '<path stroke="#222" stroke-width="1.6" stroke-dasharray="1 1" d="M0 {top}V{end}"/>'
           + outlined("{m}", "#222", 0.5, "M-1.6 {top}h3.2v4h-3.2z"),
    "belt": outlined("{t}", "{k}", 0.5, "M-{u} 44.2h{uu}v4.4h-{uu}z") + line("{m}", 1.4, "M-3 43.4h6v6h-6z"),
    "cut-out": outlined("{s}", "{k}", 0.8, "M-{u} 37Q-3.4 42-{u} 49zM{u} 37Q3.4 42 {u} 49z"),
    "lace-up": area("{s}", "M-3.4 25h6.8L2 44h-4z") + line("{t}", 1.4, "M-4 26 4 30.5M4 26-4 30.5M-3.6 32 3.6 36.5"
                    "M3.6 32-3.6 36.5M-3 38 3 42.5M3 38-3 42.5M-2 43-5 50M2 43 5 50"),
    "epaulettes": outlined("{t}", "{k}", 0.7, "M-6 18.5-15 22-15.5 26.5-7 22.5zM6 18.5 15 22 15.5 26.5 7 22.5z"),
    "kangaroo": outlined("{t}", "{k}", 0.8, "M-5 45.5h10l4 9h-18z"),
    "bib": outlined("{a}", "{k}", 0.8, "M-7.5 31h15L10 47h-20z") + line("{a}", 3, "M-6.5 32-8 20.5M6.5 32 8 20.5")
           + dots("{m}", (-6.3, 32.6, 1.4), (6.3, 32.6, 1.4)),
    "panel": area("{t}", "M-9 24.5h18v9h-18z", 0.85) + line("{k}", 0.6, "M-9 24.5h18v9h-18z"),
    "waist seam": line("{k}", 1.3, "M-{u} 46Q0 47.5 {u} 46"),
    "rib hem": outlined("{t}", "{k}", 0.5, "M-{e} {rib}h{ee}v4h-{ee}z"),
    "tie waist": outlined("{t}", "{k}", 0.5, "M-{u} 44.6h{uu}v2.6h-{uu}z")
                 + line("{t}", 1.8, "M3 46Q6 52 4 60M3 46Q9 51 9 57"),
}
# fmt: on
BUTTONS: dict[str, list[tuple[float, float]]] = {
    "single": [(0, 43)],
    "placket": [(0, 30), (0, 35.5), (0, 41)],
    "row": [(0, y) for y in range(28, 100, 6)],
    "double": [(x, y) for y in range(33, 66, 7) for x in (-4.6, 4.6)],
    "toggles": [(0, y) for y in range(30, 66, 9)],
}


def seams(g: Garment, shape: str, hem: float, ink: Inks) -> str:
    """Return the lines that belong to the silhouette, and the details that follow the hem (fringe, ruffle, slit)."""
    w, drawn = width_at(shape, hem, hem), ""
    if shape == "wrap":
        start = "M-9 46" if g.worn == "lower" else "M6 21-9 46"
        drawn = line(ink["k"], 1.3, f"{start}Q2 58 {0.75 * w:.1f} {hem + 1:.1f}")
        drawn += line(ink["t"], 2.4, "M-9 46H9M-8 46-11 57M-8 46-6 58")
    elif shape == "tiered":
        tiers = [(width_at(shape, y, hem), y) for y in np.linspace(WAIST, hem, 4)[:-1]]
        drawn = line(ink["k"], 2.2, "".join(f"M{-x:.1f} {y:.1f}q{x:.1f} 4 {2 * x:.1f} 0" for x, y in tiers))
    elif shape == "empire":
        drawn = line(ink["t"], 2.4, "M-11.5 34.5Q0 37 11.5 34.5")
    elif shape in ("peplum", "fit and flare") and hem > WAIST + 2:
        folds = "".join(f"M{x} 47L{2.1 * x:.1f} {min(hem, WAIST + 26):.1f}" for x in (-5, 0, 5))
        drawn = line(ink["k"], 0.9, f"M-8.6 46H8.6{folds}")
    if "fringe" in g.details:
        drawn += line(ink["t"], 1.1, "".join(f"M{x:.1f} {hem - 1:.1f}v9" for x in np.arange(-w, w + 0.1, 1.9)))
    if "ruffle" in g.details:
        style = f'rx="2.6" ry="3.6" fill="{ink["t"]}" stroke="{ink["k"]}" stroke-width=".6"'
        drawn += "".join(f'<ellipse cx="{x:.1f}" cy="{hem - 1:.1f}" {style}/>' for x in np.arange(-w + 1, w, 4))
    if "slit" in g.details:
        outline = f"M{0.3 * w:.1f} {hem - 24:.1f}L{0.75 * w:.1f} {hem + 3:.1f}H{0.12 * w:.1f}z"
        drawn += outlined(ink["s"], ink["k"], 0.6, outline)
    return drawn


def button_row(g: Garment, ink: Inks, top: float, end: float) -> str:
    """Return the buttons between two heights; on the edge of an open front, if there is one."""
    offset, radius, drawn = 8 if g.open_front else 0, 2.9 if g.buttons == "single" else 1.9, ""
    if g.buttons == "row":
        drawn = line(ink["k"], 0.9, f"M{offset + 2.6} {top}V{end:.1f}")
    if g.buttons == "placket":
        drawn = outlined(ink["b"], ink["k"], 0.7, f"M{offset - 3} 24h6v20.5h-6z")
    for x, y in [(x, y) for x, y in BUTTONS.get(g.buttons, ()) if top <= y <= end]:
        style = f'cx="{x + (offset if x >= 0 else -offset)}" cy="{y}" stroke="{ink["k"]}" stroke-width=".6"'
        if g.buttons == "toggles":
            drawn += line(ink["t"], 1.2, f"M-5 {y}h10") + f'<ellipse {style} rx="2.8" ry="1.3" fill="{ink["m"]}"/>'
        else:
            drawn += f'<circle {style} r="{radius}" fill="{ink["t"]}"/>'
    return drawn


def trims(g: Garment, ink: Inks) -> str:
    """Return all that is drawn over a garment, from bottom to top; ink: colours by letter."""
    on_lower = g.worn == "lower"  # the lower part carries the print and the trims
    shape, hem = (g.lower_shape, g.lower_hem) if on_lower and g.lower == "skirt" else (g.shape, g.hem)
    if on_lower:
        top, end, y = 24 if "bib" in g.details else WAIST, min(g.lower_hem - 1, 66), 52
    else:
        top, end, y = 24, g.hem, min(34, g.hem - 14) if g.hem < 56 else 50
    u, e = width_at(g.shape, WAIST, g.hem), width_at(g.shape, g.hem, g.hem)
    positions = {"u": f"{u:.1f}", "uu": f"{2 * u:.1f}", "e": f"{e:.1f}", "ee": f"{2 * e:.1f}", "top": top, "y": y}
    positions |= {"end": f"{end:.1f}", "rib": f"{g.hem - 2.5:.1f}", "bottom": f"{g.hem + 2:.1f}"}
    drawn = (OPEN_FRONT if g.open_front else "") + seams(g, shape, hem, ink)
    drawn += "".join(DETAILS[name] for name in g.details if name in DETAILS)
    drawn += button_row(g, ink, top, min(end - 2, 70))
    if g.collar:
        drawn += f'<g stroke="{{k}}" stroke-width=".8">{COLLARS[g.collar]}</g>'
    return drawn.format(**{**ink, **positions})
