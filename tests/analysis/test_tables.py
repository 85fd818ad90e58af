"""tables.py: recorded results to the tables of README."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from m3lib.analysis import sweeps, tables
from m3lib.analysis.record import RECORDED

REACH = 12.706 / np.sqrt(2)  # Student's t for one degree of freedom, from a printed table; of two runs


def write(folder: Path, name: str, levels: dict[str, list[float]], metric: str = "MAP@all", **columns) -> None:
    """Record a test metric: per variant, its value for the seeds 0, 1, ..."""
    path = folder / f"{name}.csv"
    rows = [
        {"seed": s, "variant": variant, "split": "test", "score": "weighted", "own": True, "metric": metric}
        | {"attribute": "", "value": value, "settings": ""}
        | columns
        for variant, values in levels.items()
        for s, value in enumerate(values)
    ]
    table = pd.DataFrame(rows, columns=RECORDED)
    table.to_csv(path, index=False, mode="a", header=not path.exists())


@pytest.fixture
def folder(tmp_path):
    results = tmp_path / "data" / "results"
    results.mkdir(parents=True)
    for metric in tables.COLUMNS:
        write(results, "a", {"random": [10, 10], "modc": [20, 24], "m3": [30, 32], "m3_a": [29, 33]}, metric)
    write(results, "a", {"modc": [8, 8], "m3": [9, 12]}, attribute="shape")
    write(results, "b", {"random": [5], "m3": [50]})
    return results


def test_cells_are_mean_and_sample_deviation(folder):
    cells = tables.reported_cells(pd.read_csv(folder / "a.csv", keep_default_na=False))
    assert cells.loc["m3", "MAP@all"] == f"31.0 ± {np.std([30, 32], ddof=1):.1f}"
    assert cells.loc["m3", "shape"] == f"10.5 ± {np.std([9, 12], ddof=1):.1f}"
    assert cells.loc["random", "MAP@all"] == "10.0"
    assert cells.loc["random", "shape"] == "-"


def test_a_summary_has_a_column_per_result_and_leaves_out_what_is_not_recorded(folder):
    lines = tables.summary_table(folder, "a", "b", "none").splitlines()
    assert lines[0] == "| variant | a | b |"
    assert lines[-1].startswith("| m3_a | 31.0 ± 2.8 | -")


def test_differences_are_within_runs_with_student_s_interval(folder):
    pairs = tables.pair_table(tables.by_run(pd.read_csv(folder / "a.csv", keep_default_na=False), "MAP@all"))
    spread = np.std([10, 8], ddof=1)
    expected = [f"9.0 ± {spread:.1f}", f"{9 - REACH * spread:+.1f} to {9 + REACH * spread:+.1f}", "2 of 2"]
    assert pairs.loc["m3 - modc"].tolist() == expected
    assert pairs.loc["m3 - m3_a", "ahead in"] == "1 of 2"


def test_parts_have_a_column_per_result(folder):
    text = tables.parts_table(folder, "a", "b")
    reach = REACH * np.std([1, -1], ddof=1)
    assert f"| attention by class (M3-Net - M3-Net_a) | +0.0 ({-reach:+.1f} to {reach:+.1f}) |" in text


def test_the_published_order_stands_beside_ours(folder):
    systems = {"ASEN": 10.0, "ASEN_v2": 11.5, "ASEN++": 11.0, "MODC": 12, "M3-Net_a": 14, "M3-Net_c": 13, "M3-Net": 20}
    printed = [["darn", system, "MAP@all", "overall", level] for system, level in systems.items()]
    columns = ["dataset", "system", "metric", "attribute", "percent"]
    pd.DataFrame(printed, columns=columns).to_csv(folder / "published.csv", index=False)
    write(folder, "d", {"asen": [1, 1], "asen_v2": [3, 5], "m3_a": [7, 7], "modc": [6, 6.0]})
    lines = tables.order_table(folder, "d").splitlines()
    assert lines[0] == "| step | darn, published | d |"
    assert [line.split("|")[1:3] for line in lines[2:]] == [
        [" ASEN_v2 - ASEN ", " +1.5 "],
        [" M3-Net_a - MODC ", " +2.0 "],
    ]
    assert lines[3].endswith("| +1.0 (+1.0 to +1.0) |")


def test_the_best_row_is_named_with_those_than_which_it_is_not_significantly_better(folder):
    write(folder, "c", {"asen": [1, 1.1], "m3": [50, 50.1], "modc": [30, 55], "m3_a": [2]})
    write(folder, "b", {"modc": [20], "asen": [10], "m3_a": [5]})
    *_, first, second = tables.best_table(folder, "c", "b").splitlines()
    assert first == "| c | 2 | m3 (50.0) | modc (42.5), m3_a (2.0) |"
    assert second == "| b | 1 | m3 (50.0) | unknown, one run |"


def test_class_spaces_are_averaged_over_attributes_and_then_over_runs(folder):
    for attribute, value in (("shape", 20), ("colour", 60)):
        for name in ("cosine", "own"):
            write(folder, "d", {"m3": [value, value + 2]}, tables.SPACE + name, attribute=attribute, own=False)
    lines = tables.space_table(folder, "d").splitlines()
    assert lines[0] == "| variant | cosine | own |"
    assert lines[-1] == "| m3 | 41.0 ± 1.4 | 41.0 ± 1.4 |"


def test_unseen_classes_are_shown_by_the_own_and_by_the_best_score(folder):
    write(folder, "e", {"m3": [6, 8]}, "rare classes")
    write(folder, "e", {"m3": [30, 50]}, "likeness", attribute="shape: hem", score="concat")
    write(folder, "e", {"m3": [10, 12]}, "likeness", attribute="shape: hem", score="posterior")
    write(folder, "f", {"m3": [1, 1]}, "MAP@all")
    write(folder, "f", {"m3": [10, 12]}, "unseen classes", own=False)
    write(folder, "f", {"m3": [20, 20]}, "unseen classes", score="concat", own=False)
    lines = tables.beyond_table(folder, "e", "f").splitlines()
    assert lines[0] == "| variant | rare classes | unseen classes | unseen, best score | likeness |"
    assert lines[-1] == "| m3 | 7.0 ± 1.4 | 11.0 ± 1.4 | 20.0 (concat) | 0.40 |"


def test_tables_go_between_the_markers_and_nowhere_else(folder):
    root, readme = folder.parents[1], folder / "README.md"
    (root / "README.md").write_text("<!-- summary: a none -->\nold\n<!-- end -->\n")
    readme.write_text("before\n<!-- results: a -->\nold\n<!-- end -->\nafter\n<!-- results: none -->\n<!-- end -->\n")
    tables.write(root)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert "old" not in text
    assert "| m3 | weighted | 31.0" in text
    assert text.endswith("\n<!-- end -->\nafter\n<!-- results: none -->\n\nNot recorded yet.\n\n<!-- end -->\n")
    tables.write(root)
    assert readme.read_text() == text
    assert "| variant | a |" in (root / "README.md").read_text()


def test_a_score_that_some_seeds_of_a_variant_lack_is_left_out():
    """The metrics of no score, such as those of class spaces, stay."""
    cells = [("m3", 0, "open"), ("m3", 0, "weighted"), ("m3", 1, "weighted"), ("m3", 1, ""), ("duet", 1, "open")]
    table = pd.DataFrame(cells, columns=["variant", "seed", "score"])
    assert list(sweeps.complete(table).itertuples(index=False, name=None)) == cells[1:]
