"""The report's example rankings of hand-made images."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from m3lib.analysis import examples
from m3lib.errors import InputError
from m3lib.figures import panels
from m3lib.retrieval.ranking import Ranking
from tiny import TAXONOMY, make_prepared

RED, GREEN, BLUE, POCKET, COLLAR, LONG = 0, 1, 2, 3, 4, 7


def make_panel_case():
    """Queries 0-3 and candidates 4-8, each image filled with its row number; colours and details by hand."""
    ids = [[RED, POCKET], [GREEN, POCKET, COLLAR], [RED, COLLAR], [BLUE, COLLAR]]
    ids += [[RED, POCKET], [GREEN, COLLAR], [BLUE, POCKET], [RED, COLLAR], [GREEN, POCKET]]
    labels = np.zeros((9, TAXONOMY.num_classes), bool)
    for row, classes in enumerate(ids):
        labels[row, [*classes, LONG]] = True
    images = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None, None], (9, 4, 4, 3))
    prepared = make_prepared(labels, [("test", "query")] * 4 + [("test", "candidate")] * 5, images)
    order = torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 0, 3, 2, 4], [2, 0, 1, 4, 3]])
    values = -order.argsort(dim=1).float()
    return prepared, Ranking(np.arange(4), np.arange(4, 9), lambda queries: values[queries])


def numbers(images: list) -> list:
    return [numbers(image) if isinstance(image, list) else int(image[0, 0, 0]) for image in images]


T, F = True, False


@pytest.mark.parametrize(
    ("attribute", "options", "queries", "results", "relevant", "captions"),
    [  # a class: the queries and candidates that carry it
        (0, {"class_": "red", "rows": 3, "top": 3}, [0, 2], [[4, 5, 6], [5, 4, 7]], [[T, F, F], [F, T, T]], "red red"),
        (1, {"class_": "pocket", "top": 3}, [0, 1], [[4, 5, 6], [8, 7, 6]], [[T, F, T], [T, F, T]], "pocket pocket"),
        # no class: queries of different classes, and candidates that share any class
        (0, {"top": 2}, [0, 1, 3], [[4, 5], [8, 7], [6, 4]], [[T, F], [T, F], [T, F]], "red green blue"),
        (1, {"rows": 2, "top": 3}, [0, 2], [[4, 5, 6], [5, 4, 7]], [[T, F, T], [T, F, T]], "pocket collar"),
        # given queries: all of them; row 7 is a candidate
        (0, {"rows": 1, "top": 2, "among": [0, 2, 7]}, [0, 2], [[4, 5], [5, 4]], [[T, F], [F, T]], "red red"),
    ],
)
def test_retrieval_examples(attribute, options, queries, results, relevant, captions):
    shown = examples.retrieval_examples(*make_panel_case(), attribute, **options)
    assert numbers(shown[0]) == queries
    assert numbers(shown[1]) == results
    assert shown[2].tolist() == relevant
    assert shown[3] == captions.split()


def test_attention_examples_are_the_maps_of_labelled_queries():
    prepared, _ = make_panel_case()
    prepared.labels[2, :3] = False  # the colour of image 2 is not labelled
    maps = np.random.default_rng().random((3, 3, 4, 4))  # of images 0, 2, 3 by attribute
    stored = {"rows": np.array([0, 2, 3]), "attribute": maps, "class": maps + 1}
    rows, colour = examples.attention_examples(prepared, "test", 0, stored)
    assert rows.tolist() == [0, 3]
    np.testing.assert_array_equal(colour["attribute"], maps[[0, 2], 0])
    np.testing.assert_array_equal(colour["class"], maps[[0, 2], 0] + 1)
    rows, details = examples.attention_examples(prepared, "test", 1, stored)
    assert rows.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(details["attribute"], maps[:, 1])
    assert examples.attention_examples(prepared, "valid", 1, stored)[0].tolist() == []


def test_panel_puts_maps_between_the_query_and_its_results():
    prepared, ranking = make_panel_case()
    content = examples.retrieval_examples(prepared, ranking, 0, None, top=2, among=[0, 2])
    maps = {"attribute": np.random.default_rng().random((2, 4, 4)), "class": np.ones((2, 4, 4))}
    figure = panels.retrieval_panel(*content, maps)
    drawn = np.array([axis.images[0].get_array()[0, 0] for axis in figure.axes]).reshape(2, 5, 3)
    for row, query in enumerate([0, 2]):
        assert drawn[row, 0].tolist() == [query] * 3
        for column, name in enumerate(maps, 1):
            image = np.full((4, 4, 3), query, np.uint8)
            np.testing.assert_array_equal(drawn[row, column], panels.overlay(image, maps[name][row])[0, 0])
        assert drawn[row, 3:, 0].tolist() == [[4, 5], [5, 4]][row]
    plt.close(figure)


def test_a_class_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="'rd'; did you mean 'red'"):
        examples.retrieval_examples(*make_panel_case(), 0, "rd")


def test_median_frequency_class():
    labels = np.zeros((12, TAXONOMY.num_classes), bool)
    labels[np.arange(12), [POCKET] * 6 + [COLLAR] * 3 + [5] * 2 + [6]] = True
    queries = make_prepared(labels, [("test", "query")] * 12)
    assert examples.median_frequency_class(queries, "test", "details") == "collar"
