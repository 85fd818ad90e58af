"""bench.py: what the last run cost, from hand-made timings."""

import pandas as pd
import pytest

from m3lib import bench, bench_data

TIMINGS = pd.DataFrame(
    [
        ("01_prepare", 1000.0, 50.0, 45.0, 500),  # an earlier run
        ("01_prepare", 2000.0, 40.0, 35.0, 600),
        ("02_train-m3", 2042.0, 60.0, 50.0, 900),
    ],
    columns=["notebook", "started", "seconds", "cell_seconds", "peak_mb"],
)


def test_the_last_run_starts_after_the_last_long_pause():
    assert bench.last_run(TIMINGS)["started"].tolist() == [2000.0, 2042.0]
    assert bench.last_run(TIMINGS[:1])["started"].tolist() == [1000.0]


def test_overhead_is_what_no_cell_accounts_for():
    assert bench.overhead(bench.last_run(TIMINGS)) == (pytest.approx(102.0), pytest.approx(102.0 - 85.0))


def test_the_data_bench_runs_at_small_size(capsys):
    assert bench_data.main(photos=300, count=4) == 0
    told = capsys.readouterr().out
    assert "labels of 300 photos x 1,000 classes" in told
    assert "1.00 of the decoder's rate" in told
