"""The benches: sums from hand-made timings, and each goes through at a small size."""

import re
from dataclasses import replace

import pandas as pd
import pytest

from tests.bench import data as bench_data
from tests.bench import load as bench_load
from tests.bench import ranking as bench_ranking
from tests.bench import stages as bench
from tests.bench.ranking import Case
from tiny import MODEL

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
    assert bench.overhead(bench.last_run(TIMINGS)) == pytest.approx((102.0, 15.0, 2.0))


def test_the_data_bench_runs_at_small_size(capsys):
    bench_data.read_labels(300)
    bench_data.pack_photos(4)
    output = capsys.readouterr().out
    assert "labels of 300 photos x 1,000 classes" in output
    assert "1.00 of the decoder's rate" in output


def test_every_way_to_a_ranking_has_the_same_map(capsys):
    case = bench_ranking.Case(queries=16, candidates=120, classes=4, score="weighted", dim=8)
    bench_ranking.compare("small", case, rounds=1)
    assert "times the lower bound" in capsys.readouterr().out
    values = [way(case, case.product()) for way in (Case.ours, Case.official, Case.scikit_learn)]
    assert max(values) - min(values) < 1e-6


def test_a_full_evaluation_runs_in_a_new_process(tmp_path, capsys):
    bench_ranking.full(tmp_path, 20, 60, (3, 5))
    assert re.search(r"MAP@all \d+\.\d+', 'seconds': [\d.]+, 'peak GB': 0\.\d+", capsys.readouterr().out)


def test_the_load_bench_runs_at_small_size(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_load, "STEPS", 2)
    bench_load.make_catalogue(tmp_path, 1200)
    settings = bench_load.settings_for(tmp_path)
    settings = replace(settings, model=replace(settings.model, **MODEL))
    texts = [step(tmp_path, settings) for step in bench_load.STEPS_OF.values()]
    assert re.match("1,200 photos at 48 px", texts[0])  # those without a label too
    assert re.search(r"\d+ queries, MAP@all \d", texts[-1])
