"""Building an index: which images it holds, and how it replaces another one."""

import numpy as np
import pytest

from catalogues import build_index, noise_images
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.search import build, index_files
from m3lib.search.index import Index
from tiny import TAXONOMY

PREPARED = noise_images()
ITEMS = len(PREPARED.images)


@pytest.mark.parametrize("images", ["all", "test"])
def test_the_catalogue_is_all_or_the_test_images(tmp_path, images):
    index = build_index(tmp_path, PREPARED, "classifier", gallery=images)
    rows = range(ITEMS) if images == "all" else PREPARED.rows("test").tolist()
    assert index.catalogue.rows.tolist() == list(rows)
    assert index.images == PREPARED.manifest["image"].iloc[list(rows)].tolist()
    assert {match.row for match in index.search(index.images[0], "colour", k=len(index))} == set(rows)


def test_an_index_replaces_another_one_only_when_it_is_complete(tmp_path, monkeypatch):
    folder = build_index(tmp_path, PREPARED, "classifier").folder
    before = (folder / "index.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(index_files, "write_manifest", None)
        with pytest.raises(TypeError):
            build_index(tmp_path, noise_images(seed=1), "classifier")
    assert (folder / "index.json").read_bytes() == before
    Index.open(folder)
    assert len(build_index(tmp_path, noise_images(30), "classifier")) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier.safetensors", "index"]


def test_an_empty_catalogue_is_refused(tmp_path):
    prepared = Prepared(TAXONOMY, PREPARED.manifest.assign(split="train"), PREPARED.images)
    with pytest.raises(InputError, match=r"no image to index: the catalogue is empty \(params\.yaml, index\.gallery\)"):
        build_index(tmp_path, prepared, "classifier", gallery="test")


def test_embeddings_are_checked_before_they_are_indexed(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CHECK_BLOCK", 16)
    embed = build.inference.embed_to_file

    def spoil(path, system, *rest):
        embed(path, system, *rest)
        embeddings = build.index_files.Embeddings.load(path)
        embeddings.posterior[33] = np.nan
        embeddings.save(path)

    monkeypatch.setattr(build.inference, "embed_to_file", spoil)
    with pytest.raises(InputError, match=r"embedding \(posterior\) of '033\.jpg' holds NaN"):
        build_index(tmp_path, PREPARED)
