"""The bench of the search at a small size, and the costs that it estimates."""

import os
import re
import signal
from dataclasses import replace

import pandas as pd
import pytest
import torch

from catalogues import build_index, noise_images, random_embeddings
from tests.bench import busy, scaling
from tests.bench import search as bench_search
from tiny import ROOT, TAXONOMY


def test_jittered_images_have_the_covariance_of_the_real_ones():
    real = random_embeddings(300, d=12).of_attribute(1, TAXONOMY)
    jittered = bench_search.jittered(real, 4000, seed=3)
    for kind in ("attribute", "classes"):
        got, expected = (getattr(e, kind).float().flatten(0, 1) for e in (jittered, real))
        torch.testing.assert_close(got.norm(dim=1), torch.ones(len(got)), atol=2e-3, rtol=0)
        torch.testing.assert_close(got.T.cov(), expected.T.cov(), atol=0.03, rtol=0)
    assert 0 <= jittered.posterior.min() <= jittered.posterior.max() <= 1
    assert jittered.posterior.float().mean() == pytest.approx(float(real.posterior.float().mean()), abs=0.05)


def test_the_bench_at_a_small_size(tmp_path, monkeypatch, capsys):
    real = replace(random_embeddings(200, d=12).of_attribute(1, TAXONOMY), attribute=None)
    taxonomy = type(TAXONOMY)((TAXONOMY.attributes[1],))
    monkeypatch.setattr(bench_search, "CASES", (bench_search.Case("m3", "weighted"),))
    monkeypatch.setattr(bench_search, "read", lambda root, case: (real, taxonomy))
    table = bench_search.run(tmp_path, [300, 3000])
    assert table["kind"].tolist() == ["compressed", "exact", "two classes"] * 2
    assert (table["recall_100"] >= 0.95).all()
    exact = table[table["kind"] == "exact"]
    assert (exact["recall_100"] >= 0.999).all()  # float32 products may swap the 100th with the next
    assert exact["memory_bytes"].to_numpy() == pytest.approx(4 * 4 * 13, abs=1)
    assert "looked_into" in capsys.readouterr().out
    assert "| 1 billion | m3 weighted |" in scaling.page(table, 0.5)


def test_a_photos_search_on_an_idle_and_a_busy_machine(tmp_path, monkeypatch):
    """Measured twice, the second time beside one running process per core; they end with the measurement."""
    prepared, started, running = noise_images(), [], []
    for name, value in {"QUERIES": 2, "WARM_UP": 1, "PAUSE": 0, "START": 0}.items():
        monkeypatch.setattr(busy, name, value)
    popen, p50 = busy.subprocess.Popen, busy.p50_ms
    monkeypatch.setattr(busy.subprocess, "Popen", lambda *given: started.append(popen(*given)) or started[-1])
    monkeypatch.setattr(busy, "p50_ms", lambda *given: running.append([p.poll() for p in started]) or p50(*given))
    text = busy.compare(build_index(tmp_path, prepared), prepared.images)
    cores = len(os.sched_getaffinity(0))
    assert running == [[], [None] * cores]
    assert all(process.poll() == -signal.SIGKILL for process in started)
    idle, loaded, ratio = re.fullmatch(
        rf"a new photo in 40 images: p50 (\S+) ms on the idle machine, (\S+) ms with {cores} busy cores, "
        r"ratio (\S+) \(at most 2\.00 is the goal\)",
        text,
    ).groups()
    assert float(ratio) == pytest.approx(float(loaded) / float(idle), rel=0.2)


def test_costs_are_proportional_and_machines_follow_the_scarcer_of_memory_and_disk():
    sizes = {"items": 1_000_000, "dims": 100, "memory_bytes": 200.0, "shared_bytes": 24.0, "disk_bytes": 400.0}
    row = pd.Series(sizes | {"build_seconds": 36.0, "p50_ms": 2.0})
    small, large = (scaling.cost(row, items) for items in (10**7, 10**9))
    assert small["memory"] == 10**7 * (5 * 200 + 24)
    assert small["machines"] == 1
    assert small["build, core hours"] == pytest.approx(36 * 10 * 5 / 3600)
    assert small["ms per query"] == pytest.approx(2.0 * 10 / 16)
    assert large["machines"] == 20  # 1,024 GB of memory in shares of 51.2 GB
    assert scaling.cost(row.replace({400.0: 8000.0}), 10**9)["machines"] == 25  # 40 TB of disk in shares of 1.6 TB
    assert large["graph"] == 5 * 10**9 * (400 + 128)


def test_the_recorded_page_has_the_words_of_the_generator():
    results = ROOT / "data" / "results"
    page = scaling.page(pd.read_csv(results / "search.csv"), bench_search.JITTER)
    recorded = (results / "search.md").read_text()
    assert re.sub(r"[\d.,]+", "#", recorded) == re.sub(r"[\d.,]+", "#", page)  # the table of the run had more digits
