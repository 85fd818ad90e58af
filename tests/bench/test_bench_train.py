"""The training bench at a small size; its ratios, its page and its record."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from m3lib import config
from m3lib.errors import InputError
from m3lib.systems import losses
from tests.bench import train as bench_train
from tiny import MODEL, SETTINGS


@pytest.fixture
def small(monkeypatch, tmp_path) -> bench_train.Bench:
    """The default rows on a tiny backbone, 48 images of 32 pixels per step, no memory measured."""
    settings = replace(SETTINGS, model=replace(SETTINGS.model, **MODEL), accelerator="cpu", threads=1)
    monkeypatch.setattr(config, "load", lambda path: settings)
    monkeypatch.setattr(bench_train.Bench, "peak_mb", lambda *_: 123.0)
    monkeypatch.setattr(bench_train, "BASE", {"default": (48, 32, 20, 3)})
    monkeypatch.setattr(bench_train, "GROWS", {"default": {2: (30,), 3: (2,)}})
    return bench_train.Bench("default", tmp_path, rounds=1)


def test_every_row_of_the_table_is_a_ratio(small):
    table = small.run()
    assert set(table["what"]) >= {f"step of {name}" for name in SETTINGS.variants}
    assert {"pairs/s of m3", "loading only", "extraction by m3", "extraction by asen_v2"} <= set(table["what"])
    assert (table["ratio"] > 0).all()
    assert (table[table["what"] == f"step of {bench_train.PLAIN}"]["ratio"] == 1).all()
    assert set(zip(table["classes"], table["attributes"], strict=True)) == {(20, 3), (30, 3), (20, 2)}
    text = bench_train.page(table)
    assert text.count("\n## ") == 1
    assert text.count("| step of m3 | step of classifier |") == 3


def test_works_take_turns_and_the_first_round_is_left_out():
    order = []
    times = bench_train.take_turns({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == list("abababab")
    assert [len(spent) for spent in times.values()] == [3, 3]
    assert bench_train.ratio([2.0, 9.0, 1.0], [1.0, 3.0, 4.0]) == 2.0


def test_an_official_step_is_three_forward_passes_and_moves_the_weights(small):
    stepper, seen = small.stepper("asen_v2", (48, 32, 20, 3)), []
    stepper.trainer.system.register_forward_hook(lambda _, x, y: seen.append((x[0].shape, y.attribute.requires_grad)))
    before = [weight.detach().clone() for weight in stepper.trainer.system.parameters()]
    stepper.official()
    assert seen == [((16, 3, 32, 32), True)] * 3
    assert any(not torch.equal(a, b) for a, b in zip(before, stepper.trainer.system.parameters(), strict=True))


def test_labels_have_a_long_tail_over_all_attributes(tmp_path):
    prepared = bench_train.make_prepared(400, 8, 100, 5, tmp_path)
    known = losses.known_attributes(
        torch.from_numpy(prepared.labels), torch.from_numpy(prepared.taxonomy.attribute_of_class)
    )
    assert known.float().mean() == pytest.approx(bench_train.KNOWN, abs=0.05)
    counts = np.sort(prepared.labels.sum(axis=0))
    assert counts[-10:].mean() > 5 * counts[:50].mean()
    assert prepared.images.shape == (400, 8, 8, 3)


ROW = {"what": "step of m3", "against": "step of classifier", "batch": 64, "side": 96, "classes": 70, "attributes": 7}
ROW |= {"ratio": 0.7, "ms": 12.5, "peak_mb": float("nan")}
ROW |= {"device": "A", "backbone": "resnet10t", "precision": "bf16", "date": "2024-05-01"}


def test_a_page_has_a_section_per_device():
    text = bench_train.page(pd.DataFrame([ROW, ROW | {"device": "B", "peak_mb": 512.4}]))
    sections = ["## A, resnet10t, bf16, 2024-05-01", "## B, resnet10t, bf16, 2024-05-01"]
    assert [line for line in text.splitlines() if line.startswith("##")] == sections
    assert "| 0.7 | 12.5 |  |" in text
    assert "| 0.7 | 12.5 | 512 |" in text


def test_a_record_replaces_only_rows_of_the_same_device_and_backbone(monkeypatch, tmp_path):
    rows = iter([ROW, ROW | {"device": "B"}, ROW | {"backbone": "resnet50"}, ROW | {"ratio": 0.8}])
    monkeypatch.setattr(bench_train.config, "find_root", lambda: tmp_path)
    monkeypatch.setattr(bench_train, "make_row", lambda *_: None)
    monkeypatch.setattr(bench_train.Bench, "__init__", lambda *_: None)
    monkeypatch.setattr(bench_train.Bench, "run", lambda *_: pd.DataFrame([next(rows)]))
    (tmp_path / "data" / "results").mkdir(parents=True)
    for _ in range(4):
        bench_train.main("default", "m3")
    recorded = pd.read_csv(tmp_path / "data" / "results" / "training.csv")[["device", "backbone", "ratio"]]
    expected = [["B", "resnet10t", 0.7], ["A", "resnet50", 0.7], ["A", "resnet10t", 0.8]]
    assert recorded.to_numpy().tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "problem"), [(["large"], "one of default, .*'large'"), (["default", "m33"], "'m33'")]
)
def test_an_unknown_size_or_row_is_refused(arguments, problem):
    with pytest.raises(InputError, match=problem):
        bench_train.main(*arguments)
