"""Charts of data sets in which little or nothing can be measured."""

import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from m3lib.figures import charts, panels, umap
from tiny import SETTINGS

NAN = float("nan")


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    plt.close("all")


def texts(figure: Figure) -> list[str]:
    figure.canvas.draw()
    return [text.get_text() for axis in figure.axes for text in axis.texts]


@pytest.mark.parametrize(("sleeve", "marked"), [(40.0, 1), (NAN, 2)])
def test_an_attribute_that_is_not_measured_has_a_mark_instead_of_bars(sleeve, marked):
    percent = pd.DataFrame({"colour": [NAN, NAN], "sleeve": [sleeve, NAN]}, index=["asen", "m3"])
    figure = charts.attribute_bars(percent, pd.Series({"colour": NAN, "sleeve": sleeve}), "MAP@all")
    assert texts(figure) == ["not measured"] * marked


@pytest.mark.parametrize(("values", "note"), [([NAN, NAN], ["nothing can be validated"]), ([0.0, 0.0], [])])
def test_learning_curves_without_a_validation(values, note):
    table = pd.DataFrame({"epoch": [1, 2], "valid_map_all": values})
    figure = charts.learning_curves(pd.concat({"m3": table}), values[0])
    assert texts(figure) == note
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["m3", "random ranking"]


def test_a_class_without_a_training_image_has_a_place():
    table = pd.DataFrame({"attribute": "a", "class_": ["x", "y"], "images": [0, 12], "ap": [50.0, 60], "floor": 40.0})
    axis = charts.class_chart(table).axes[0]
    left, right = axis.transData.transform([(0, 50), (12, 60)])[:, 0]
    assert axis.bbox.x0 < left < right < axis.bbox.x1
    assert axis.get_xticks().tolist() == [0, 1, 2, 5, 10]
    charts.class_chart(table[:0]).canvas.draw()


def test_classes_without_an_image_have_no_dot():
    figure = charts.class_frequencies({"a": np.array([0, 0.5, 0.25]), "b": np.zeros(2)})
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[50, 25], []]
    figure.canvas.draw()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 20])
def test_the_ranks_of_classes_are_whole_numbers(count):
    axis = charts.class_frequencies({"a": np.linspace(0.1, 0.5, count)}).axes[0]
    low, high = axis.get_xlim()
    ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
    assert ticks
    assert all(tick == round(tick) for tick in ticks)


def test_scores_and_differences_that_are_not_measured():
    percent = pd.DataFrame({"attribute": [NAN], "segment": [NAN]}, index=["modc"])
    charts.score_heatmap(percent, {"modc": "segment"}, "MAP@all").canvas.draw()
    pairs = pd.DataFrame({"lower": ["asen"], "higher": ["m3"], "difference": [3.0], "low": [NAN], "high": [NAN]})
    charts.difference_chart(pairs, "points").canvas.draw()
    charts.difference_chart(pairs[:0], "points").canvas.draw()


@pytest.mark.parametrize("kind", ["noise", "equal", "opposite"])
@pytest.mark.parametrize("count", range(9))
def test_umap_of_few_points(count, kind):
    vectors = np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32)
    if count and kind == "equal":
        vectors[:] = vectors[0]
    if kind == "opposite":
        vectors[1::2] = -vectors[: 2 * (count // 2) : 2]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Spectral initialisation failed")  # of equal points: then random
        positions = umap.positions(vectors, SETTINGS.umap, 0)
    assert positions.shape == (count, 2)
    assert np.isfinite(positions).all() == (count >= umap.MIN_POINTS or not count)
    table = pd.DataFrame(positions, columns=["x", "y"]).assign(class_="red")
    few = [f"{count} points: too few for UMAP"] if count < umap.MIN_POINTS else []
    assert texts(charts.umap_panels({"colour": table})) == few


def test_panels_without_an_image_say_so():
    assert texts(panels.retrieval_panel([], [], np.zeros((0, 0), bool), [])) == ["no query has a label"]
    assert texts(panels.contact_sheet({}, "colour")) == ["no image has a label"]
    image = np.zeros((4, 4, 3), np.uint8)
    panels.retrieval_panel([image], [[]], np.zeros((1, 0), bool), ["red"]).canvas.draw()


@pytest.mark.parametrize("shape", [(2, 64, 64, 3), (6, 64, 64, 3), (6, 96, 64, 3), (6, 40, 64, 3)])
@pytest.mark.parametrize("count", [1, 3, 4, 8])
def test_no_title_of_a_contact_sheet_lies_on_an_image(count, shape):
    figure = panels.contact_sheet({f"class {i}": np.zeros(shape, np.uint8) for i in range(count)}, "colour")
    figure.canvas.draw()
    shown = [axis for axis in figure.axes if axis.images]
    for axis in shown:
        title = axis._left_title.get_window_extent()
        others = [other.get_window_extent() for other in shown if other is not axis]
        assert not any(title.overlaps(other) for other in [*others, figure._suptitle.get_window_extent()])


def test_every_default_row_has_a_colour_of_its_own_and_only_the_plain_ones_are_grey():
    colours = charts.palette(SETTINGS.variants)
    pairs = [(a, b) for a in colours for b in colours if a < b]
    assert min(np.abs(np.subtract(colours[a], colours[b])).max() for a, b in pairs) > 0.1
    assert {name for name, colour in colours.items() if max(colour) - min(colour) < 0.1} == set(charts.GREYS) - {
        "random"
    }
