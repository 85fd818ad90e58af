"""Names in any script are readable in every figure, and the computer's own fonts are not used."""

import inspect
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import weblate_fonts
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager

from m3lib.figures import charts, fonts, panels

SCRIPTS = {
    "simplified": "连衣裙红色针织",
    "traditional": "連衣裙領口襯衫",
    "Japanese": "半袖ワンピースの襟元",
    "Korean": "원피스 빨강 소매",
    "Thai": "ชุดเดรสสีแดง",
    "Arabic": "فستان أحمر قصير",
    "Hindi": "लाल पोशाक किताब",
    "Hebrew": "שמלה אדומה",
    "others": "φόρεμα платье váy đỏ சிவப்பு আড়ং ቀሚስ ຊຸດ",
    "signs": "★♥✓ ①㈱㎝ \uff08全角\uff09「」、。 \U0001f457",
}


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with matplotlib.rc_context():
        charts.use_style()
        yield
    plt.close("all")


def missing_glyphs(figure: Figure) -> list[str]:
    """Draw a figure and return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(io.BytesIO(), format="png", dpi=40)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_is_drawn(script):
    figure = plt.figure()
    figure.text(0.1, 0.1, SCRIPTS[script])
    assert missing_glyphs(figure) == []


def common_characters(codec: str, first: range, second: range) -> str:
    pairs = (bytes([a, b]).decode(codec, "ignore") for a in first for b in second)
    return "".join(text for text in pairs if len(text) == 1 and text.isprintable())


ALPHABETS = {  # the characters of each country's own basic standard
    "GB 2312": common_characters("gb2312", range(0xB0, 0xF8), range(0xA1, 0xFF)),
    "Big5, common": common_characters("big5", range(0xA4, 0xC7), range(0x40, 0xFF)),
    "JIS X 0208, level 1": common_characters("shift_jis", range(0x88, 0x98), range(0x40, 0xFD)),
    "Hangul": "".join(map(chr, range(0xAC00, 0xD7A4))),
}


@pytest.mark.parametrize("name", ALPHABETS)
def test_the_fonts_have_every_common_character(name):
    paths = (fontManager.findfont(FontProperties(family=family)) for family in fonts.FAMILIES)
    known = {code for path in paths for code in matplotlib.ft2font.FT2Font(path).get_charmap()}
    assert len(ALPHABETS[name]) > 2900
    assert {character for character in ALPHABETS[name] if ord(character) not in known} == set()


def test_a_character_that_no_font_has_is_drawn_without_a_warning():
    with warnings.catch_warnings(record=True) as caught:
        fonts.register.cache_clear()
        charts.use_style()
        plt.figure().text(0.1, 0.1, "\U000e0080\u17a0")
        plt.gcf().savefig(io.BytesIO())
    assert caught == []


def test_the_fonts_come_from_the_two_packages():
    folders = Path(matplotlib.get_data_path()), Path(weblate_fonts.__file__).parent
    for family in plt.rcParams["font.family"]:
        path = Path(fontManager.findfont(FontProperties(family=family), fallback_to_default=False))
        assert any(path.is_relative_to(folder) for folder in folders)
        assert path.stem.partition("-")[0] == family.replace(" ", "")


def test_latin_text_looks_as_with_dejavu_sans_only():
    def drawn() -> bytes:
        file = io.BytesIO()
        figure = charts.attribute_bars(pd.DataFrame({"sleeve length": [1.0, 2.5]}, ["m3", "random"]), None, "MAP (%) ä")
        figure.savefig(file, format="png")
        return file.getvalue()

    with_all = drawn()
    plt.rcParams["font.family"] = ["DejaVu Sans"]
    assert drawn() == with_all


# every figure

A, B, C = SCRIPTS["simplified"], SCRIPTS["Japanese"], SCRIPTS["traditional"]
IMAGES = np.zeros((3, 8, 8, 3), np.uint8)
POINTS = pd.DataFrame({"x": [0.0, 1.0], "y": [0.0, 1.0], "class_": [A, B]})
RUNS = pd.DataFrame({"variant": [A, B, B], "percent": [1.0, 2.0, 3.0], C: [A, B, C]})
PAIRS = pd.DataFrame({"lower": [A], "higher": [B], "difference": [1.0], "low": [0.5], "high": [1.5]})
CLASSES = pd.DataFrame({"attribute": [A, B], "class_": [A, B], "images": [3, 9], "ap": [1.0, 2.0], "floor": [1.0, 1.0]})
CURVES = pd.DataFrame({"epoch": [1, 2], "valid_map_all": [0.1, 0.2]}, pd.MultiIndex.from_tuples([(A, 0), (A, 1)]))
PERCENT = pd.DataFrame({A: [1.0, 2.0], B: [3.0, 4.0]}, ["m3", "random"])
FIGURES: dict[Callable, tuple] = {
    charts.attribute_bars: (PERCENT, None, C),
    charts.class_frequencies: ({A: np.array([0.1, 0.9]), B: np.array([0.5, 0.2])},),
    charts.learning_curves: (CURVES, 5.0),
    charts.score_heatmap: (PERCENT, {"m3": A, "random": B}, C),
    charts.difference_chart: (PAIRS, C),
    charts.sweep_panels: (RUNS, C, C),
    charts.parallel_coordinates: (RUNS, [C], B),
    charts.seed_dots: (RUNS, C),
    charts.umap_panels: ({A: POINTS, B: POINTS},),
    charts.class_chart: (CLASSES,),
    panels.contact_sheet: ({A: IMAGES, B: IMAGES}, C),
    panels.attention_panel: (IMAGES, np.ones((3, 2, 8, 8)), [A, B]),
    panels.retrieval_panel: (IMAGES[:1], [IMAGES], np.ones((1, 3), bool), [A], {B: np.ones((1, 8, 8))}),
}


def test_every_figure_is_tested():
    functions = [f for module in (charts, panels) for _, f in inspect.getmembers(module, inspect.isfunction)]
    assert {f for f in functions if inspect.signature(f).return_annotation is Figure} == set(FIGURES)


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
def test_names_in_chinese_and_japanese_are_drawn_in_every_figure(draw):
    with warnings.catch_warnings():  # tight_layout measures text before it is drawn
        warnings.filterwarnings("error", "Glyph")
        figure = draw(*FIGURES[draw])
    texts = "".join(text.get_text() for text in figure.findobj(plt.Text))
    assert any(ord(character) > 0x3000 for character in texts)
    assert missing_glyphs(figure) == []
