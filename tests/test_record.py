"""record.py: experiments to a table in git, and the table to README."""

import json
import subprocess

import numpy as np
import pandas as pd
import pytest

from m3lib import record
from m3lib.errors import InputError
from m3lib.report import COLUMNS


def summary(value: float) -> dict:
    metrics = {metric: {mean: value for _, mean in COLUMNS.values()} for metric, _ in COLUMNS.values()}
    metrics["map_all"]["attributes"] = {"colour": value, "shape": value / 2}
    return metrics


def git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with three experiments' commits: sweep-1, sweep-2 (seeds 0 and 1) and other-1."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "user.name", "a")
    git(tmp_path, "config", "user.email", "a@example.org")
    (tmp_path / "data" / "metrics").mkdir(parents=True)
    (tmp_path / "data" / "results").mkdir()
    for name, seed, value in [("sweep-1", 0, 0.25), ("sweep-2", 1, 0.5), ("other-1", 0, 0.75)]:
        (tmp_path / "params.yaml").write_text(f"seed: {seed}\nvariants: [m3]\n")
        test = {"weighted": summary(value), "posterior": summary(0.9)}
        result = {"score": "weighted", "test": test, "random": summary(0.1)}
        (tmp_path / "data" / "metrics" / "m3.json").write_text(json.dumps(result))
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-qm", name)
        git(tmp_path, "update-ref", f"refs/exps/ab/cdef/{name}", "HEAD")
    return tmp_path


def test_collects_the_named_experiments_alone_with_their_own_score(repository):
    table = pd.read_csv(record.collect(repository, "sweep"))
    overall = table[(table["metric"] == "MAP@all") & table["attribute"].isna() & (table["variant"] == "m3")]
    assert overall[["seed", "percent"]].to_numpy().tolist() == [[0, 25.0], [1, 50.0]]
    assert set(table["experiment"]) == {"sweep-1", "sweep-2"}
    assert set(table["variant"]) == {"m3", "random"}


def test_says_when_no_experiment_has_that_name(repository):
    with pytest.raises(InputError, match="no finished experiment is named nothing"):
        record.collect(repository, "nothing")


def test_cells_are_mean_and_sample_deviation(repository):
    cells = record.mean_and_spread(pd.read_csv(record.collect(repository, "sweep")))
    assert cells.loc["m3", "MAP@all"] == f"37.5 ± {np.std([25, 50], ddof=1):.1f}"
    assert cells.loc["m3", "shape"] == f"18.8 ± {np.std([12.5, 25], ddof=1):.1f}"
    assert cells.loc["random", "MAP@all"] == "10.0"


def test_tables_go_between_the_markers_and_nowhere_else(repository):
    readme = repository / "README.md"
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
