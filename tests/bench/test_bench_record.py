"""The record appends one finished run at a time and skips what its table holds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from m3lib.analysis import tables
from tests.bench import record, sets
from tiny import SETTINGS, TAXONOMY, make_prepared, make_variant, random_labels

ROWS = ("asen", "m3")


LR = {"asen": 0.01, "m3": 0.01}


class Tiny:
    """Settings whose rows are tiny."""

    def __init__(self, seed: int):
        self.seed, self.threads = seed, 1

    def __getattr__(self, name):
        return getattr(SETTINGS, name)

    def variant(self, name):
        return make_variant(name, epochs=1, batch=16, lr=LR[name])


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A workspace with 60 images, two rows and two seeds."""
    (tmp_path / "data" / "results").mkdir(parents=True)
    parts = [("train", "")] * 30 + [("valid", "query"), ("valid", "candidate")] * 5 + [("test", "both")] * 20
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (60, 32, 32, 3), dtype=np.uint8)
    prepared = make_prepared(random_labels("multi", 60, rng), parts, images)
    monkeypatch.setattr(record, "open_set", lambda name, seed: (Tiny(seed), prepared, tmp_path))
    monkeypatch.setattr(record, "settings_of", lambda name, seed: Tiny(seed))
    monkeypatch.setattr(record, "ROWS", ROWS)
    monkeypatch.setattr(record, "SEEDS", 2)
    monkeypatch.setattr(record, "SEEDS_OF", {})
    monkeypatch.setattr(record.config, "find_root", lambda: tmp_path)
    return tmp_path / "data" / "results" / "mine.csv"


def test_a_stopped_record_goes_on_where_it_stopped(tiny, monkeypatch):
    measure, calls = record.measure, []

    def stopping(settings, prepared, name, work):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append((settings.seed, name))
        return measure(settings, prepared, name, work)

    monkeypatch.setattr(record, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        record.main("mine")
    assert calls == [(0, "asen"), (0, "m3"), (1, "asen")]
    before = tiny.read_text()
    monkeypatch.setattr(record, "measure", measure)
    record.main("mine")
    assert tiny.read_text().startswith(before)
    table = pd.read_csv(tiny, keep_default_na=False)
    runs = table.query("own and metric == 'MAP@all' and attribute == '' and split == 'test'")
    assert sorted(zip(runs["seed"], runs["variant"], strict=True)) == [
        (seed, name) for seed in (0, 1) for name in ("asen", "m3", "random")
    ]
    assert set(table["settings"]) == {""}
    levels = tables.by_run(table, tables.FINE)
    assert levels.shape == (2, 3)
    assert levels.notna().all(axis=None)
    assert len(table[table["metric"] == f"{tables.SPACE}advantage"]) == 2 * TAXONOMY.num_attributes


def test_a_row_is_recorded_again_when_its_settings_change(tiny, monkeypatch, capsys):
    monkeypatch.setattr(record, "SEEDS", 1)
    record.main("mine")
    before = pd.read_csv(tiny, keep_default_na=False)
    monkeypatch.setitem(LR, "m3", 0.02)
    capsys.readouterr()
    record.main("mine")
    assert "mine 0 again, for their settings changed: m3" in capsys.readouterr().out
    after = pd.read_csv(tiny, keep_default_na=False)
    asen = [table[table["variant"] != "m3"].reset_index(drop=True) for table in (before, after)]
    assert asen[0].equals(asen[1])
    assert len(after) == len(before)
    assert set(after["digest"]) != set(before["digest"])
    monkeypatch.setattr(record, "data_settings", lambda settings: "other images")
    record.main("mine")
    assert not set(pd.read_csv(tiny, keep_default_na=False)["digest"]) & set(
        after["digest"]
    )  # the random ranking's too


def test_a_set_changes_only_what_it_lists():
    multi, street, unseen = (sets.settings_of(name, 3) for name in ("multi", "street", "unseen"))
    assert (multi.wardrobe.seed, multi.seed, multi.threads) == (3, 3, 1)
    assert replace(multi, seed=0, threads=2, accelerator="auto").model == SETTINGS.model
    assert (street.split.seed, street.split.query, street.source) == (3, 1, "csv")
    assert unseen.variant("m3").train.held_out == unseen.variant("asen_v2_contrast").train.held_out == sets.LEFT_OUT


def test_a_table_is_in_the_order_of_seeds_and_rows_whenever_a_row_was_recorded(tmp_path):
    lines = [(1, "random"), (1, "m3"), (0, "duet"), (0, "m3"), (0, "random")]
    table = pd.DataFrame(lines, columns=["seed", "variant"])
    record.write(tmp_path / "street.csv", table)
    expected = [(0, "random"), (0, "m3"), (0, "duet"), (1, "random"), (1, "m3")]
    assert list(pd.read_csv(tmp_path / "street.csv").itertuples(index=False, name=None)) == expected
