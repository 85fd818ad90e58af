"""The ablation's tables from a hand-made record."""

import pandas as pd
import pytest

from m3lib.analysis import ablation, sweeps

COLUMNS = ["seed", "variant", "split", "score", "own", "metric", "attribute", "value"]
ROWS = [
    [seed, variant, "test", score, score == "weighted", "MAP@all", "", level + 2 * seed + (score == "weighted")]
    for seed in (0, 1)
    for variant, level in [("m3", 20.0), ("m3_loss1", 19.0), ("m3_no_refine", 22.0 - 4)]
    for score in ("weighted", "posterior")
]
ROWS += [
    [0, "m3", "valid", "weighted", True, "MAP@all", "", 90.0],
    [0, "m3", "test", "weighted", True, "MAP@all", "fabric", 90.0],
]
ROWS += [[s, "m3", "test", "posterior", False, "likeness", "texture: pitch", 4.0 + s] for s in (0, 1)]
ROWS += [[s, "m3", "test", "concat", False, "likeness", "texture: pitch", 14.0 + s] for s in (0, 1)]
LEFT_OUT = [
    [0, variant, "test", score, False, "unseen classes", "", value]
    for variant, score, value in [("m3", "concat", 4.0), ("m3", "posterior", 3.0), ("asen", "attribute", 5.0)]
] + [[seed, "random", "test", "random", False, "unseen classes", "", 1.0 + seed] for seed in (0, 1)]


@pytest.fixture
def table(tmp_path):
    pd.DataFrame(ROWS, columns=COLUMNS).to_csv(tmp_path / "a.csv", index=False)
    return sweeps.read(tmp_path / "a.csv")


def test_by_score_has_a_row_per_variant_and_a_column_per_score(table):
    assert ablation.by_score(table, ablation.LOSSES).to_dict("index") == {
        "Losses 1, 2, 3": {"weighted": 22.0, "posterior": 21.0},
        "Loss 1": {"weighted": 21.0, "posterior": 20.0},
    }


def test_differences_are_within_each_seed(table):
    assert ablation.differences(table, ablation.CONDITIONING).to_numpy().tolist() == [[-2.0, -2.0, -2.0]]


def test_factor_correlation_and_unseen_classes(table):
    assert ablation.factor_correlation(table, ("m3",)).loc[("m3", "concat"), "texture: pitch"] == pytest.approx(0.145)
    unseen = ablation.unseen(pd.DataFrame(LEFT_OUT, columns=COLUMNS))
    assert unseen.loc["m3", ["concat", "posterior", "random"]].tolist() == [4.0, 3.0, 1.5]
    assert list(unseen.index) == ["m3", "asen"]


def test_the_summary_has_a_sentence_for_each_question(table):
    lines = ablation.summary_sentences(table, pd.DataFrame(LEFT_OUT, columns=COLUMNS))
    assert lines[0] == "Loss 1: -1.0 points compared with M3-Net (-1.0 to -1.0 over the seeds)."
    assert "texture: pitch +0.10" in lines[-3]
    assert lines[-2] == "Unseen classes, m3: concat 4.0, posterior 3.0, random 1.5."
