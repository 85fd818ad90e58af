"""The cloth and the trims: textile patterns, fabric surfaces, collars and details, as tables of SVG."""

# A tile is drawn in its own pixels at a pitch of about 10 and repeated without a seam.
# {a} ground, {b} ink, {c} second ink.
Tile = tuple[float, float, str]

FLOWER = (
    '<g transform="translate({x} {y}) scale({s})" fill="{ink}">'
    '<circle cy="-2.6" r="2"/><circle cx="2.5" cy="-.8" r="2"/><circle cx="1.5" cy="2.1" r="2"/>'
    '<circle cx="-1.5" cy="2.1" r="2"/><circle cx="-2.5" cy="-.8" r="2"/><circle r="1.5" fill="{eye}"/></g>'
)
STAR = "M0-4.2 1.1-1.4 4-1.3 1.7.5 2.5 3.4 0 1.7-2.5 3.4-1.7.5-4-1.3-1.1-1.4z"
HEART = "M0 3.9C-6.5-1-3.2-4.9 0-2 3.2-4.9 6.5-1 0 3.9z"
LEAF = "M0-7Q5-1 0 7Q-5-1 0-7z"
PAISLEY = "M-1 5.6C-6 4-5-3.5 3.4-5.4 1.6-2.8 5.6 1 3.6 4 2.4 5.8.6 6.1-1 5.6z"
SPOT = "M-3.2-1.6Q-1-4 2-2.6L1.2-1.2Q-1-2-2-.4zM3.2-.6Q3.4 2.6.4 3.2L.2 1.9Q2 1.4 1.9-.4zM-2.8 1Q-2.4 2.6-1 3L-1.4 1.6z"


def flower(x: float, y: float, scale: float, ink: str, eye: str) -> str:
    """A five-petalled blossom about 9 px across at scale 1."""
    return FLOWER.format(x=x, y=y, s=scale, ink=ink, eye=eye)


def motif(path: str, *places: tuple[float, float, float, float, str]) -> str:
    """One path at several places: x, y, turn in degrees, scale, ink."""
    return "".join(
        f'<path transform="translate({x} {y}) rotate({turn}) scale({scale})" fill="{ink}" d="{path}"/>'
        for x, y, turn, scale, ink in places
    )


def scattered(path: str, scale: float, tilt: float = 0) -> str:
    """A half-drop repeat on a 16 x 16 tile, in both inks."""
    return motif(path, (4, 4, tilt, scale, "{b}"), (12, 12, -tilt, scale, "{c}"))


TEXTURES: dict[str, Tile] = {
    "solid": (10, 10, ""),
    "horizontal stripe": (10, 10, '<path fill="{b}" d="M0 0h10v4.6H0z"/>'),
    "vertical stripe": (10, 10, '<path fill="{b}" d="M0 0h4.8v10H0z"/>'),
    "diagonal stripe": (12, 12, '<path stroke="{b}" stroke-width="4.2" d="M-3 9 9-3M-3 21 21-3M3 15 15 3M9 21 21 9"/>'),
    "pinstripe": (8, 8, '<path fill="{b}" d="M0 0h1.5v8H0z"/>'),
    "polka dot": (12, 12, '<circle cx="3" cy="3" r="2.7" fill="{b}"/><circle cx="9" cy="9" r="2.7" fill="{b}"/>'),
    "plaid": (
        20,
        20,
        '<path fill="{b}" fill-opacity=".55" d="M0 0h8v20H0zM0 0h20v8H0z"/>'
        '<path fill="{c}" d="M13 0h1.8v20H13zM0 13h20v1.8H0z"/><path fill="{b}" d="M0 0h8v8H0z" fill-opacity=".6"/>',
    ),
    "gingham": (
        9,
        9,
        '<path fill="{b}" fill-opacity=".5" d="M0 0h4.5v9H0zM0 0h9v4.5H0z"/><path fill="{b}" d="M0 0h4.5v4.5H0z"/>',
    ),
    "windowpane": (13, 13, '<path stroke="{b}" stroke-width="1.7" fill="none" d="M0 6.5h13M6.5 0v13"/>'),
    "houndstooth": (12, 12, '<path fill="{b}" d="M0 0h6l6 6v3L6 3v3H0zM6 6v6H3zM6 9l3 3H6zM0 9l3 3H0z"/>'),
    "argyle": (
        16,
        22,
        '<path fill="{b}" d="M8 0 16 11 8 22 0 11z"/><path stroke="{c}" stroke-width="1.1" fill="none" '
        'd="M0 0 16 22M16 0 0 22"/>',
    ),
    "chevron": (
        14,
        10,
        '<path fill="none" stroke="{b}" stroke-width="4" d="M-1 8 7 1 15 8M-1 18 7 11 15 18M-1-2 7-9 15-2"/>',
    ),
    "floral": (
        22,
        22,
        flower(6, 6, 1.15, "{b}", "{c}") + flower(17, 16, 1.25, "{c}", "{b}") + flower(17, 4, 0.6, "{b}", "{a}"),
    ),
    "leaf": (18, 18, motif(LEAF, (5, 8, 35, 0.95, "{b}"), (14, 9, -30, 0.95, "{c}"))),
    "leopard": (
        18,
        18,
        motif(SPOT, (4, 4, 0, 1, "{b}"), (13, 5, 100, 1.1, "{b}"), (5, 13, 200, 1.1, "{b}"), (14, 14, 50, 0.9, "{b}")),
    ),
    "zebra": (
        26,
        18,
        '<path fill="{b}" d="M0 1Q7 6 13 1.6 20-1 26 1V3.6Q19 2 14 5.4 7 9 0 4zM2 9Q9 14 15 9.4 21 7 26 10L18 '
        "11.6Q12 15.6 2 9z"
        'M0 14Q6 17 11 14.6L6 18Q3 18 0 16.8z"/>',
    ),
    "camouflage": (
        30,
        30,
        '<path fill="{b}" d="M2 3Q9-2 14 3 20 7 14 11 6 9 5 13-2 10 2 3zM18 17Q26 12 29 19 26 27 19 25 12 22 18 '
        '17z"/>'
        '<path fill="{c}" d="M18 2Q26-1 28 7 21 14 18 9zM3 18Q10 14 13 20 11 29 4 27-1 23 3 18z"/>',
    ),
    "paisley": (
        18,
        20,
        motif(PAISLEY, (5, 6, 0, 0.95, "{b}"), (13, 15, 180, 0.95, "{b}"), (5, 6.6, 0, 0.4, "{c}"))
        + '<circle cx="13.4" cy="14.4" r="1.6" fill="{c}"/>',
    ),
    "abstract": (
        28,
        28,
        '<path stroke="{b}" stroke-width="2.2" fill="none" d="M2 10q5-9 9 0t8-3M14 24q4-9 11-2"/>'
        '<path fill="{c}" d="M20 4l7 3-6 6zM3 18h7v6H3z"/><circle cx="16" cy="16" r="2.4" fill="{b}"/>',
    ),
    "color block": (60, 36, '<path fill="{b}" d="M0 0h60v13H0z"/><path fill="{c}" d="M30 13h30v23H30z"/>'),
    "star": (16, 16, scattered(STAR, 1.05)),
    "heart": (16, 16, scattered(HEART, 0.95)),
    "tie dye": (
        44,
        44,
        "".join(
            f'<circle cx="22" cy="22" r="{r}" fill="none" stroke="{{{ink}}}" stroke-width="3.4" stroke-opacity=".75" '
            f'stroke-dasharray="9 1.5 5 1"/>'
            for r, ink in [(3, "b"), (9, "c"), (15, "b"), (21, "c")]
        ),
    ),
    "ombre": (10, 10, ""),  # the ground itself fades, see `definitions`
}

# Surfaces: light and shadow over the print, whatever its colour.
W, K = 'stroke="#fff" fill="none"', 'stroke="#000" fill="none"'
FABRICS: dict[str, Tile] = {
    "cotton": (10, 10, ""),
    "denim": (
        10,
        10,
        f'<path {W} stroke-width="1.2" stroke-opacity=".5" d="M-1 6 6-1M-1 11 11-1M4 11 11 4"/>'
        f'<path {K} stroke-width="1" stroke-opacity=".35" d="M-1 3.5 3.5-1M-1 8.5 8.5-1M1.5 11 11 1.5M6.5 11 11 6.5"/>',
    ),
    "knit": (
        9.2,
        8,
        f'<path {K} stroke-width="1.6" stroke-opacity=".45" d="M0 0v8M4.6 0v8M9.2 0v8"/>'
        f'<path {W} stroke-width="1" stroke-opacity=".45" d="M2.2 0v8M6.8 0v8"/>',
    ),
    "cable knit": (
        13,
        11,
        f'<path {K} stroke-width="1.4" stroke-opacity=".5" d="M3 0Q3 3 7 5.5T10 11M10 0Q10 3 7 5.5T3 11"/>'
        f'<path {W} stroke-width="1.2" stroke-opacity=".6" d="M1 0v11M12 0v11"/>',
    ),
    "lace": (
        9,
        9,
        '<g fill="#fff" fill-opacity=".72"><circle cx="4.5" cy="4.5" r="1.3"/><circle cx="4.5" cy="1.6" r="1.2"/>'
        '<circle cx="4.5" cy="7.4" r="1.2"/><circle cx="1.6" cy="4.5" r="1.2"/><circle cx="7.4" cy="4.5" '
        'r="1.2"/></g>'
        f'<path {W} stroke-width=".7" stroke-opacity=".6" d="M0 0 9 9M9 0 0 9"/>',
    ),
    "leather": (
        30,
        44,
        '<path fill="#fff" fill-opacity=".55" d="M4 0Q10 16 3 34L6 44Q15 20 9 0z"/><path fill="#fff" '
        'fill-opacity=".35" '
        'd="M20 6Q26 22 19 40 24 26 20 6z"/><path fill="#000" fill-opacity=".4" d="M12 0Q18 20 11 44H16Q22 18 '
        '17 0z"/>',
    ),
    "chiffon": (
        16,
        10,
        '<path fill="#fff" fill-opacity=".3" d="M0 0h4v10H0z"/><path fill="#fff" fill-opacity=".16" d="M8 0h3v10H8z"/>',
    ),
    "satin": (
        40,
        26,
        '<path fill="#fff" fill-opacity=".5" d="M0 4Q18 12 40 0V7Q18 20 0 9z"/><path fill="#000" fill-opacity=".28" '
        'd="M0 15Q20 25 40 12V17Q20 30 0 20z"/>',
    ),
    "fur": (
        9,
        10,
        f'<path {W} stroke-width="1.1" stroke-opacity=".6" d="M1 0l-1 4M5 2l1 5M8 6l-2 4"/>'
        f'<path {K} stroke-width="1.1" stroke-opacity=".45" d="M3 1l1 5M7 0l1 4M2 6l-1 4"/>',
    ),
    "mesh": (5.2, 5.2, f'<path {K} stroke-width="1.1" stroke-opacity=".7" d="M0 0 5.2 5.2M5.2 0 0 5.2"/>'),
    "corduroy": (
        5,
        10,
        '<path fill="#000" fill-opacity=".38" d="M0 0h1.8v10H0z"/><path fill="#fff" '
        'fill-opacity=".28" d="M2.6 0h1.2v10H2.6z"/>',
    ),
    "quilted": (
        13,
        13,
        f'<path {K} stroke-width="1.4" stroke-opacity=".6" d="M0 0 13 13M13 0 0 13"/>'
        '<circle cx="6.5" cy="1.4" r="2.2" fill="#fff" fill-opacity=".45"/><circle cx="0" cy="6.5" r="2.2" '
        'fill="#fff" fill-opacity=".45"/>',
    ),
    "sequin": (
        7,
        7,
        '<circle cx="1.7" cy="1.7" r="1.5" fill="#fff" fill-opacity=".9"/><circle cx="5.2" cy="5.2" r="1.5" '
        'fill="#fff" fill-opacity=".5"/>'
        '<circle cx="5.2" cy="1.7" r="1.3" fill="#000" fill-opacity=".4"/><circle cx="1.7" cy="5.2" r="1.3" '
        'fill="#000" fill-opacity=".2"/>',
    ),
    "tweed": (
        8,
        8,
        f'<path {W} stroke-width="1.3" stroke-opacity=".6" d="M0 0l2 2M4 4l2 2M5 1l2-1M1 6l2-1"/>'
        f'<path {K} stroke-width="1.3" stroke-opacity=".55" d="M4 0l-2 2M8 4l-2 2M1 4l1-1M5 7l1 1"/>',
    ),
    "crochet": (
        8,
        8,
        f'<circle cx="4" cy="4" r="2.6" fill="#000" fill-opacity=".55"/><circle {W} cx="4" cy="4" '
        f'r="3.4" stroke-opacity=".7"/>',
    ),
    "velvet": (
        34,
        34,
        '<path fill="#000" fill-opacity=".42" d="M0 0h13Q17 17 13 34H0Q5 17 0 0z"/><path fill="#fff" '
        'fill-opacity=".34" '
        'd="M17 0Q21 17 17 34H22Q26 17 22 0z"/>',
    ),
    "fleece": (
        8,
        8,
        f'<path {K} stroke-width="1" stroke-opacity=".5" d="M0 2q2-3 4 0t4 0M0 6q2 3 4 0t4 '
        f'0"/><circle cx="2" cy="4" r="1.2" fill="#fff" fill-opacity=".5"/>',
    ),
    "linen": (
        11,
        9,
        f'<path {W} stroke-width=".9" stroke-opacity=".6" d="M0 2h6M5 6.5h6"/><path {K} '
        f'stroke-width=".9" stroke-opacity=".4" d="M2 0v5M8 3v6"/>',
    ),
    "pleated": (
        10,
        10,
        '<path fill="#000" fill-opacity=".5" d="M0 0h1.4v10H0z"/><path fill="#000" '
        'fill-opacity=".2" d="M1.4 0h3v10H1.4z"/><path fill="#fff" fill-opacity=".4" d="M7 0h2.4v10H7z"/>',
    ),
    "ruched": (
        26,
        7,
        f'<path {K} stroke-width="1.3" stroke-opacity=".5" d="M0 2q6 4 13 0t13 0"/><path {W} '
        f'stroke-width="1.2" stroke-opacity=".45" d="M0 4.6q6 4 13 0t13 0"/>',
    ),
    "metallic": (
        18,
        60,
        '<path fill="#fff" fill-opacity=".75" d="M3 0h3v60H3z"/><path fill="#000" fill-opacity=".45" d="M8 '
        '0h4v60H8z"/><path fill="#fff" '
        'opacity=".4" d="M14 0h2v60H14z"/>',
    ),
    "distressed": (
        26,
        24,
        '<path fill="#fff" fill-opacity=".85" d="M4 6h9l-1 3H3zM15 16h8v3h-9z"/>'
        f'<path {K} stroke-width=".8" stroke-opacity=".8" d="M3 6h11M3 9.4h10M14 15.6h10M13 19.4h11"/>',
    ),
}

SHEER = {"chiffon": 0.62, "lace": 0.8, "mesh": 0.72}  # opacity of the ground: skin shows through
SOFT_EDGE = {"fur": "1.1 .9", "fleece": "2 1.4", "lace": ".1 2.6"}  # dash of the rim, in figure units

# Fills: {t} trim, {k} dark line, {w} light, {m} metal, {a} the print.
COLLARS: dict[str, str] = {
    "shirt": '<path fill="{t}" d="M0 25.5-5.6 17.5-10 24.5-3.4 30zM0 25.5 5.6 17.5 10 24.5 3.4 30z"/>',
    "peter pan": '<path fill="{t}" d="M0 23C-1 31-12 31-11.5 22Q-8 18-5 18.5-3 22 0 23zM0 23C1 31 12 31 11.5 '
    '22Q8 18 5 18.5 3 22 0 23z"/>',
    "puritan": '<path fill="{t}" d="M0 23-5 18-15.5 24.5-12 34-3.5 32.5zM0 23 5 18 15.5 24.5 12 34 3.5 32.5z"/>',
    "notched lapel": '<path fill="{w}" d="M-5 18.5 0 43 5 18.5z"/><path fill="{t}" d="M-5 17.5-9 22.5-13 25-9.5 '
    "28.5-12 31 0 46-3.5 33zM5 17.5 9 22.5 13 25 "
    '9.5 28.5 12 31 0 46 3.5 33z"/>',
    "shawl": '<path fill="{w}" d="M-5 18.5 0 43 5 18.5z"/><path fill="{t}" d="M-5 17.5C-15 22-13 34 0 46Q-4 '
    '34-3.6 24zM5 17.5C15 22 13 34 0 46Q4 34 3.6 24z"/>',
    "big shawl": '<path fill="{w}" d="M-5 18.5 0 48 5 18.5z"/><path fill="{t}" d="M-5 15C-22 20-19 42 0 54Q-4 '
    '38-3.6 24zM5 15C22 20 19 42 0 54Q4 38 3.6 24z"/>',
    "collarless": '<path fill="{w}" d="M-5.5 19 0 46 5.5 19z"/><path fill="none" stroke="{t}" stroke-width="2" '
    'd="M-6 18.5 0 46 6 18.5"/>',
    "turtleneck": '<path fill="{a}" d="M-6 12.5Q0 15 6 12.5L6.8 22.5Q0 27-6.8 22.5z"/><path d="M-6 17Q0 20 6 '
    '17" fill="none"/>',
    "low turtleneck": '<path fill="{a}" d="M-6.4 17.5Q0 20 6.4 17.5L7.4 22.5Q0 27-7.4 22.5z"/>',
    "rib": '<path fill="none" stroke="{t}" stroke-width="3" d="M-6 20Q0 28.5 6 20"/>',
    "cowl": '<path fill="{a}" d="M-9 20Q0 26 9 20 13 32 0 37-13 32-9 20z"/><path d="M-8 23Q0 31 8 23M-8.5 26Q0 '
    '36 8.5 26" fill="none" stroke-width="1.2"/>',
    "ruffle neck": '<g fill="{t}"><circle cx="-6" cy="17" r="3"/><circle cx="6" cy="17" r="3"/><circle '
    'cx="-3.6" cy="20.5" r="3"/>'
    '<circle cx="3.6" cy="20.5" r="3"/><circle cy="22" r="3"/></g>',
    "pussy bow": '<path fill="{t}" d="M0 25-11 19-11 30zM0 25 11 19 11 30zM-1 25-6 42-1 41.5 0 28 1 41.5 6 42 1 '
    '25z"/><circle cy="25" r="2.4" fill="{t}"/>',
    "hood": '<path d="M-7.5 20Q0 31 7.5 20L10 23Q0 36-10 23z" fill="{a}"/><path d="M-3 29v11M3 29v11" '
    'stroke="{w}" stroke-width="1.3"/>',
}
HOOD_BACK = '<path fill="{a}" stroke="{k}" stroke-width=".7" d="M-13 25C-17-4 17-4 13 25z"/>'
TRAIN = '<path fill="{c}" stroke="{k}" stroke-width=".7" d="M-8 40Q-16 80-33 104Q0 110 33 104Q16 80 8 40z"/>'

DETAILS: dict[str, str] = {
    "pocket": '<path fill="{t}" stroke="{k}" stroke-width=".8" d="M-10.4 {y}h7v8l-3.5 2-3.5-2zM10.4 {y}h-7v8l3.5 '
    '2 3.5-2z"/>',
    "zip": '<path stroke="{m}" stroke-width="2.6" d="M0 {top}V{end}"/><path stroke="#222" stroke-width="1.6" '
    'stroke-dasharray="1 1" d="M0 {top}V{end}"/><path fill="{m}" stroke="#222" stroke-width=".5" d="M-1.6 '
    '{top}h3.2v4h-3.2z"/>',
    "belt": '<path fill="{t}" stroke="{k}" stroke-width=".5" d="M-{u} 44.2h{uu}v4.4h-{uu}z"/><path fill="none" '
    'stroke="{m}" stroke-width="1.4" d="M-3 43.4h6v6h-6z"/>',
    "cut-out": '<path fill="{s}" stroke="{k}" stroke-width=".8" d="M-{u} 37Q-3.4 42-{u} 49zM{u} 37Q3.4 42 {u} 49z"/>',
    "lace-up": '<path fill="{s}" d="M-3.4 25h6.8L2 44h-4z"/><path fill="none" stroke="{t}" stroke-width="1.4" '
    'd="M-4 26 4 30.5M4 26-4 30.5M-3.6 32 3.6 36.5M3.6 32-3.6 36.5M-3 38 3 42.5M3 38-3 42.5M-2 43-5 50M2 43 5 50"/>',
    "epaulettes": '<path fill="{t}" stroke="{k}" stroke-width=".7" d="M-6 18.5-15 22-15.5 26.5-7 22.5zM6 18.5 '
    '15 22 15.5 26.5 7 22.5z"/>',
    "kangaroo": '<path fill="{t}" stroke="{k}" stroke-width=".8" d="M-5 45.5h10l4 9h-18z"/>',
    "bib": '<path fill="{a}" stroke="{k}" stroke-width=".8" d="M-7.5 31h15L10 47h-20z"/><path stroke="{a}" '
    'stroke-width="3" '
    'd="M-6.5 32-8 20.5M6.5 32 8 20.5"/><circle cx="-6.3" cy="32.6" r="1.4" fill="{m}"/><circle cx="6.3" '
    'cy="32.6" r="1.4" fill="{m}"/>',
    "panel": '<path fill="{t}" stroke="{k}" stroke-width=".6" d="M-9 24.5h18v9h-18z" fill-opacity=".85"/>',
    "waist seam": '<path stroke="{k}" stroke-width="1.3" fill="none" d="M-{u} 46Q0 47.5 {u} 46"/>',
    "rib hem": '<path fill="{t}" stroke="{k}" stroke-width=".5" d="M-{e} {rib}h{ee}v4h-{ee}z"/>',
    "tie waist": '<path fill="{t}" stroke="{k}" stroke-width=".5" d="M-{u} 44.6h{uu}v2.6h-{uu}z"/><path '
    'stroke="{t}" stroke-width="1.8" fill="none" d="M3 46Q6 52 4 60M3 46Q9 51 9 57"/>',
}
BUTTONS: dict[str, list[tuple[float, float]]] = {
    "single": [(0, 43)],
    "placket": [(0, 30), (0, 35.5), (0, 41)],
    "row": [(0, y) for y in range(28, 100, 6)],
    "double": [(x, y) for y in range(33, 66, 7) for x in (-4.6, 4.6)],
    "toggles": [(0, y) for y in range(30, 66, 9)],
}


def definitions(
    texture: str, fabric: str, ink: dict[str, str], pitch: float, transform: str, tag: str
) -> tuple[str, list[str]]:
    """SVG definitions, and the fills that lie over one another: ground, print, cloth.

    pitch: scale of the print, 1 is about 10 px a repeat at 96 px; tag: keeps the pieces' names apart.
    """
    a, b, defs, fills = ink["a"], ink["b"], "", [ink["a"]]
    if texture == "ombre":
        span = f'gradientUnits="userSpaceOnUse" x1="0" x2="0" y1="24" y2="{ink["low"]}"'
        stops = f'<stop offset=".15" stop-color="{a}"/><stop offset=".85" stop-color="{b}"/>'
        defs, fills = f'<linearGradient id="fade-{tag}" {span}>{stops}</linearGradient>', [f"url(#fade-{tag})"]
    scaled = f"{transform} scale({pitch:.3f})"
    for name, tile, turn in [("print", TEXTURES[texture], scaled), ("cloth", FABRICS[fabric], transform)]:
        if tile[2]:
            defs += pattern(f"{name}-{tag}", tile, turn, ink)
            fills.append(f"url(#{name}-{tag})")
    return defs, fills


def pattern(name: str, tile: Tile, transform: str, ink: dict[str, str]) -> str:
    """A tile as an SVG <pattern>, its inks filled in."""
    width, height, body = tile
    return (
        f'<pattern id="{name}" patternUnits="userSpaceOnUse" width="{width}" height="{height}" '
        f'patternTransform="{transform}">{body.format(**ink)}</pattern>'
    )
