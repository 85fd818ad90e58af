"""Small and lopsided catalogues go through every notebook, and each notebook says what it could not measure."""

import json
import re

from lopsided import ROWS, Lopsided

GIVEN = {"csv": {"split_column": "split"}}


def nasty() -> list[dict[str, str]]:
    """Photos whose attributes are labelled too rarely, in one split only, or alike, and two without a label."""
    photos: list[dict[str, str]] = []
    for i in range(40):
        train, parity = i < 26, "ab"[i % 2]
        photo = {"split": "train" if train else "test", "category": ["dress", "shirt", "skirt"][i % 3]}
        if i > 33 and i % 3:
            photo["category"] = "only in test"
        if i in (3, 5):
            photo["category"] = "only in train" if i == 3 else "dress|only in train"
        if i < 10 or i in (26, 27):
            photo["two in test"] = parity
        if train and i % 2:
            photo["trained only"] = "ab"[i // 2 % 2]
        if i >= 30:
            photo["tested only"] = parity
        photo["many"] = f"class {i}" if i % 4 else "class 0"
        photo["alike"] = parity if train else "a"
        photos.append(photo)
    return [*photos, {"split": "train"}, {"split": "test"}]


def words(said: dict[str, str], *notebooks: str) -> str:
    return "\n".join(text for name, text in said.items() if name.startswith(notebooks))


def test_a_catalogue_with_many_gaps_goes_through_every_notebook(tmp_path, monkeypatch):
    said = Lopsided(tmp_path / "w", nasty(), **GIVEN).run(monkeypatch)
    for sentence in (
        "not trained, since no training image has a label: tested only",
        "nothing can be validated, so that each training keeps its last epoch",
        "all test candidates share the class, so every ranking scores 100 %: alike",
        "category: only in test",
    ):
        assert sentence in said["01_prepare"]
    not_evaluated = re.findall(r"not evaluated, since .*: (.*)", said["01_prepare"])
    assert {"trained only", "two in test"} <= set(", ".join(not_evaluated).split(", "))
    for name in ("03_evaluate-asen", "05_report"):
        assert re.findall(r"not evaluated, since .*: (.*)", said[name]) == not_evaluated
    assert "asen_triplet can't learn anything about tested only" in said["02_train-asen"]
    assert "can't learn" not in said["02_train-classifier"]
    for row in ROWS:
        assert f"{row} keeps its last epoch, " in said[f"02_train-{row}"]
    for name, count in (("03_evaluate-asen", 5), ("05_report", 4)):  # every table of levels
        tables = [table for table in said[name].split("</table>") if re.search(r"<t[hd][^>]*>(random|floor)<", table)]
        assert len(tables) == count
    assert "nan" not in re.sub("<[^>]*>", "", words(said, "02", "03", "05")).lower()
    assert "Not measured for m3" in said["04_umap-m3"]
    assert "neighbours predicts" not in words(said, "04")
    metrics = json.loads((tmp_path / "w" / "data" / "metrics" / "m3.json").read_text())
    by_attribute = metrics["test"]["weighted"]["map_all"]["attributes"]
    assert by_attribute["trained only"] is by_attribute["two in test"] is None
    assert by_attribute["alike"] == 1
    assert metrics["valid"]["weighted"]["map_all"]["overall_by_query"] is None
    assert "random ranking (query images: " in said["01_prepare"]
    assert re.search(r"takes [\d,]+( to [\d,]+)? bytes", said["07_index"])
    assert "42 images can be searched by category, two in test, " in said["07_index"]


def test_a_catalogue_on_which_nothing_can_be_learned_or_measured_goes_through(tmp_path, monkeypatch):
    """One photo per class in train, and other classes in test."""
    photos = [{"split": "train" if i < 8 else "test", "class": f"{i:02}"} for i in range(24)]
    rows = ["asen", "m3"]
    given = {"csv": {"split_column": "split", "attributes": ["class"]}}  # not inferred: its values number the rows
    catalogue = Lopsided(tmp_path / "w", photos, **given, variants=rows)
    said = catalogue.run(monkeypatch, rows=rows)
    assert "classes without a training image (16): class: 08, " in said["01_prepare"]
    assert "Nothing can be measured on the test images." in said["01_prepare"]
    assert "keeps the weights that it started with" in said["02_train-asen"]
    assert "m3 can't be measured: no test query has a relevant candidate." in said["03_evaluate-m3"]
    assert said["05_report"].count("No system can be measured") == 1
    assert "No system can be measured: no test query has a relevant candidate." in said["05_report"]
