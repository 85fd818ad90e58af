"""How an attention map is overlaid on an image."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib import pyplot as plt

from m3lib.figures import charts, panels


@pytest.mark.parametrize("level", [1e-6 * np.eye(5, 7), 40 * np.random.default_rng(1).random((5, 7)), np.zeros((5, 7))])
def test_overlay_against_a_loop(level):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    result = panels.overlay(image, level)
    assert result.shape == (5, 7, 3)
    assert result.dtype == np.uint8
    for y, x in np.ndindex(5, 7):
        red, green, blue = image[y, x] / 255
        grey, heat = 0.299 * red + 0.587 * green + 0.114 * blue, level[y, x] / max(level.max(), 1e-9)
        glow = colormaps["inferno"](float(heat))
        expected = [255 * ((1 - panels.GLOW * heat) * grey + panels.GLOW * heat * glow[c]) for c in range(3)]
        assert result[y, x] == pytest.approx(expected, abs=0.51)


@pytest.mark.parametrize("name", ["連衣裙領口襯衫" * 9, "length of the longer sleeve " * 3])
def test_long_names_do_not_overlap(name):
    charts.use_style()
    images = np.zeros((6, 32, 24, 3), np.uint8)
    sheet = panels.contact_sheet({name: images, f"{name}.": images}, "a title")
    attention = panels.attention_panel(images[:1], np.zeros((1, 3, 32, 24)), [name] * 3)
    for figure in (sheet, attention):
        figure.canvas.draw()
        titles = [title for axis in figure.axes for title in (axis.title, axis._left_title) if title.get_text()]
        boxes = [title.get_window_extent() for title in titles]
        assert len(boxes) > 1
        for left, right in pairwise(boxes):
            assert left.x1 < right.x0
    plt.close("all")
