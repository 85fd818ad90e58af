"""How an attention map is overlaid on an image."""

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from m3lib.figures import panels


@pytest.mark.parametrize("peak", [1e-6, 1.0, 40.0])
def test_overlay_against_a_loop(peak):
    rng = np.random.default_rng()
    image, level = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8), rng.random((5, 7)) * peak
    result = panels.overlay(image, level)
    assert result.shape == (5, 7, 3)
    assert result.dtype == np.uint8
    for y, x in np.ndindex(5, 7):
        red, green, blue = image[y, x] / 255
        grey, heat = 0.299 * red + 0.587 * green + 0.114 * blue, level[y, x] / level.max()
        glow = colormaps["inferno"](float(heat))
        expected = [255 * ((1 - panels.GLOW * heat) * grey + panels.GLOW * heat * glow[c]) for c in range(3)]
        assert result[y, x] == pytest.approx(expected, abs=0.51)


def test_overlay_of_a_uniform_and_of_an_empty_map():
    image = np.random.default_rng().integers(0, 256, (6, 4, 3), dtype=np.uint8)
    grey = np.repeat(np.asarray(Image.fromarray(image).convert("L"))[..., None], 3, axis=2).astype(float)
    empty = panels.overlay(image, np.zeros((6, 4)))
    np.testing.assert_allclose(empty, grey, atol=1)
    uniform = panels.overlay(image, np.full((6, 4), 0.25))
    np.testing.assert_array_equal(uniform, panels.overlay(image, np.full((6, 4), 8.0)))
    yellow = panels.GLOW * 255 * np.array(colormaps["inferno"](1.0)[:3])
    np.testing.assert_allclose(uniform, yellow + (1 - panels.GLOW) * empty, atol=1)


def test_overlay_does_not_change_its_inputs():
    image, level = np.full((3, 3, 3), 100, np.uint8), np.eye(3, dtype=np.float32)
    panels.overlay(image, level)
    assert (image == 100).all()
    np.testing.assert_array_equal(level, np.eye(3))
