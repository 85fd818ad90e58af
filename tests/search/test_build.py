"""Building an index folder: its images, its files, equal bytes, and what is refused."""

import numpy as np
import pytest
import torch

from catalogues import build_index, noise_images
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.retrieval.embeddings import KINDS
from m3lib.search.index import load_system
from m3lib.training import inference
from tiny import TAXONOMY, make_variant

PREPARED = noise_images()
ITEMS = len(PREPARED.images)


@pytest.mark.parametrize("images", ["all", "test"])
def test_the_catalogue_is_all_or_the_test_images(tmp_path, images):
    index = build_index(tmp_path, PREPARED, images=images)
    rows = np.arange(ITEMS) if images == "all" else PREPARED.rows("test")
    assert index.rows.tolist() == rows.tolist()
    assert index.images == PREPARED.manifest["image"].iloc[rows].tolist()
    computed = inference.embed(index.system, PREPARED, rows, "fp32")
    for kind in KINDS:
        assert torch.equal(getattr(index.engine.catalogue.embeddings, kind), getattr(computed, kind))


@pytest.mark.parametrize("kind", ["exact", "compressed"])
def test_an_index_is_replaced_and_equal_settings_give_equal_bytes(tmp_path, kind):
    folders = [build_index(tmp_path / name, PREPARED, kind=kind).folder for name in ("a", "b")]
    assert len(build_index(tmp_path / "b", noise_images(30), "asen", kind=kind)) == 30
    build_index(tmp_path / "b", PREPARED, kind=kind)
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == sorted([
        "0.faiss", "1.faiss", "2.faiss", "embeddings.safetensors", "images.parquet", "index.json",
        "model.safetensors", "taxonomy.json",
    ])  # fmt: skip
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_an_empty_catalogue_and_the_model_of_another_network_are_refused(tmp_path):
    no_test_images = Prepared(TAXONOMY, PREPARED.manifest.assign(split="train"), PREPARED.images)
    with pytest.raises(InputError, match=r"no image to index: the catalogue is empty \(params\.yaml, index\.images\)"):
        build_index(tmp_path, no_test_images, "asen", images="test")
    for name in ("asen", "missing"):
        with pytest.raises(InputError, match=rf"{name}\.safetensors doesn't hold the weights of m3; run `dvc repro t"):
            load_system(make_variant("m3"), TAXONOMY, tmp_path / f"{name}.safetensors")
