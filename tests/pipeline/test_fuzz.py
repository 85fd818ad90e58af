"""Any bytes where a file is read give what was there, or one sentence; nothing else comes out of a damaged file.

Label files have their own: test_released, test_deepfashion_bytes, test_fashionai, test_darn; values of params.yaml
test_config; cells of a CSV table test_sources.
"""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from test_rubbish import prepared

from downloads import EDITS, apply
from drawn import Drawn, source
from m3lib import config
from m3lib.data import manifest, store
from m3lib.errors import InputError
from m3lib.pipeline import check_inputs
from m3lib.prepare import catalogue, pack, photos
from m3lib.systems import backbone
from m3lib.taxonomy import Taxonomy
from m3lib.training.trainer import Trainer
from tiny import BACKBONE, ROOT, make_system

__all__ = ["prepared"]  # a fixture of another file
PARAMS = (ROOT / "params.yaml").read_bytes()
FIXTURE = [HealthCheck.function_scoped_fixture]
BYTES = st.binary(max_size=80)


def few(count: int) -> Callable:
    return settings(max_examples=count, deadline=None, suppress_health_check=FIXTURE)


def spoilt(data: bytes, edits: object) -> bytes:
    return edits if isinstance(edits, bytes) else apply(data, edits)


@contextmanager
def damaged(path: Path, edits: object) -> Iterator[None]:
    """A file with other bytes for a while; the one that a test has mapped is left as it is, and a new one put back."""
    content = path.read_bytes()
    path.write_bytes(spoilt(content, edits))
    try:
        yield
    finally:
        path.unlink()
        path.write_bytes(content)


def tried(read: Callable, *given_: object) -> object | None:
    """What is read, or None after one sentence; any other exception is a fault."""
    try:
        return read(*given_)
    except InputError as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) < 1300
    return None


# settings

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=4)
)
trees = st.recursive(leaves, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=5), t, max_size=3))
keys = st.sampled_from([*yaml.safe_load(PARAMS), "x"])
SNIPPETS = [
    b"!!int ''",
    b"!!timestamp x",
    b"&a [*a]",
    b"2024-99-99",
    b"{<<: 3}",
    b"!!binary '*'",
    b"1:2:3",
    b"0b",
    b"? [a]",
]


@few(60)
@given(st.dictionaries(keys, trees, max_size=4) | trees)
def test_any_tree_for_params_yaml(tmp_path, tree):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="replace")
    assert tried(config.load, tmp_path / "params.yaml") is None


@few(60)
@given(EDITS | BYTES | st.tuples(st.floats(0, 1), st.just(0), st.sampled_from(SNIPPETS)).map(lambda edit: [edit]))
def test_any_edit_of_params_yaml(tmp_path, edits):
    (tmp_path / "params.yaml").write_bytes(spoilt(PARAMS, edits))
    found = tried(config.load, tmp_path / "params.yaml")
    assert found is None or all(found.variant(name) for name in found.variants)


# tables


@few(100)
@given(EDITS | BYTES)
def test_any_bytes_for_a_table(tiny_catalogue, edits):
    content = tiny_catalogue.table.read_bytes()
    other = tiny_catalogue.table.with_name("other.csv")
    other.write_bytes(spoilt(content, edits))
    found = tried(catalogue.read_table, other)
    if found is not None:
        settings_ = tiny_catalogue.set(attributes=[])
        attributes = tried(catalogue.choose_attributes, found, settings_)
        if attributes:
            tried(catalogue.label, found, attributes, settings_)


# prepared folders

PARTS = ["taxonomy.json", "protocol.json", "manifest.parquet", "images.npy"]


@few(120)
@given(name=st.sampled_from(PARTS), edits=EDITS | BYTES)
@example(name="taxonomy.json", edits=b"[" * 2000)
def test_any_bytes_in_a_prepared_folder(prepared, name, edits):
    with damaged(prepared / name, edits):
        found = tried(manifest.open_prepared, prepared)
        if found is not None:
            assert found.labels.shape == (30, found.taxonomy.num_classes)
            assert found.images[:3].dtype == np.uint8


json_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda t: st.lists(t, max_size=3) | st.dictionaries(st.sampled_from(["attributes", "name", "classes", "multi"]), t),
)


@few(80)
@given(json_trees)
def test_any_json_for_a_taxonomy(prepared, tree):
    content = (prepared / "taxonomy.json").read_bytes()
    (prepared / "taxonomy.json").write_text(json.dumps(tree))
    tried(manifest.open_prepared, prepared)
    (prepared / "taxonomy.json").write_bytes(content)
    assert isinstance(Taxonomy.load(prepared / "taxonomy.json"), Taxonomy)


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("jpegs") / "prepared"
    folder.mkdir()
    given_ = source(12, Drawn(smooth=True))
    pack.pack(given_, folder, config.Images(16, 20, "crop", "jpeg", 0.0), 1)
    given_.taxonomy.save(folder / "taxonomy.json")
    given_.manifest.to_parquet(folder / "manifest.parquet")
    (folder / "protocol.json").write_text('{"relevance": "pair"}')
    return folder


@few(120)
@given(name=st.sampled_from([store.JPEGS, store.INDEX]), edits=EDITS | BYTES)
def test_any_bytes_in_a_store_of_jpegs(jpegs, name, edits):
    with damaged(jpegs / name, edits):
        found = tried(manifest.open_prepared, jpegs)
        if found is not None:
            pictures = tried(found.images.__getitem__, np.arange(12))
            assert pictures is None or pictures.shape == (12, 16, 20, 3)


def test_a_picture_of_another_size_is_damage(tmp_path):
    pictures = [store.encode(np.zeros((*sides, 3), np.uint8), "jpeg") for sides in ((16, 20), (8, 8))]
    (tmp_path / store.JPEGS).write_bytes(b"".join(pictures))
    np.save(tmp_path / store.INDEX, np.cumsum([0, *map(len, pictures)]))
    found = store.open_store(tmp_path)
    assert found[0].shape == (16, 20, 3)
    with pytest.raises(InputError, match=r"image 1 of .* is damaged"):
        found[1]


# weights and checkpoints


@pytest.fixture(scope="module")
def weight_bytes() -> bytes:
    return save({name: value.contiguous() for name, value in make_system("m3").state_dict().items()})


def near_the_start(data: bytes, edits: object) -> bytes:
    """Most of a weight file is numbers, of which any is as good as another: edits go into the header."""
    size = 8 + int.from_bytes(data[:8], "little")
    return edits if isinstance(edits, bytes) else apply(data[:size], edits) + data[size:]


@few(25)
@given(edits=EDITS | BYTES)
def test_any_bytes_for_weights(tmp_path, weight_bytes, edits):
    path = tmp_path / "w.safetensors"
    path.write_bytes(near_the_start(weight_bytes, edits))
    assert check_inputs.is_safetensors(path) in (True, False)
    found = tried(backbone.read_trained_backbone, str(path))
    assert found is None or all(isinstance(value, torch.Tensor) for value in found.values())


def test_weights_that_do_not_fit_are_one_sentence(tmp_path, weight_bytes):
    path = tmp_path / "w.safetensors"
    for old, new in [(b"conv1.0.weight", b"conv1.9.weight"), (b'"F32"', b'"I32"'), (b'"F32"', b'"U99"')]:
        path.write_bytes(weight_bytes.replace(old, new, 1))
        tried(backbone.create_trunk, "resnet10t", BACKBONE, False, str(path))


@few(25)
@given(edits=EDITS | BYTES)
def test_any_bytes_for_a_checkpoint_of_another_run(tmp_path, weight_bytes, edits):
    path = tmp_path / "c.safetensors"
    path.write_bytes(near_the_start(weight_bytes, edits))
    assert not Trainer.resume(None, path, "print")  # before it touches the trainer


# pictures


def photo(kind: str) -> bytes:
    buffer, noise = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(buffer, kind, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"])
@few(80)
@given(edits=EDITS, cut=st.floats(0.05, 1))
def test_any_edit_of_a_photo(tmp_path, kind, edits, cut):
    data = apply(photo(kind), edits)
    (tmp_path / "photo").write_bytes(data[: int(cut * len(data)) + 1])
    found = tried(photos.decode, tmp_path / "photo")
    if found is not None:
        assert found.dtype == np.uint8
        assert found.ndim == 3
        assert found.shape[2] == 3
