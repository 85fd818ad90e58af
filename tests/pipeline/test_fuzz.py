"""Any bytes in a file that is read give its content or one sentence; a damaged file causes no other exception.

Tests of single readers: label files in tests/prepare, single settings in test_config, cells of a table in
test_labels.
"""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save

from downloads import EDITS, apply
from drawn import JPEG, Drawn, source
from m3lib import config
from m3lib.data import manifest, store
from m3lib.errors import InputError
from m3lib.pipeline import check_inputs
from m3lib.prepare import labels as labels_reader
from m3lib.prepare import pack, photos
from m3lib.prepare import table as table_reader
from m3lib.systems import backbone
from m3lib.training import checkpoint
from notebook_runs import PARAMS
from tiny import make_system

CHANGES = EDITS | st.binary(max_size=80)  # edits of a file, or its whole content


def examples(count: int) -> Callable:
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def changed(data: bytes, changes: object) -> bytes:
    return changes if isinstance(changes, bytes) else apply(data, changes)


@contextmanager
def damaged(path: Path, changes: object) -> Iterator[None]:
    """Change a file for a while. Restoring it creates a new file, since a test may have mapped the damaged one."""
    content = path.read_bytes()
    path.write_bytes(changed(content, changes))
    try:
        yield
    finally:
        path.unlink()
        path.write_bytes(content)


def read_or_refuse(read: Callable, *arguments: object) -> object | None:
    """Return what is read, or None after an InputError with a proper sentence; other exceptions fail the test."""
    try:
        return read(*arguments)
    except InputError as error:
        lines = str(error).split("\n")
    assert all(line.isprintable() and len(line) < 1300 for line in lines)
    return None


# settings and tables

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
scalars |= st.binary(max_size=4)
trees = st.recursive(scalars, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=5), t, max_size=3))
sections = st.sampled_from([*yaml.safe_load(PARAMS), "x"])
SNIPPETS = [b"!!int ''", b"!!timestamp x", b"&a [*a]", b"2024-99-99", b"{<<: 3}", b"!!binary '*'", b"1:2:3", b"? [a]"]


@examples(60)
@given(st.dictionaries(sections, trees, max_size=4) | trees)
def test_any_values_in_params_yaml(tmp_path, values):
    text = yaml.safe_dump(values, allow_unicode=True)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8", errors="replace")
    assert read_or_refuse(config.load, tmp_path / "params.yaml") is None


@examples(60)
@given(CHANGES | st.tuples(st.floats(0, 1), st.just(0), st.sampled_from(SNIPPETS)).map(lambda edit: [edit]))
def test_any_change_of_params_yaml(tmp_path, changes):
    (tmp_path / "params.yaml").write_bytes(changed(PARAMS.encode(), changes))
    loaded = read_or_refuse(config.load, tmp_path / "params.yaml")
    assert loaded is None or all(loaded.variant(name) for name in loaded.variants)


@examples(100)
@given(CHANGES, st.sampled_from([0.0, 1.0]))
def test_any_bytes_as_a_table(tiny_catalogue, changes, max_broken):
    path = tiny_catalogue.table.with_name("other.csv")
    path.write_bytes(changed(tiny_catalogue.table.read_bytes(), changes))
    columns = tiny_catalogue.set(table=str(path), attributes=[], max_broken=max_broken)
    table = read_or_refuse(table_reader.open_table, columns, 0.9)
    if table is not None:
        read_or_refuse(labels_reader.label, table, columns)


# prepared folders


keys = st.sampled_from(["attributes", "name", "classes", "multi", "relevance"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda t: st.lists(t, max_size=3) | st.dictionaries(keys, t, max_size=3),
)
json_files = json_values.map(lambda value: json.dumps(value).encode())


@examples(200)
@given(
    st.tuples(st.sampled_from(["taxonomy.json", "protocol.json", "manifest.parquet", "images.npy"]), CHANGES)
    | st.tuples(st.sampled_from(["taxonomy.json", "protocol.json"]), json_files)
)
@example(("taxonomy.json", b"[" * 2000))
def test_any_bytes_in_a_prepared_folder(prepared, damage):
    name, changes = damage
    with damaged(prepared / name, changes):
        data = read_or_refuse(manifest.open_prepared, prepared)
        if data is not None:
            assert data.labels.shape == (30, data.taxonomy.num_classes)
            assert data.images[:3].dtype == np.uint8


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory) -> Path:
    """A prepared folder with a store of 12 JPEGs."""
    folder, images = tmp_path_factory.mktemp("jpegs") / "prepared", source(12, Drawn(smooth=True))
    folder.mkdir()
    pack.pack(images, folder, JPEG, 1)
    images.taxonomy.save(folder / "taxonomy.json")
    images.manifest.to_parquet(folder / "manifest.parquet")
    (folder / "protocol.json").write_text('{"relevance": "pair"}')
    return folder


@examples(120)
@given(name=st.sampled_from([store.JPEGS, store.INDEX]), changes=CHANGES)
def test_any_bytes_in_a_store_of_jpegs(jpegs, name, changes):
    with damaged(jpegs / name, changes):
        data = read_or_refuse(manifest.open_prepared, jpegs)
        if data is not None:
            images = read_or_refuse(data.images.__getitem__, np.arange(12))
            assert images is None or images.shape == (12, 16, 20, 3)


def test_an_image_of_another_size_is_damage(tmp_path):
    images = [store.encode(np.zeros((*sides, 3), np.uint8), "jpeg") for sides in ((16, 20), (8, 8))]
    (tmp_path / store.JPEGS).write_bytes(b"".join(images))
    np.save(tmp_path / store.INDEX, np.cumsum([0, *map(len, images)]))
    data = store.open_store(tmp_path)
    assert data[0].shape == (16, 20, 3)
    with pytest.raises(InputError, match=r"image 1 of .* is damaged"):
        data[1]


# weights and checkpoints


@pytest.fixture(scope="module")
def weight_bytes() -> bytes:
    return save({name: value.contiguous() for name, value in make_system("m3").state_dict().items()})


@examples(25)
@given(changes=CHANGES)
def test_any_header_of_a_weight_file(tmp_path, weight_bytes, changes):
    """Only the header is changed: any bytes are valid numbers."""
    path, size = tmp_path / "w.safetensors", 8 + int.from_bytes(weight_bytes[:8], "little")
    rest = b"" if isinstance(changes, bytes) else weight_bytes[size:]
    path.write_bytes(changed(weight_bytes[:size], changes) + rest)
    read_or_refuse(check_inputs.weight_digest, str(path))
    with suppress(ValueError, OSError, SafetensorError):  # `create_trunk` makes a sentence of any error
        weights = backbone.read_trained_backbone(str(path))
        assert all(isinstance(value, torch.Tensor) for value in weights.values())
    assert checkpoint.read_history(path, "of another run") is None


# photos


def photo(kind: str) -> bytes:
    buffer, noise = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(buffer, kind, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"])
@examples(80)
@given(edits=EDITS, cut=st.floats(0.05, 1))
def test_any_change_of_a_photo(tmp_path, kind, edits, cut):
    data = apply(photo(kind), edits)
    (tmp_path / "photo").write_bytes(data[: int(cut * len(data)) + 1])
    image = read_or_refuse(photos.decode, tmp_path / "photo")
    if image is not None:
        assert image.dtype == np.uint8
        assert image.shape == (*image.shape[:2], 3)
