"""How an attention map is overlaid on an image."""

import numpy as np
import pytest
from matplotlib import colormaps

from m3lib.figures import panels


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
