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
    metrics["map_r"] = {"overall_by_query": value / 5}
    metrics["map_all"]["attributes"] = {"colour": value, "shape": value / 2}
    return metrics


def git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


OLD = "systems: {m3: {train: {held_out: ['colour: red']}}}\n"  # before rows could inherit
NEW = "systems: {m3: {like: unseen}, unseen: {like: asen, train: {held_out: ['colour: red']}}, asen: {network: asen}}\n"


@pytest.fixture
def repository(tmp_path):
    """A repository with the commits of four experiments: sweep-1, sweep-2 (seeds 0 and 1), other-1 and sweeps-1."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "user.name", "a")
    git(tmp_path, "config", "user.email", "a@example.org")
    (tmp_path / "data" / "metrics").mkdir(parents=True)
    (tmp_path / "data" / "results").mkdir()
    experiments = [
        ("sweep-1", 0, 0.25, OLD),
        ("sweep-2", 1, 0.5, OLD),
        ("other-1", 0, 0.75, NEW),
        ("sweeps-1", 0, 0, OLD),
    ]
    for name, seed, value, systems in experiments:
        settings = f"seed: {seed}\nvariants: [m3]\ntrain: {{lr: 0.2, epochs: 4}}\n"
        (tmp_path / "params.yaml").write_text(settings + systems)
        scores = {"weighted": summary(value), "posterior": summary(0.9)}
        result = {"score": "weighted", "valid": scores, "test": scores, "random": summary(0.1)}
        result["likeness"] = {"weighted": {"colour: hue": 0.3}}
        result["spaces"] = {
            "colour": {"cosine": 0.5, "own": 60.0, "attribute": None},
            "hem": {"cosine": 0, "own": 20.0},
        }
        of_classes = {"all": 0.2, "rare": 0.1, "middle": None, "frequent": 0.4, "unseen": None}
        result |= {"bands": {"weighted": of_classes}, "calibration": {"colour": 0.1, "shape": None}, "bytes": 9}
        result["classes"] = {"weighted": {"colour: red": 0.5, "colour: blue": 0.6}}
        pairs = pd.DataFrame([["asen", "m3", 100 * value, 10 * seed - 5, 90, 0.01]], columns=PAIR)
        pairs.to_csv(tmp_path / "data" / "pairs.csv", index=False)
        (tmp_path / "data" / "metrics" / "m3.json").write_text(json.dumps(result))
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-qm", name)
        git(tmp_path, "update-ref", f"refs/exps/ab/cdef/{name}", "HEAD")
    return tmp_path


def test_collects_only_the_named_experiments_and_marks_the_reported_score(repository):
    table = pd.read_csv(record.collect(repository, "sweep"), keep_default_na=False)
    overall = sweeps.overall(table, "test").query("own and variant == 'm3'")
    assert overall[["seed", "percent"]].to_numpy().tolist() == [[0, 25.0], [1, 50.0]]
    assert set(table["experiment"]) == {"sweep-1", "sweep-2"}
    assert set(table["variant"]) == {"m3", "random"}


@pytest.mark.parametrize("name", ["sweep", "other"])
def test_records_held_out_classes_of_a_row_and_of_the_rows_that_it_is_like(repository, name):
    table = pd.read_csv(record.collect(repository, name))
    unseen = table[(table["metric"] == "MAP@all of a class") & (table["experiment"] == f"{name}-1")]
    assert unseen[["attribute", "percent"]].to_numpy().tolist() == [["colour: red", 50.0]]


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
    assert "old" not in text
    assert "| m3 | weighted | 37.5" in text
    assert text.endswith("\n<!-- end -->\nafter\n<!-- results: none -->\n\nNot recorded yet.\n\n<!-- end -->\n")
    record.write_tables(repository)
    assert readme.read_text() == text
    short = (repository / "README.md").read_text()
    assert "| variant | sweep |" in short
    assert f"| m3 | 37.5 ± {np.std([25, 50], ddof=1):.1f} |" in short


def test_records_every_score_on_both_splits_and_factor_correlations(repository):
    table = pd.read_csv(record.collect(repository, "sweep")).query("seed == 1")
    others = table[table["score"] == "posterior"]
    assert others[["split", "metric", "percent"]].to_numpy().tolist() == [
        ["valid", "MAP@all", 90.0],
        ["test", "MAP@all", 90.0],
    ]
    factors = table[table["metric"] == "likeness"]
    assert factors[["score", "attribute", "percent"]].to_numpy().tolist() == [["weighted", "colour: hue", 30.0]]


def test_class_spaces_are_averaged_over_attributes_and_then_over_runs(repository):
    record.collect(repository, "sweep")
    lines = record.space_table(repository / "data" / "results", "sweep").splitlines()
    assert lines[0] == "| variant | cosine | own |"
    assert lines[-1] == "| m3 | 25.0 | 40.0 |"


def test_records_what_pooled_map_hides_without_a_place_in_the_tables(repository):
    table = pd.read_csv(record.collect(repository, "sweep")).query("seed == 1 and not own")
    names = ["MAP@R", "mean of classes", "rare classes", "frequent classes", "calibration error"]
    beyond = table[table["metric"].isin([*names, "middle classes"])]
    assert beyond[["seed", "metric"]].to_numpy().tolist() == [[1, name] for name in names]
    assert beyond["percent"].tolist() == [10, 20, 10, 40, 10]
    assert "rare" not in record.results_tables(repository / "data/results", "sweep")


def test_pairs_are_counted_over_runs(repository):
    record.collect(repository, "sweep")
    pairs = record.pair_table(pd.read_csv(repository / "data/results/sweep-pairs.csv"))
    spread = np.std([25, 50], ddof=1)
    reach = 12.706 * spread / np.sqrt(2)  # Student's t for one degree of freedom, from a printed table
    expected = [f"37.5 ± {spread:.1f}", f"{37.5 - reach:+.1f} to {37.5 + reach:+.1f}", "1 of 2", "0 of 2"]
    assert pairs.loc["m3 - asen"].tolist() == expected
    one_run = pd.read_csv(repository / "data/results/sweep-pairs.csv").query("seed == 0")
    assert record.pair_table(one_run)["95 % interval"].tolist() == ["-"] * len(one_run)


def test_only_settings_that_differ_are_recorded():
    base = {"seed": 0, "threads": 1, "variants": ["m3"], "train": {"lr": 0.1, "epochs": 4}}
    other = {"seed": 1, "threads": 2, "variants": ["asen"], "train": {"lr": 0.2, "epochs": 4}}
    assert record.varied_settings({"a": base, "b": other}) == {"a": "train.lr=0.1", "b": "train.lr=0.2"}
    assert record.varied_settings({"a": base, "c": base | {"seed": 5}}) == {"a": "", "c": ""}


def test_a_setting_of_a_row_is_recorded_where_it_differs_from_the_general_one():
    a, b, c = ({"train": {"lr": x}, "systems": {"m3": {"train": {"lr": y}}}} for x, y in [(1, 1), (2, 2), (1, 2)])
    assert record.varied_settings({"a": a, "b": b}) == {"a": "train.lr=1", "b": "train.lr=2"}
    assert record.varied_settings({"a": a, "c": c}) == {"a": "systems.m3.train.lr=1", "c": "systems.m3.train.lr=2"}


def write_result(folder, rows):
    """rows: variant, split, score, own, percent, settings."""
    table = pd.DataFrame(rows, columns=["variant", "split", "score", "own", "percent", "settings"])
    table.assign(metric="MAP@all", attribute="").to_csv(folder / "recorded.csv", index=False)


def test_a_sweep_has_a_column_per_setting(tmp_path):
    rows = [("m3", "valid", "weighted", True, 20 + 2 * seed + lr, f"train.lr={lr}") for seed in (0, 1) for lr in (1, 2)]
    rows += [("m3", "test", "weighted", True, 90, "train.lr=1"), ("m3", "valid", "concat", False, 90, "train.lr=1")]
    write_result(tmp_path, rows)
    assert record.sweep_table(tmp_path, "recorded", "valid").splitlines() == [
        "| variant | train.lr=1 | train.lr=2 |",
        "| --- | --- | --- |",
        "| m3 | 22.0 ± 1.4 | 23.0 ± 1.4 |",
    ]


def test_a_variant_has_a_column_per_score_and_the_reported_one_is_bold(tmp_path):
    rows = [("m3", "test", "posterior", True, 90, ""), ("random", "valid", "random", True, 3, "")]
    for seed in (0, 1):
        rows.append(("asen", "valid", "attribute", True, 10 + 2 * seed, ""))
        rows += [("m3", "valid", "posterior", True, 20 + 2 * seed, ""), ("m3", "valid", "attribute", False, 7, "")]
    write_result(tmp_path, rows)
    assert record.score_table(tmp_path, "recorded", "valid").splitlines() == [
        "| variant | attribute | posterior |",
        "| --- | --- | --- |",
        "| asen | **11.0 ± 1.4** | - |",
        "| m3 | 7.0 | **21.0 ± 1.4** |",
    ]
