"""The fonts of figures: names of attributes and classes can be in any script.

Latin, Greek and Cyrillic letters come from matplotlib's own DejaVu Sans; Chinese, Japanese and Korean ones, and Thai,
Arabic, Hindi and about a hundred more scripts from the fonts of the package weblate-fonts. The computer's own fonts are
not used, so that a figure is the same on every machine.
"""

import warnings
from functools import cache
from importlib import resources

from matplotlib.font_manager import fontManager

# In this order: the first font that has a character draws it. Each of the last five has most of what the others lack.
FAMILIES = ("DejaVu Sans", *(f"Kurinto Sans{suffix}" for suffix in (" SC", " JP", " KR", " TC", "")))


@cache
def register() -> list[str]:
    """Make the fonts known to matplotlib, once in a process; return their families, for its setting font.family.

    A character that no font has is drawn as a sign of its script, without a warning.
    """
    folder = resources.files("weblate_fonts") / "static" / "weblate_fonts" / "kurinto" / "ttf"
    for family in reversed(FAMILIES[1:]):  # the plain one first, because its name is a second name of the others
        fontManager.addfont(folder / f"{family.replace(' ', '')}-Rg.ttf")
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    return list(FAMILIES)
