"""The search is the same for every row, and goes on where it stopped."""

import numpy as np
import pandas as pd
import pytest

from m3lib.config import load
from m3lib.errors import InputError
from tests.bench import sets, tune
from tiny import ROOT, make_prepared, random_labels

SETTINGS = load(ROOT / "params.yaml")


def test_rows_share_their_trials_and_leave_out_what_their_losses_do_not_read():
    drawn, contrast, plain = (tune.trials(SETTINGS.variant(name)) for name in ("m3", "asen_v2_contrast", "classifier"))
    assert list(drawn) == list(contrast) == list(plain) == [-1, *range(tune.TRIALS)]
    assert [set(trials[0]) for trials in (drawn, contrast, plain)] == [
        {"lr", "margin", "hardness"},
        {"lr", "contrast_temperature"},
        {"lr"},
    ]
    assert [trial["lr"] for trial in drawn.values()] == [trial["lr"] for trial in plain.values()]
    for name, (low, high) in tune.RANGES.items():
        of_row = contrast if name == "contrast_temperature" else drawn
        assert of_row[-1][name] == tune.USUAL[name]
        values = sorted(of_row[number][name] for number in range(tune.TRIALS))
        parts = np.log(np.array(values) / low) / np.log(high / low) * tune.TRIALS
        assert np.floor(parts).tolist() == list(range(tune.TRIALS))  # one in each part of the range


def records(values: list[float], trials: list[dict]) -> pd.DataFrame:
    """Two data sets, whose mean is `values`."""
    rows = [
        trial | {"row": "m3", "trial": i, tune.COUNTS: v + d}
        for i, (v, trial) in enumerate(zip(values, trials, strict=True))
        for d in (-9, 9)
    ]
    return pd.DataFrame(rows, columns=["row", "trial", tune.COUNTS, *tune.RANGES])


def test_a_trial_at_the_end_of_a_range_gets_one_more_beyond():
    trials = [{"lr": lr, "margin": margin} for lr, margin in [(0.001, 0.3), (0.004, 0.1), (0.016, 0.5)]]
    table = records([1, 2, 3], trials)
    assert tune.beyond(table, 2) == [
        {"lr": pytest.approx(0.016 * 1.7), "margin": 0.5},
        {"lr": 0.016, "margin": pytest.approx(0.85)},
    ]
    assert tune.beyond(table, 0) == [{"lr": pytest.approx(0.001 / 1.7, abs=1e-5), "margin": 0.3}]
    assert tune.beyond(table, 1) == [{"lr": 0.004, "margin": pytest.approx(0.1 / 1.7, abs=1e-5)}]


def test_the_best_trials_are_those_of_the_mean_over_all_data_sets():
    table = records([1, 5, 3, 4], [{"lr": 0.1}] * 4)
    assert tune.best(table, 2) == [1, 3]
    with pytest.raises(InputError, match="m3: a data set lacks some trials of this row"):
        tune.best(table[1:], 2)


def test_a_chosen_value_at_an_end_gets_trials_at_all_images(tmp_path):
    lrs = {0: 0.001, 1: 0.004, 2: 0.016, -1: 0.006}
    rows = [("classifier", i, "third", lr, 50 + i) for i, lr in lrs.items()]
    rows += [("classifier", 0, "full", lrs[0], 70), ("classifier", 1, "full", lrs[1], 60)]
    table = pd.DataFrame(rows, columns=["row", "trial", "budget", "lr", tune.COUNTS])
    table.reindex(columns=tune.COLUMNS).to_csv(tmp_path / "tuning-a.csv", index=False)
    row = SETTINGS.variant("classifier")
    assert tune.planned(row, "beyond", tmp_path) == {3: {"lr": pytest.approx(0.00059)}}
    assert list(tune.planned(row, "full", tmp_path)) == [2, 1, -1]


def test_the_chosen_trial_has_no_value_at_an_end_and_the_score_with_the_best_mean():
    columns = ["row", "budget", "trial", "data set", tune.COUNTS, "posterior", "weighted", "lr"]
    rows = [
        ("m3", "full", 1, "a", 50, 50, 40, 0.2),
        ("m3", "full", 1, "b", 60, 40, 60, 0.2),
        ("m3", "full", 2, "a", 54, 54, 20, 0.2),
        ("m3", "full", 2, "b", 54, 54, 20, 0.2),
        ("m3", "full", 4, "a", 80, 80, 20, 0.4),  # the largest rate
        ("m3", "full", 4, "b", 80, 80, 20, 0.4),
        ("m3", "third", 3, "a", 99, 99, 99, 0.1),
        ("m3", "third", 3, "b", 99, 99, 99, 0.1),
    ]
    records = pd.DataFrame(rows, columns=columns).reindex(columns=[*tune.COLUMNS, "data set"])
    m3 = tune.chosen(records).loc["m3"]
    assert m3[["trial", "lr", "score", "mean", "a", "b"]].tolist() == [1, 0.2, "weighted", 50, 40, 60]
    assert "| m3 | 1 | 0.2 | - | - | - | weighted | 50.0 | 40 | 60 |" in tune.page(records)


def test_params_yaml_has_the_chosen_settings():
    chosen = tune.chosen(tune.recorded(ROOT / "data" / "results"))
    assert set(chosen.index) == set(sets.ROWS)
    for name, found in chosen.iterrows():
        row = SETTINGS.variant(name)
        values = {key: getattr(row.train if key == "lr" else row.loss, key) for key in tune.RANGES}
        expected = {key: found[key] for key in tune.RANGES if not np.isnan(found[key])}
        assert expected == {key: values[key] for key in expected}, name
        if name != "duet":  # whose score is a part of it, for classes that were never trained on
            assert row.score == found["score"], name


def test_a_third_of_the_training_images_is_left():
    labels = random_labels("single", 60, np.random.default_rng(0))
    prepared = make_prepared(labels, [("train", "")] * 40 + [("valid", "query"), ("valid", "candidate")] * 10)
    smaller = sets.third(prepared)
    assert smaller.rows("train").tolist() == list(range(0, 40, 3))
    assert smaller.rows("valid").tolist() == prepared.rows("valid").tolist()
