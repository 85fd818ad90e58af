"""The index folder: its files, equal bytes, and one sentence for what is missing, cut, damaged or of another format."""

import json
import shutil

import faiss
import numpy as np
import pytest
import torch

from catalogues import build_index, noise_images, random_embeddings
from m3lib.errors import InputError
from m3lib.retrieval.embeddings import KINDS
from m3lib.search import index_files, vector_index
from m3lib.search.index import Index
from m3lib.training import inference
from tiny import TAXONOMY

PREPARED = noise_images()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return build_index(tmp_path_factory.mktemp("index"), PREPARED)


@pytest.mark.parametrize("kind", ["exact", "compressed"])
def test_equal_settings_give_equal_bytes(tmp_path, kind):
    folders = [build_index(tmp_path / name, PREPARED, kind=kind).folder for name in ("a", "b")]
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == sorted([
        "0.faiss", "1.faiss", "2.faiss", "embeddings.safetensors", "images.parquet", "index.json",
        "model.safetensors", "taxonomy.json",
    ])  # fmt: skip
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    exact = [vector_index.is_exact(faiss.read_index(str(folders[0] / f"{n}.faiss"))) for n in range(3)]
    assert exact == [kind == "exact"] * 3


def test_the_catalogue_holds_the_embeddings_of_the_network(index):
    items = np.array([9, 2, 33])
    expected = inference.embed(index.system, PREPARED, np.arange(len(PREPARED.images)), "fp32").take(items)
    for n in range(3):
        stored, computed = index.catalogue.for_attribute(items, n), expected.of_attribute(n, TAXONOMY)
        for kind in KINDS:
            torch.testing.assert_close(getattr(stored, kind), getattr(computed, kind), atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused(kind, value):
    embeddings = random_embeddings(30)
    getattr(embeddings, kind)[17, 2] = value
    with pytest.raises(InputError, match=rf"embedding \({kind}\) of '17\.jpg' holds NaN or infinite values"):
        index_files.check_finite(embeddings, [f"{i}.jpg" for i in range(30)])


def edit_manifest(folder, **changes):
    content = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(content | changes))


def fill(folder, name):
    """Replace the content of a file by as many zeros."""
    (folder / name).write_bytes(bytes((folder / name).stat().st_size))


DAMAGES = [
    (lambda folder: shutil.rmtree(folder), r"no search index in .*: run `dvc repro index`"),
    (lambda folder: (folder / "index.json").unlink(), r"no search index in .*: run `dvc repro index`"),
    (lambda folder: (folder / "index.json").write_text("{"), r"index\.json is damaged .*; run `dvc repro index`"),
    (lambda folder: (folder / "index.json").write_text("[]"), r"index\.json is damaged"),
    (lambda folder: edit_manifest(folder, format=1), r"has format 1, but m3lib reads 2; run `dvc repro index`"),
    (lambda folder: edit_manifest(folder, variant={}), r"index\.json is damaged"),
    (lambda folder: edit_manifest(folder, images={"height": 3}), r"there is no such setting|is missing|must lie"),
    (lambda folder: (folder / "1.faiss").write_bytes(b"cut"), r"lacks 1\.faiss or a part of it: copy the whole"),
    (lambda folder: (folder / "images.parquet").unlink(), r"lacks images\.parquet or"),
    (lambda folder: fill(folder, "images.parquet"), r"can't be read as a search index [^;]*; run `dvc repro"),
    (lambda folder: fill(folder, "embeddings.safetensors"), r"can't be read as a search index [^;]*; run `dvc repro"),
    (lambda folder: fill(folder, "taxonomy.json"), r"can't be read as a search index [^;]*; run `dvc repro"),
    (lambda folder: fill(folder, "model.safetensors"), r"model\.safetensors doesn't hold the weights of m3"),
    (lambda folder: fill(folder, "0.faiss"), r"0\.faiss can't be read .*; run `dvc repro index`"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES)
def test_a_damaged_folder_is_reported_in_one_sentence(index, tmp_path, damage, sentence):
    shutil.copytree(index.folder, tmp_path / "index")
    damage(tmp_path / "index")
    with pytest.raises(InputError, match=sentence):
        Index.open(tmp_path / "index").search("000.jpg", "colour")


def test_the_model_of_another_network_is_refused(index, tmp_path):
    build_index(tmp_path, PREPARED, "asen")
    path = tmp_path / "asen.safetensors"
    with pytest.raises(InputError, match=r"asen\.safetensors doesn't hold the weights of m3 .*; run `dvc repro train`"):
        index_files.load_system(index.variant, TAXONOMY, path)
