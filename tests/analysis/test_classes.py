"""Metrics class by class, against loops."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from embedded import labelled_rows, make_embeddings, make_split
from m3lib.analysis import classes
from m3lib.data.manifest import hold_out
from m3lib.retrieval import metrics, ranking
from m3lib.taxonomy import Attribute, Taxonomy
from tiny import TAXONOMY


def test_class_table_against_a_loop():
    prepared = make_split(90, seed=3)
    results = ranking.evaluate(prepared, "test", "attribute", make_embeddings(90))
    table = classes.class_table(prepared, "test", results).set_index(["attribute", "class_"])
    train, expected = prepared.labels[prepared.rows("train")], {}
    for n, (name, of_attribute) in enumerate(results.items()):
        candidates = labelled_rows(prepared, "test", "candidate", n)
        for m in range(TAXONOMY.num_classes)[TAXONOMY.classes_of(n)]:
            of_class = of_attribute.class_id == m - TAXONOMY.offsets[n]
            if of_class.any():
                relevant = int(prepared.labels[candidates, m].sum())
                floor = 100 * float(metrics.expected_random_ap(relevant, len(candidates)))
                ap = 100 * of_attribute.ap_all[of_class].mean()
                expected[name, TAXONOMY.class_name(m)] = (train[:, m].sum(), ap, floor)
    assert set(table.index) == set(expected)
    for key, values in expected.items():
        assert table.loc[key, ["images", "ap", "floor"]].tolist() == pytest.approx(values)


def test_an_attribute_that_cannot_be_measured_has_no_row():
    prepared = make_split(90, seed=3)
    results = ranking.evaluate(prepared, "test", "attribute", make_embeddings(90))
    unanswered = replace(results["details"], relevant=np.zeros_like(results["details"].relevant))
    table = classes.class_table(prepared, "test", results | {"details": unanswered})
    assert set(table["attribute"]) == {"colour", "sleeve"}
    nothing = dict.fromkeys(results, unanswered)
    assert all(np.isnan(mean) for mean in classes.band_means(classes.class_table(prepared, "test", nothing)).values())


@pytest.mark.parametrize("size", range(1, 11))
def test_bands_are_thirds_of_the_seen_classes_by_training_images(size):
    """Symmetric: as many rare classes as frequent ones, and no frequent one with fewer images than a middle one."""
    rng = np.random.default_rng()
    taxonomy = Taxonomy((Attribute("a", ("x", "y")), Attribute("b", tuple(map(str, range(size + 1))))))
    counts = np.concatenate([[9, 4], rng.permutation([0, *rng.choice(np.arange(1, 90), size, replace=False)])])
    bands = classes.frequency_bands(counts, taxonomy)
    assert bands[:2].tolist() == ["frequent", "rare"]
    assert counts[2:][bands[2:] == "unseen"].tolist() == [0]
    by_count = bands[2:][np.argsort(counts[2:])][1:].tolist()
    third = round(size / 3)  # 1 of 2 and of 4, 2 of 5
    middle = size - 2 * third
    assert by_count == ["rare"] * third + ["middle"] * middle + ["frequent"] * third


def test_every_class_counts_once_in_the_means_of_bands():
    rng = np.random.default_rng()
    band, ap = rng.choice(["rare", "frequent", "unseen"], 40), 100 * rng.random(40)
    means = classes.band_means(pd.DataFrame({"band": band, "ap": ap, "floor": ap / 2}))
    assert list(means) == ["all", "rare", "middle", "frequent", "unseen"]
    assert means["all"] == pytest.approx(ap.mean() / 100)
    for name in ("rare", "frequent", "unseen"):
        assert means[name] == pytest.approx(sum(ap[band == name]) / sum(band == name) / 100)
    assert np.isnan(means["middle"])


def test_a_class_left_out_of_training_is_unseen():
    prepared = make_split(90, seed=3)
    results = ranking.evaluate(prepared, "test", "attribute", make_embeddings(90))
    table = classes.class_table(hold_out(prepared, ["colour: red"]), "test", results)
    assert table[table["band"] == "unseen"]["class_"].tolist() == ["red"]
    assert table[table["class_"] == "red"]["images"].tolist() == [0]
