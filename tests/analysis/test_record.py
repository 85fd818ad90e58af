"""record.py: experiments to a table in git, and the table to README."""

import json
import subprocess

import numpy as np
import pandas as pd
import pytest

from m3lib.analysis import record, sweeps
from m3lib.analysis.comparison import COLUMNS
from m3lib.errors import InputError

PAIR = ["lower", "higher", "difference", "low", "high", "p"]


def summary(value: float) -> dict:
    metrics = {metric: {mean: value for _, mean in COLUMNS.values()} for metric, _ in COLUMNS.values()}
    metrics["map_all"]["attributes"] = {"colour": value, "shape": value / 2}
    return metrics


def git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with four experiments' commits: sweep-1, sweep-2 (seeds 0 and 1), other-1 and sweeps-1."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "user.name", "a")
    git(tmp_path, "config", "user.email", "a@example.org")
    (tmp_path / "data" / "metrics").mkdir(parents=True)
    (tmp_path / "data" / "results").mkdir()
    for name, seed, value in [
        ("sweep-1", 0, 0.25),
        ("sweep-2", 1, 0.5),
        ("other-1", 0, 0.75),
        ("sweeps-1", 0, 0.8),
    ]:
        (tmp_path / "params.yaml").write_text(
            f"seed: {seed}\nvariants: [m3]\ntrain: {{lr: 0.2, epochs: 4}}\n"
            "systems: {m3: {train: {held_out: ['colour: red']}}}\n"
        )
        scores = {"weighted": summary(value), "posterior": summary(0.9)}
        result = {"score": "weighted", "valid": scores, "test": scores, "random": summary(0.1)}
        result["likeness"] = {"weighted": {"colour: hue": 0.3}}
        result["classes"] = {"weighted": {"colour: red": 0.5, "colour: blue": 0.6}}
        pairs = pd.DataFrame([["asen", "m3", 100 * value, 10 * seed - 5, 90, 0.01]], columns=PAIR)
        pairs.to_csv(tmp_path / "data" / "pairs.csv", index=False)
        (tmp_path / "data" / "metrics" / "m3.json").write_text(json.dumps(result))
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-qm", name)
        git(tmp_path, "update-ref", f"refs/exps/ab/cdef/{name}", "HEAD")
    return tmp_path


def test_collects_the_named_experiments_alone_with_their_own_score(repository):
    table = pd.read_csv(record.collect(repository, "sweep"))
    own = table[table["own"] & (table["split"] == "test")]
    overall = own[(own["metric"] == "MAP@all") & own["attribute"].isna() & (own["variant"] == "m3")]
    assert overall[["seed", "percent"]].to_numpy().tolist() == [[0, 25.0], [1, 50.0]]
    assert set(table["experiment"]) == {"sweep-1", "sweep-2"}
    assert set(table["variant"]) == {"m3", "random"}


def test_says_when_no_experiment_has_that_name(repository):
    with pytest.raises(InputError, match="no finished experiment is named nothing"):
        record.collect(repository, "nothing")


def test_cells_are_mean_and_sample_deviation(repository):
    record.collect(repository, "sweep")
    cells = record.reported_cells(sweeps.read(repository / "data/results/sweep.csv"))
    assert cells.loc["m3", "MAP@all"] == f"37.5 ± {np.std([25, 50], ddof=1):.1f}"
    assert cells.loc["m3", "shape"] == f"18.8 ± {np.std([12.5, 25], ddof=1):.1f}"
    assert cells.loc["random", "MAP@all"] == "10.0"


def test_tables_go_between_the_markers_and_nowhere_else(repository):
    (repository / "README.md").write_text("<!-- summary: sweep none -->\nold\n<!-- end -->\n")
    readme = repository / "data/results/README.md"
    readme.write_text(
        "before\n<!-- results: sweep -->\nold\n<!-- end -->\nafter\n<!-- results: none -->\n<!-- end -->\n"
    )
    record.collect(repository, "sweep")
    record.write_tables(repository)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert "\nafter\n" in text
    assert "old" not in text
    assert "| m3 | 37.5" in text
    assert "Not recorded yet." in text
    record.write_tables(repository)
    assert readme.read_text() == text
    short = (repository / "README.md").read_text()
    assert "| variant | sweep |" in short
    assert f"| m3 | 37.5 ± {np.std([25, 50], ddof=1):.1f} |" in short


def test_records_every_score_on_both_splits_and_what_lies_beyond_them(repository):
    table = pd.read_csv(record.collect(repository, "sweep"))
    others = table[(table["score"] == "posterior") & (table["seed"] == 0)]
    assert others[["split", "metric", "percent"]].to_numpy().tolist() == [
        ["valid", "MAP@all", 90.0],
        ["test", "MAP@all", 90.0],
    ]
    inside = table[(table["metric"] == "likeness") & (table["seed"] == 1)]
    assert inside[["score", "attribute", "percent"]].to_numpy().tolist() == [["weighted", "colour: hue", 30.0]]
    unseen = table[(table["metric"] == "MAP@all of a class") & (table["seed"] == 1)]
    assert unseen[["attribute", "percent"]].to_numpy().tolist() == [["colour: red", 50.0]]


def test_pairs_are_counted_over_runs(repository):
    record.collect(repository, "sweep")
    pairs = record.pair_table(pd.read_csv(repository / "data/results/sweep-pairs.csv"))
    assert pairs.loc["m3 - asen"].tolist() == [f"37.5 ± {np.std([25, 50], ddof=1):.1f}", "1 of 2", "0 of 2"]


def test_settings_that_differ_are_told_and_others_are_not():
    base = {"seed": 0, "threads": 1, "variants": ["m3"], "train": {"lr": 0.1, "epochs": 4}}
    other = {"seed": 1, "threads": 2, "variants": ["asen"], "train": {"lr": 0.2, "epochs": 4}}
    found = record.varied_settings({"a": base, "b": other})
    assert found == {"a": "train.lr=0.1", "b": "train.lr=0.2"}
    assert record.varied_settings({"a": base, "c": base | {"seed": 5}}) == {"a": "", "c": ""}


def test_a_rows_own_setting_is_told_where_it_differs_from_the_general_one():
    found = [{"train": {"lr": lr}, "systems": {"m3": {"train": {"lr": own}}}} for lr, own in [(1, 1), (2, 2), (1, 2)]]
    assert record.varied_settings(dict(zip("ab", found[:2], strict=True))) == {"a": "train.lr=1", "b": "train.lr=2"}
    told = record.varied_settings(dict(zip("ac", found[::2], strict=True)))
    assert told == {"a": "systems.m3.train.lr=1", "c": "systems.m3.train.lr=2"}


def test_a_sweep_has_a_column_per_setting(tmp_path):
    rows = [
        [0, "m3", "valid", "weighted", True, "MAP@all", "", 20.0 + 2 * seed + lr, f"train.lr={lr}"]
        for seed in (0, 1)
        for lr in (1, 2)
    ]
    rows.append([0, "m3", "test", "weighted", True, "MAP@all", "", 90.0, "train.lr=1"])
    rows.append([0, "m3", "valid", "concat", False, "MAP@all", "", 90.0, "train.lr=1"])
    columns = ["seed", "variant", "split", "score", "own", "metric", "attribute", "percent", "settings"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "lr.csv", index=False)
    assert record.sweep_table(tmp_path / "lr.csv", "valid").splitlines() == [
        "| variant | train.lr=1 | train.lr=2 |",
        "| --- | --- | --- |",
        "| m3 | 22.0 ± 1.4 | 23.0 ± 1.4 |",
    ]


def test_scores_stand_beside_each_other_with_their_own_in_bold(tmp_path):
    found = {"valid": [("asen", "attribute", 10.0), ("m3", "posterior", 20.0), ("m3", "attribute", 7.0)]}
    found["test"] = [("m3", "posterior", 90.0)]
    own = {"asen": "attribute", "m3": "posterior"}
    rows = [
        [seed, variant, split, score, score == own[variant], "MAP@all", "", value + 2 * seed]
        for seed in (0, 1)
        for split, values in found.items()
        for variant, score, value in values
    ]
    rows.append([0, "random", "valid", "random", True, "MAP@all", "", 3.0])
    columns = ["seed", "variant", "split", "score", "own", "metric", "attribute", "percent"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "multi.csv", index=False)
    assert record.score_table(tmp_path / "multi.csv", "valid").splitlines() == [
        "| variant | attribute | posterior |",
        "| --- | --- | --- |",
        "| asen | **11.0 ± 1.4** | - |",
        "| m3 | 8.0 ± 1.4 | **21.0 ± 1.4** |",
    ]
