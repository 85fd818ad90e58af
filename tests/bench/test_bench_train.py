"""The benchmark of training runs at a toy size, and its ratios and page are what they say."""

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
def toy(monkeypatch, tmp_path) -> bench_train.Bench:
    """The default rows on a tiny backbone, 8 pictures of 32 pixels a step, without the processes that tell memory."""
    tiny = replace(SETTINGS, model=replace(SETTINGS.model, **MODEL), accelerator="cpu", threads=1)
    monkeypatch.setattr(config, "load", lambda path: tiny)
    monkeypatch.setattr(bench_train, "peak", lambda *_: 123.0)
    monkeypatch.setattr(bench_train, "BASE", {"default": (48, 32, 20, 3)})
    monkeypatch.setattr(bench_train, "GROWS", {"default": {2: (30,), 3: (2,)}})
    return bench_train.Bench("default", tmp_path, rounds=1)


def test_every_row_of_the_table_is_a_ratio(toy):
    table = toy.run()
    assert set(table["what"]) >= {f"step of {name}" for name in (bench_train.PLAIN, *bench_train.SYSTEMS)}
    assert {"pairs/s of m3", "loading alone", "extraction by m3", "extraction by asen_v2"} <= set(table["what"])
    assert (table["ratio"] > 0).all()
    assert (table[table["what"] == f"step of {bench_train.PLAIN}"]["ratio"] == 1).all()
    assert set(zip(table["classes"], table["attributes"], strict=True)) == {(20, 3), (30, 3), (20, 2)}
    text = bench_train.page(table)
    assert text.count("\n## ") == 1
    assert text.count("| step of m3 | step of classifier |") == 3


def test_turns_are_taken_and_the_first_is_left_out():
    order = []
    works = {name: lambda name=name: order.append(name) for name in "ab"}
    found = bench_train.by_turns(works, torch.device("cpu"), 3)
    assert order == list("abababab")
    assert [len(spent) for spent in found.values()] == [3, 3]
    assert bench_train.ratio([2.0, 9.0, 1.0], [1.0, 3.0, 4.0]) == 2.0


def test_an_official_step_has_no_more_than_one_attribute(toy, monkeypatch):
    """Three forward passes of 16 pictures each, and a triplet loss that moves the weights."""
    stepper, seen = toy.stepper("asen_v2", (48, 32, 20, 3)), []
    stepper.trainer.system.register_forward_hook(lambda _, x, y: seen.append((x[0].shape, y.attribute.requires_grad)))
    before = [weight.detach().clone() for weight in stepper.trainer.system.parameters()]
    stepper.official()
    assert seen == [((16, 3, 32, 32), True)] * 3
    assert any(not torch.equal(a, b) for a, b in zip(before, stepper.trainer.system.parameters(), strict=True))


def test_made_labels_have_a_long_tail_over_all_attributes(tmp_path):
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


def test_a_page_has_a_section_a_device():
    text = bench_train.page(pd.DataFrame([ROW, ROW | {"device": "B", "peak_mb": 512.4}]))
    assert [line for line in text.splitlines() if line.startswith("##")] == [
        "## A, resnet10t, bf16, 2024-05-01",
        "## B, resnet10t, bf16, 2024-05-01",
    ]
    assert "| 0.7 | 12.5 |  |" in text
    assert "| 0.7 | 12.5 | 512 |" in text


def test_a_record_takes_the_place_of_its_devices_and_sizes_alone(monkeypatch, tmp_path):
    rows = iter([ROW, ROW | {"device": "B"}, ROW | {"backbone": "resnet50"}, ROW | {"ratio": 0.8}])
    asked = []
    monkeypatch.setattr(bench_train.config, "find_root", lambda: tmp_path)
    monkeypatch.setattr(bench_train.Bench, "__init__", lambda *_: None)
    monkeypatch.setattr(
        bench_train.Bench, "run", lambda _, networks: asked.append(networks) or pd.DataFrame([next(rows)])
    )
    (tmp_path / "data" / "results").mkdir(parents=True)
    for _ in range(4):
        bench_train.main("default", "m3")
    kept = pd.read_csv(tmp_path / "data" / "results" / "training.csv")
    assert kept[["device", "backbone", "ratio"]].to_numpy().tolist() == [
        ["B", "resnet10t", 0.7],
        ["A", "resnet50", 0.7],
        ["A", "resnet10t", 0.8],
    ]
    assert asked == [("m3",)] * 4


def test_a_network_that_nothing_is_known_of_is_told():
    with pytest.raises(InputError, match=r"measures asen, .*, m3, got 'm33'$"):
        bench_train.main("published", "m33")
