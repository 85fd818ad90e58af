"""The report's tables and sentences from hand-made metrics."""

import json

import numpy as np
import pandas as pd
import pytest

from m3lib.analysis import comparison
from m3lib.errors import InputError
from m3lib.retrieval.metrics import to_json
from tiny import ROOT, SETTINGS

PUBLISHED = pd.read_csv(ROOT / "data/results/published.csv")
METRICS = ["map_all", "map_100_hits", "map_100_min", "recall_100", "map_r"]


def summary(overall: float, colour: float, sleeve: float) -> dict:
    """Metric k's overall is overall + k / 100, so that no two columns can be exchanged unnoticed."""
    return {
        metric: {
            "overall_by_query": overall + k / 100,
            "mean_over_attributes": (colour + sleeve) / 2 + k / 100,
            "attributes": {"colour": colour, "sleeve": sleeve},
        }
        for k, metric in enumerate(METRICS)
    }


def bands(value: float) -> dict:
    return {name: value + k / 100 for k, name in enumerate(["all", "rare", "middle", "frequent"])}


RESULTS = {
    "asen": {
        "score": "attribute",
        "random": summary(0.2, 0.25, 0.3),
        "valid": {"attribute": summary(0.41, 0.4, 0.4)},
        "test": {"attribute": summary(0.4, 0.5, 0.3)},
        "bands": {"attribute": bands(0.3), "random": bands(0.1)},
        "calibration": {},
        "bytes": 1000,
    },
    "m3": {
        "score": "weighted",
        "random": summary(0.2, 0.25, 0.3),
        "valid": {"weighted": summary(0.61, 0.6, 0.7)},
        "test": {"weighted": summary(0.6, 0.55, 0.7), "posterior": summary(0.58, 0.5, 0.6)},
        "bands": {"weighted": bands(0.5), "posterior": bands(0.2), "random": bands(0.1)},
        "calibration": {"colour": 0.1, "sleeve": 0.2},
        "bytes": 2000,
    },
}


def test_main_table_has_a_row_per_variant_and_on_test_the_random_ranking():
    table = comparison.main_table(RESULTS, "test")
    assert table.columns.tolist() == ["score", *comparison.COLUMNS]
    assert table["score"].to_dict() == {"random": "-", "asen": "attribute", "m3": "weighted"}
    assert table.loc["m3"].tolist()[1:] == pytest.approx([60, 62.5, 61, 62, 63])
    assert table.loc["random"].tolist()[1:] == pytest.approx([20, 27.5, 21, 22, 23])
    assert comparison.main_table(RESULTS, "valid")["MAP@all"].to_dict() == pytest.approx({"asen": 41, "m3": 61})


def test_beyond_pooled_map_has_a_row_per_variant_below_the_random_ranking():
    table = comparison.beyond_table(RESULTS, {"asen": 120.0})
    assert table.index.tolist() == ["random", "asen", "m3"]
    names = ["MAP@R", "mean of classes", "rare classes", "middle classes", "frequent classes", "calibration error"]
    assert table.columns.tolist() == [*names, "bytes per image", "ms per step"]
    expected = [
        [24, 10, 11, 12, 13, np.nan, np.nan, np.nan],
        [44, 30, 31, 32, 33, np.nan, 1000, 120],
        [64, 50, 51, 52, 53, 15, 2000, np.nan],
    ]
    np.testing.assert_allclose(table.to_numpy(), expected)


def test_the_milliseconds_of_a_step_are_those_of_the_last_device_the_same_backbone_and_the_first_size():
    rows = [
        ("step of m3", "old", "lite0", 64, 9.0), ("step of asen", "old", "lite0", 64, 8.0),
        ("step of m3", "new", "lite0", 64, 5.0), ("step of m3", "new", "lite0", 128, 7.0),
        ("loading only", "new", "lite0", 64, 1.0), ("step of modc", "new", "resnet10t", 64, 3.0),
    ]  # fmt: skip
    recorded = pd.DataFrame(rows, columns=["what", "device", "backbone", "batch", "ms"])
    backbones = dict.fromkeys(["asen", "modc", "m3"], "lite0")
    assert comparison.step_milliseconds(recorded, backbones) == {"m3": 5.0}


def test_attribute_table_has_a_column_per_attribute():
    table = comparison.attribute_table(RESULTS, "test")
    assert table.columns.tolist() == ["colour", "sleeve"]
    assert table.index.tolist() == ["random", "asen", "m3"]
    assert table.to_numpy() == pytest.approx(np.array([[25, 30], [50, 30], [55, 70]]))


def test_score_table_has_every_score_that_a_variant_was_ranked_by():
    table, configured = comparison.score_table(RESULTS, "test")
    assert configured == {"asen": "attribute", "m3": "weighted"}
    assert table.columns.tolist() == ["attribute", "weighted", "posterior", "random"]
    assert table.loc["m3"].dropna().to_dict() == pytest.approx({"weighted": 60, "posterior": 58, "random": 20})
    assert table.loc["asen"].dropna().to_dict() == pytest.approx({"attribute": 40, "random": 20})
    assert "random" not in comparison.score_table(RESULTS, "valid")[0]


def test_metrics_for_dvc_are_fractions():
    values = comparison.metrics_for_dvc(RESULTS, "test")
    assert list(values) == ["random", "asen", "m3"]
    assert values["m3"] == pytest.approx({"map_all": 0.6, "map_all_mean": 0.625, "map_100": 0.61, "recall_100": 0.63})


def test_the_gain_over_modc_is_the_posters():
    """The poster's percentage: M3-Net over MODC on DeepFashion is +70.42 %."""
    beside = comparison.beside_published(pd.DataFrame({"MAP@all": {"m3": 60.0}}), PUBLISHED, "modc")
    assert beside.loc["M3-Net", ("gain over MODC", "deepfashion")] == pytest.approx(70.42, abs=0.005)
    assert beside.loc["MODC", ("gain over MODC", "deepfashion")] == 0
    assert beside["gain over MODC", "here"].isna().all()


def test_our_rows_are_beside_the_published_ones():
    beside = comparison.beside_published(comparison.main_table(RESULTS, "test"), PUBLISHED, "asen")
    levels, gain = beside["MAP@all"], beside["gain over ASEN"]
    assert levels["here"].dropna().to_dict() == pytest.approx({"random": 20, "ASEN": 40, "M3-Net": 60})
    assert gain["here"].dropna().to_dict() == pytest.approx({"random": -50, "ASEN": 0, "M3-Net": 50})
    overall = PUBLISHED[(PUBLISHED["metric"] == "MAP@all") & (PUBLISHED["attribute"] == "overall")]
    printed = {(row.dataset, row.system): row.percent for row in overall.itertuples()}
    assert len(printed) == 21
    for (dataset, system), percent in printed.items():
        assert levels.loc[system, dataset] == percent
        base = printed[dataset, "ASEN"]
        assert gain.loc[system, dataset] == pytest.approx(100 * (percent - base) / base)


def test_metrics_are_read_by_variant_and_the_missing_one_is_named(tmp_path):
    for name, result in RESULTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    assert comparison.read_metrics(tmp_path, ["m3", "asen"]) == {"m3": RESULTS["m3"], "asen": RESULTS["asen"]}
    (tmp_path / "asen.json").write_text("{")
    for name in ("asen", "m3_a"):
        with pytest.raises(InputError, match=rf"{name}\.json.*dvc repro evaluate@{name}"):
            comparison.read_metrics(tmp_path, ["m3", name])


def test_pairs_follow_the_published_order():
    pairs = comparison.comparison_pairs
    assert pairs(["m3", "random", "modc", "asen"]) == [("asen", "modc"), ("modc", "m3")]
    assert set(pairs(["m3", "classifier", "asen_v2_l1"])) == {("classifier", "m3"), ("asen_v2_l1", "m3")}
    plain = [("frozen", "classifier"), ("classifier_bce", "classifier"), ("classifier_bce", "m3")]
    assert set(plain) < set(pairs(["frozen", "classifier", "classifier_bce", "m3"]))
    assert pairs(["m3"]) == []


def test_compare_is_higher_minus_lower_in_points_with_an_interval_over_images():
    rng = np.random.default_rng()
    low, images = rng.random(400) / 2, np.arange(400) // 4
    pairs = comparison.compare({"asen": low, "asen_v2": low + 0.1, "modc": low + rng.normal(0, 1, 400)}, images, 0)
    assert pairs[["lower", "higher"]].to_numpy().tolist() == [["asen", "asen_v2"], ["asen_v2", "modc"]]
    steady, noisy = pairs.to_dict("records")
    assert [steady[key] for key in ("difference", "low", "high")] == pytest.approx([10, 10, 10])
    assert steady["p"] < 0.01
    assert noisy["low"] < noisy["difference"] < noisy["high"]
    assert noisy["high"] - noisy["low"] > 5


PAIRS = pd.DataFrame(
    [
        ["asen", "asen_v2", 1.0, 0.5, 1.5, 0.01],
        ["asen_v2", "asen_pp", -1.0, -1.5, -0.5, 0.01],
        ["asen_pp", "modc", 0.1, -0.5, 0.7, 0.8],
        ["m3_c", "m3", 1.0, 0.5, 1.5, 0.01],
        ["classifier", "m3", 1.0, 0.5, 1.5, 0.01],
    ],
    columns=["lower", "higher", "difference", "low", "high", "p"],
)


def test_published_neighbours_get_a_sentence_on_their_order():
    lines = comparison.order_sentences(PAIRS, PUBLISHED)
    verdicts = ["holds.", "does not hold.", "does not hold.", "the published order is open."]
    assert [line.rsplit(": ", 1)[1] for line in lines] == verdicts
    assert lines[0].startswith("ASEN_v2 to ASEN: published ahead on all three; here ahead (+1.0 points")
    assert "here behind" in lines[1]
    assert "here not significantly different" in lines[2]


def test_the_summary_has_order_gain_class_embeddings_and_what_is_near_the_random_ranking():
    table, per_attribute = (f(RESULTS, "test") for f in (comparison.main_table, comparison.attribute_table))
    by_score, _ = comparison.score_table(RESULTS, "test")
    assert comparison.summary_sentences(table, per_attribute, by_score, PAIRS[:0], PUBLISHED) == [
        "Order by overall MAP@all: m3 60.0, asen 40.0.",
        "M3-Net compared with ASEN: +50 % relative in overall MAP@all.",
        "asen is within a fifth of the random ranking on sleeve.",
        "m3: class-specific embeddings change MAP by +2.0 over class probabilities only.",
    ]


def test_what_cannot_be_measured_is_read_as_nan_and_left_out_of_the_sentences(tmp_path):
    nothing = summary(np.nan, np.nan, np.nan)
    unmeasured = {"score": "weighted", "random": nothing, "valid": {}, "test": {"weighted": nothing}}
    for name, result in {"asen": RESULTS["asen"], "m3": unmeasured}.items():
        (tmp_path / f"{name}.json").write_text(to_json(result))
    results = comparison.read_metrics(tmp_path, ["asen", "m3"])
    table, per_attribute = (f(results, "test") for f in (comparison.main_table, comparison.attribute_table))
    by_score, _ = comparison.score_table(results, "test")
    assert table.loc["m3"].drop("score").isna().all()
    sentences = comparison.summary_sentences(table, per_attribute, by_score, PAIRS[:0], PUBLISHED)
    assert sentences[0] == "Order by overall MAP@all: asen 40.0."
    assert not any("nan" in text for text in sentences)
    sentences = comparison.summary_sentences(table.loc[["m3"]], per_attribute, by_score, PAIRS[:0], PUBLISHED)
    assert sentences == []


def test_a_pair_without_an_interval_has_no_verdict():
    unknown = PAIRS[:1].assign(low=np.nan, high=np.nan, p=np.nan)
    [line] = comparison.order_sentences(unknown, PUBLISHED)
    assert line == "ASEN_v2 to ASEN: published ahead on all three; here too few query images to tell."


def printed_result(dataset: str, system: str, add: float) -> dict:
    """A metrics file with the numbers that the poster prints for a system, plus `add` points."""
    printed = PUBLISHED[(PUBLISHED["dataset"] == dataset) & (PUBLISHED["system"] == system)]
    value = {(row.metric, row.attribute): (row.percent + add) / 100 for row in printed.itertuples()}
    attributes = {name: v for (metric, name), v in value.items() if metric == "MAP@all" and name != "overall"}
    summary = {"map_all": {"overall_by_query": value["MAP@all", "overall"], "attributes": attributes}}
    summary["map_100_hits"] = {"overall_by_query": value["MAP@100", "overall"]}
    summary["recall_100"] = {"overall_by_query": value["Recall@100", "overall"]}
    return {"score": "weighted", "test": {"weighted": summary, "other": {}}, "random": summary}


@pytest.mark.parametrize(("dataset", "columns"), [("deepfashion", 8), ("fashionai", 11), ("darn", 12)])
def test_on_a_public_benchmark_every_row_is_compared_with_the_published_one(dataset, columns):
    results = {"classifier": printed_result(dataset, "ASEN", 9.0), "asen": printed_result(dataset, "ASEN", 1.5)}
    results["m3"] = printed_result(dataset, "M3-Net", -2)
    table = comparison.against_published(results, "test", PUBLISHED, dataset)
    assert table.shape == (1 + 7 + 2 + 2, columns)
    assert not table.isna().any().any()
    assert table.loc[("ASEN", "difference")].to_numpy() == pytest.approx(1.5)
    assert table.loc[("M3-Net", "difference")].to_numpy() == pytest.approx(-2.0)
    overall = PUBLISHED[(PUBLISHED["dataset"] == dataset) & (PUBLISHED["attribute"] == "overall")]
    for row in overall.itertuples():
        column = "overall" if row.metric == "MAP@all" else row.metric
        assert table.loc[(row.system, "published"), column] == row.percent


def test_settings_that_differ_are_those_of_the_rows_and_of_their_stages():
    rows = [SETTINGS.variant(name).resolved() for name in ("asen_v2", "asen_pp", "modc", "m3")]
    table = comparison.settings_that_differ(rows)
    fields = {"model.attention_batch_norm", "train.lr", "train.crop", "train.jitter", "train.keep_originals"}
    assert fields <= set(table) <= fields | {"loss.margin", "loss.hardness", "loss.pairs"}
    assert list(table.index) == [
        ("asen_v2", 0), ("asen_pp", 0), ("asen_pp", 1), ("modc", 0), ("modc", 1), ("modc", 2), ("m3", 0)
    ]  # fmt: skip
    stages = [("asen_v2", 1), ("asen_pp", 2), ("modc", 3), ("m3", 1)]
    rates = [SETTINGS.variant(name).train.lr for name, count in stages for _ in range(count)]
    assert table["train.lr"].tolist() == rates
    assert table["train.crop"].tolist() == [1, 1, 1, 1, 1, 0.5, 1]
    assert comparison.settings_that_differ(rows[:1]).empty
