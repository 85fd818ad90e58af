"""The bench of the engines at a small size: its rows, its counts, and its page."""

from catalogues import random_embeddings
from tests.bench import engines
from tiny import TAXONOMY


def test_both_engines_are_asked_and_loaded(monkeypatch):
    real = random_embeddings(200, d=12).of_attribute(1, TAXONOMY)
    taxonomy = type(TAXONOMY)((TAXONOMY.attributes[1],))
    monkeypatch.setattr(engines, "read", lambda *_: (real, taxonomy))
    monkeypatch.setattr(
        engines, "in_new_process", lambda f, *a: {"result": getattr(engines, f.split(".")[1])(*a), "peak GB": 0.1}
    )
    monkeypatch.setattr(engines, "KILLS", 1)
    monkeypatch.setattr(engines, "QUERIES", 20)
    monkeypatch.setattr(engines, "WARM_UP", 1)
    results: list = []
    monkeypatch.setattr(engines, "save", results.append)
    assert engines.main((3000,), 1.0) == 0
    (table,) = results
    asked = table[table["what"] == "search"]
    assert asked["engine"].tolist() == ["faiss", "faiss", "lancedb", "lancedb", "lancedb"]
    assert (asked["recall_100"] > 0.99).all()
    load, kill = (table[table["what"] == what].iloc[0] for what in ("load", "kill"))
    assert load["inserts"] > 0
    assert load["queries"] > 0
    assert load["lost"] == kill["lost"] == 0
    assert kill["acknowledged"] > 0
    text = engines.page(table)
    assert f"{int(load['inserts'])} inserts" in text
    assert "0 of them lost" in text
