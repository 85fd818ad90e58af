"""record.py: experiments to a table in git."""

import json
import subprocess

import pandas as pd
import pytest

from m3lib.analysis import record, sweeps, tables
from m3lib.analysis.comparison import COLUMNS
from m3lib.errors import InputError


def summary(value: float) -> dict:
    metrics = {metric: {mean: value for _, mean in COLUMNS.values()} for metric, _ in COLUMNS.values()}
    metrics["map_r"] = {"overall_by_query": value / 5}
    metrics["map_all"]["attributes"] = {"colour": value, "shape": value / 2}
    return metrics | {"queries": {"colour": 3, "shape": 9}}


def git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with the commits of four experiments: sweep-1, sweep-2 (seeds 0 and 1), other-1 and sweeps-1."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "user.name", "a")
    git(tmp_path, "config", "user.email", "a@example.org")
    (tmp_path / "data" / "metrics").mkdir(parents=True)
    (tmp_path / "data" / "results").mkdir()
    for name, seed, value in [("sweep-1", 0, 0.25), ("sweep-2", 1, 0.5), ("other-1", 0, 0.75), ("sweeps-1", 0, 0)]:
        settings = f"seed: {seed}\nvariants: [m3]\ntrain: {{lr: 0.2, epochs: 4}}\n"
        (tmp_path / "params.yaml").write_text(settings)
        scores = {"weighted": summary(value), "posterior": summary(0.9)}
        result = {"variant": "m3", "score": "weighted", "valid": scores, "test": scores, "random": summary(0.1)}
        result["health"] = {"losses": {"m3_instance": {"value": 0.1, "trivial": 0.2, "ratio": 0.5}}}
        result["likeness"] = {"weighted": {"colour: hue": 0.3}}
        result["spaces"] = {
            "colour": {"cosine": 0.5, "own": 60.0, "attribute": None},
            "hem": {"cosine": 0, "own": 20.0},
        }
        of_classes = {"all": 0.2, "rare": 0.1, "middle": None, "frequent": 0.4, "unseen": None}
        unseen = of_classes | {"unseen": 0.3}
        result |= {
            "bands": {"weighted": of_classes, "concat": unseen, "random": of_classes},
            "calibration": {"colour": 0.1, "shape": None},
            "bytes": 9,
        }
        names = ("colour: red", "colour: blue", "colour: green", "shape: round", "shape: flat")
        result["classes"] = {"weighted": dict.fromkeys(names, 0.5)}
        (tmp_path / "data" / "metrics" / "m3.json").write_text(json.dumps(result))
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-qm", name)
        git(tmp_path, "update-ref", f"refs/exps/ab/cdef/{name}", "HEAD")
    return tmp_path


def test_collects_only_the_named_experiments_and_marks_the_reported_score(repository):
    table = pd.read_csv(record.collect(repository, "sweep"), keep_default_na=False)
    overall = sweeps.overall(table, "test").query("own and variant == 'm3'")
    assert overall[["seed", "percent"]].to_numpy().tolist() == [[0, 25.0], [1, 50.0]]
    assert set(table["variant"]) == {"m3", "random"}


def test_says_when_no_experiment_has_that_name(repository):
    with pytest.raises(InputError, match="no finished experiment is named nothing"):
        record.collect(repository, "nothing")


def test_records_every_score_on_both_splits_and_factor_correlations(repository):
    table = pd.read_csv(record.collect(repository, "sweep")).query("seed == 1")
    others = table[table["score"] == "posterior"]
    assert others[["split", "metric", "value"]].to_numpy().tolist() == [
        ["valid", "MAP@all", 90.0],
        ["test", "MAP@all", 90.0],
    ]
    factors = table[table["metric"] == "likeness"]
    assert factors[["score", "attribute", "value"]].to_numpy().tolist() == [["weighted", "colour: hue", 30.0]]


def test_records_what_pooled_map_hides_without_a_place_in_the_tables(repository):
    table = pd.read_csv(record.collect(repository, "sweep")).query("seed == 1 and not own")
    names = ["MAP@R", "mean of classes", "rare classes", "frequent classes", "calibration error"]
    beyond = table[table["metric"].isin([*names, "middle classes"])]
    assert beyond[["seed", "metric"]].to_numpy().tolist() == [[1, name] for name in names]
    assert beyond["value"].tolist() == [10, 20, 10, 40, 10]
    assert "rare" not in tables.results_tables(repository / "data/results", "sweep")


def test_only_settings_that_differ_are_recorded():
    base = {"seed": 0, "threads": 1, "variants": ["m3"], "train": {"lr": 0.1, "epochs": 4}}
    other = {"seed": 1, "threads": 2, "variants": ["asen"], "train": {"lr": 0.2, "epochs": 4}}
    assert record.varied_settings({"a": base, "b": other}) == {"a": "train.lr=0.1", "b": "train.lr=0.2"}
    assert record.varied_settings({"a": base, "c": base | {"seed": 5}}) == {"a": "", "c": ""}


def test_a_setting_of_a_row_is_recorded_where_it_differs_from_the_general_one():
    a, b, c = ({"train": {"lr": x}, "systems": {"m3": {"train": {"lr": y}}}} for x, y in [(1, 1), (2, 2), (1, 2)])
    assert record.varied_settings({"a": a, "b": b}) == {"a": "train.lr=1", "b": "train.lr=2"}
    assert record.varied_settings({"a": a, "c": c}) == {"a": "systems.m3.train.lr=1", "c": "systems.m3.train.lr=2"}


def test_the_headline_leaves_out_attributes_of_two_classes(repository):
    table = pd.read_csv(record.collect(repository, "sweep")).query("own and variant == 'm3' and seed == 0")
    assert table[table["metric"] == tables.FINE]["value"].tolist() == [25.0]  # colour's; shape has two classes


def test_unseen_classes_have_every_score_and_losses_their_share_of_the_trivial_value(repository):
    table = pd.read_csv(record.collect(repository, "sweep")).query("seed == 1")
    assert table[table["metric"] == "unseen classes"][["score", "value"]].to_numpy().tolist() == [["concat", 30.0]]
    losses = table[table["metric"].str.startswith("loss")]
    assert losses[["attribute", "value"]].to_numpy().tolist() == [["m3_instance", 50.0]]
