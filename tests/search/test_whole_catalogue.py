"""What README promises of the index: it holds every photo, labelled or not; each is found by name and by class."""

import json

import numpy as np
import pytest
from matplotlib import pyplot as plt
from safetensors.torch import save_file

from catalogues import build_index, noise_images
from m3lib import config, systems
from m3lib.data.manifest import Prepared, Source, open_prepared, save
from tiny import MODEL, ROOT, TAXONOMY, VALUES

ROLES = [("train", ""), ("valid", "query"), ("valid", "candidate"), ("test", "query"), ("test", "candidate"),
         ("none", "unlabelled"), ("none", "rare")]  # fmt: skip


def catalogue(size: int, test_labels: bool = True) -> Prepared:
    """Photos of every split and role in turn; those of the split none have no label."""
    prepared = noise_images(size)
    frame = prepared.manifest
    frame["split"], frame["role"] = zip(*(ROLES[i % 7] for i in range(size)), strict=True)
    bare = (frame["split"] == "none") | ((frame["split"] == "test") & (not test_labels))
    frame["labels"] = [[] if empty else [0, 3 + i % 4, 7] for i, empty in enumerate(bare)]
    return prepared


def test_the_index_holds_every_readable_photo_and_finds_each_by_name_and_by_photo(tmp_path):
    text = " ".join((ROOT / "README.md").read_text().split())
    assert "The stage `index` builds a searchable index of every readable photo, labelled or not:" in text
    prepared = catalogue(14)
    index = build_index(tmp_path, prepared, "m3", "concat")  # with this score a photo is most similar to itself
    assert index.images == prepared.manifest["image"].tolist()
    for row, name in enumerate(index.images):
        matches = index.search(name, "colour", k=14)
        assert index.search(row, "colour", k=14) == matches
        scores = {match.path: match.score for match in matches}
        assert len(scores) == 14
        assert scores[name] == pytest.approx(matches[0].score, abs=2e-3)  # up to half precision
    photo = index.search(prepared.images[5], "colour", k=14)
    by_name = {match.path: match.score for match in index.search("005.jpg", "colour", k=14)}
    assert {match.path: match.score for match in photo} == pytest.approx(by_name, abs=4e-3)
    index.check(prepared)


@pytest.mark.parametrize("network", ["m3", "classifier"])
def test_unlabelled_and_rare_photos_are_found_by_class(tmp_path, network):
    prepared = catalogue(14)
    index = build_index(tmp_path, prepared, network)
    found = index.search(5, "details", "hood", k=14)
    assert sorted(match.row for match in found) == list(range(14))
    assert {prepared.manifest["role"][match.row] for match in found} >= {"unlabelled", "rare"}
    assert {match.class_ for match in found} == {"hood"}


def run_notebook(folder, prepared: Prepared, monkeypatch, capsys) -> str:
    """Run the cells of 07_index on a prepared set, with a model of random weights; return what it prints last."""
    data = folder / "data"
    (data / "prepared").mkdir(parents=True)
    (data / "models").mkdir()
    save(Source(TAXONOMY, prepared.manifest, prepared.images.__getitem__), data / "prepared")
    np.save(data / "prepared" / "images.npy", prepared.images)
    index = VALUES["index"] | {"variant": "m3"}
    (folder / "params.yaml").write_text(json.dumps(VALUES | {"model": VALUES["model"] | MODEL, "index": index}))
    (folder / "dvc.yaml").touch()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(config, "find_root", lambda *_: folder)
    system = systems.build(config.load(folder / "params.yaml").variant("m3"), TAXONOMY)
    save_file(system.state_dict(), data / "models" / "m3.safetensors")
    assert len(open_prepared(data / "prepared").images) == len(prepared.images)
    scope: dict = {}
    for cell in json.loads((ROOT / "notebooks" / "07_index.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), scope)
    plt.close("all")
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "test_labels", "counts"),
    [
        (14, True, "10 labelled, 2 unlabelled, 2 with rare classes only"),
        (7, False, "5 labelled, 1 unlabelled, 1 with rare classes only"),  # no test query has a label
        (7, True, "5 labelled, 1 unlabelled, 1 with rare classes only"),
    ],
)
def test_07_index_counts_the_photos_and_needs_no_labelled_query(
    tmp_path, monkeypatch, capsys, size, test_labels, counts
):
    if not test_labels:
        monkeypatch.setattr("m3lib.data.manifest.check_source", lambda source: None)
    text = run_notebook(tmp_path, catalogue(size, test_labels), monkeypatch, capsys)
    assert counts in text
    assert f"{size} images can be searched by " in text
