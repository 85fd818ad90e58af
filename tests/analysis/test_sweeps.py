"""A recorded sweep: the runs, the best settings by validation, and charts that show every run."""

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from m3lib.analysis import sweeps
from m3lib.errors import InputError
from m3lib.figures import charts

RATES, EPOCHS, QUERIES = (0.004, 0.008), (4, 8), ("[a, b]", "one_hot")


@pytest.fixture
def table():
    """Two variants, two seeds, a full grid, random percents, and rows that `runs` must leave out."""
    rng, rows = np.random.default_rng(), []
    columns = ("variant", "seed", "settings", "split", "own", "metric", "attribute", "value")
    grid = [f"train.lr={r} train.epochs={e} model.queries={q}" for r in RATES for e in EPOCHS for q in QUERIES]
    for key in product(("m3", "asen"), (0, 1), grid, ("valid", "test")):
        rows.append((*key, True, "MAP@all", "", 50 * rng.random()))
        rows.append((*key, False, "MAP@all", "", 99))
        rows.append((*key, True, "MAP@all", "neck", 99))
        rows.append((*key, True, "Recall@100", "", 99))
        rows.append(("random", *key[1:], True, "MAP@all", "", 99))
    return pd.DataFrame(rows, columns=columns)


def test_settings_are_parsed_with_numbers_as_numbers():
    settings = sweeps.parse_settings("train.lr=0.004 systems.m3.train.held_out=['a: b', 'c'] images.fit=pad")
    assert settings == {"train.lr": 0.004, "systems.m3.train.held_out": "['a: b', 'c']", "images.fit": "pad"}


def test_runs_are_overall_by_the_reported_score(table):
    runs = sweeps.runs(table, "test")
    assert len(runs) == 2 * 2 * len(RATES) * len(EPOCHS) * len(QUERIES)
    assert runs["percent"].max() < 99
    assert set(runs["variant"]) == {"m3", "asen"}
    assert sweeps.varied(runs) == ["train.lr", "train.epochs", "model.queries"]
    assert set(runs["model.queries"]) == set(QUERIES)
    assert sweeps.varied(runs[runs["train.lr"] == 0.004]) == ["train.epochs", "model.queries"]
    assert sweeps.varied(sweeps.runs(table.assign(settings=""), "valid")) == []


def test_the_best_settings_are_those_of_the_best_mean_on_validation(table):
    best = sweeps.best(table)
    assert list(best.columns) == ["train.lr", "train.epochs", "model.queries", "valid", "test", "seeds"]
    reported = table[table["own"] & (table["metric"] == "MAP@all") & (table["attribute"] == "")]
    for variant, row in best.iterrows():
        means, of_variant = {}, reported[reported["variant"] == variant]
        for settings, split in product(of_variant["settings"].unique(), ("valid", "test")):
            runs = of_variant.query("settings == @settings and split == @split")
            means[settings, split] = sum(runs["value"]) / len(runs)
        settings = max(of_variant["settings"].unique(), key=lambda settings: means[settings, "valid"])
        assert (row["valid"], row["test"]) == pytest.approx((means[settings, "valid"], means[settings, "test"]))
        text = f"train.lr={row['train.lr']:g} train.epochs={row['train.epochs']:g} model.queries={row['model.queries']}"
        assert (text, row["seeds"]) == (settings, 2)


def test_a_sweep_that_was_not_recorded_is_named(tmp_path):
    with pytest.raises(InputError, match=r"lr\.csv can't be read .*make record NAME=lr"):
        sweeps.read(tmp_path / "lr.csv")


@pytest.mark.parametrize("setting", ["train.lr", "train.epochs", "model.queries"])
def test_panels_show_every_run(table, setting):
    runs = sweeps.runs(table, "valid")
    figure = charts.sweep_panels(runs, setting, "valid")
    for axis, variant in zip(figure.axes, ("m3", "asen"), strict=True):
        dots = axis.collections[-1].get_offsets()
        assert sorted(dots[:, 1]) == pytest.approx(sorted(runs["percent"][runs["variant"] == variant]))
    plt.close(figure)


def test_parallel_coordinates_have_one_line_per_run_that_ends_at_its_metric(table):
    runs = sweeps.runs(table, "valid")
    figure = charts.parallel_coordinates(runs, sweeps.varied(runs), "valid")
    low, high = runs["percent"].min(), runs["percent"].max()
    ends = [line.get_ydata()[-1] for line in figure.axes[0].lines if len(line.get_xdata()) == 4]
    assert ends == pytest.approx(sorted((runs["percent"] - low) / (high - low)))
    plt.close(figure)
