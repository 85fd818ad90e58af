"""The tables of the bench for ideas, from hand-made records."""

import pandas as pd

from tests.bench import ideas


def records() -> pd.DataFrame:
    """A candidate that is 2 points ahead of m3 on one seed and 4 on the other; unseen classes by another column."""
    rows = []
    for row, level in (("classifier", 40.0), ("m3", 50.0), ("mine", 52.0)):
        for seed in (0, 1):
            lift = seed * (2 if row == "mine" else 0)
            costs = {"bytes per image": 100, "CPU seconds of training": 10}
            rows.append({"set": "multi", "seed": seed, "row": row, "MAP": level + lift, "likeness": 0.1} | costs)
            rows.append({"set": "unseen", "seed": seed, "row": row, "MAP": 99.0, "unseen": 20.0 + lift} | costs)
    return pd.DataFrame(rows, columns=[*ideas.KEYS, *ideas.MEASURES])


def test_levels_are_means_over_seeds_in_the_order_asked_for():
    table = ideas.levels(records(), ["m3", "mine"])
    assert list(table.index) == ["m3", "mine"]
    assert table.loc["mine", ["multi", "unseen", "likeness", "bytes per image"]].tolist() == [53.0, 21.0, 0.1, 100.0]


def test_differences_are_on_the_same_data():
    table = ideas.differences(records(), "mine")
    assert table.loc["m3"].to_dict() == {"multi": "+3.0 (+2.0, +4.0)", "unseen": "+1.0 (+0.0, +2.0)"}
