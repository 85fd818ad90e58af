"""Bad input, read as the pipeline reads it: one clear sentence, and nothing is written.

The tests of a package cover the files that it reads: test_config (settings), test_table (tables), test_photos,
test_manifest, and those of the public benchmarks (label files). Here are unusual and hostile ones.
"""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from m3lib import config
from m3lib.data import manifest
from m3lib.errors import InputError
from m3lib.pipeline import check_inputs
from m3lib.prepare import catalogue, pack
from m3lib.systems import backbone
from notebook_runs import CSV_PARAMS, check_sentence, listing
from tiny import BACKBONE, make_system

Case = tuple[Callable[[Path], object], list[str]]  # what damages a folder or a file, words of the sentence

# params.yaml and its files, read by the first stage


@pytest.fixture
def repository(tiny_catalogue, monkeypatch) -> Path:
    """A repository whose params.yaml names a small catalogue. It has a list of backbones: importing timm is slow."""
    folder = tiny_catalogue.table.parent
    (folder / "dvc.yaml").touch()
    (folder / "params.yaml").write_text(CSV_PARAMS)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(config, "__file__", str(folder / "m3lib" / "config.py"))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (folder / "data" / "work").mkdir(parents=True)
    (folder / "data" / "work" / "backbones.txt").write_text("tf_efficientnet_lite0\nresnet50\n")
    return folder


def params(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "params.yaml").write_bytes(data)


def setting(old: str, new: str) -> Callable[[Path], None]:
    """Change params.yaml by its text."""
    assert old in CSV_PARAMS
    return params(CSV_PARAMS.replace(old, new, 1).encode())


def weights(create: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda folder: (
        create(folder / "w.safetensors"),
        setting("  weights: ''", "  weights: w.safetensors")(folder),
    )


def large_cell(folder: Path) -> None:
    (folder / "table.csv").write_bytes((folder / "table.csv").read_bytes().replace(b"red", b"r" * 10**6, 1))


def unreadable_cache(folder: Path) -> None:
    (folder / "data" / "work" / "backbones.txt").write_bytes(b"\xff\xfe")
    setting("backbone: tf_efficientnet_lite0", "backbone: resnet5O")(folder)


LAUGHS = b"a: &a [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(11)
)  # 9 to the 12th words if the aliases were expanded
FIRST_STAGE: dict[str, Case] = {
    "folder": (lambda f: ((f / "params.yaml").unlink(), (f / "params.yaml").mkdir()), ["params.yaml", "directory"]),
    "two documents": (params(b"seed: 0\n---\nseed: 1\n"), ["params.yaml, line 2", "single document"]),
    "impossible date": (params(b"seed: 2024-99-99\n"), ["params.yaml", "month must be in 1..12"]),
    "empty integer": (params(b"seed: !!int ''\n"), ["params.yaml can't be read"]),
    "deep nesting": (params(b"[" * 5000), ["params.yaml can't be read", "RecursionError"]),
    "exponential aliases": (params(LAUGHS), ["params.yaml, line 2", "an alias", "use `like: <row>` instead"]),
    "list that contains itself": (setting("seed: 0", "seed: &s [*s]"), ["params.yaml, line", "an alias"]),
    "key of two lines": (setting("seed: 0", 'seed: 0\n"a\\nb": 1'), [r"params.yaml, a\nb: there is no such setting"]),
    "10,000 digits": (setting("seed: 0", "seed: " + "9" * 10_000), ["params.yaml can't be read", "ValueError"]),
    "surrogate character": (setting("table: table.csv", r'table: "\ud800.csv"'), ["params.yaml, csv.table"]),
    "right-to-left override": (setting("backbone: tf_efficientnet_lite0", r'backbone: "a\u202eb"'), ["model.backbone"]),
    "unknown user": (setting("table: table.csv", "table: ~nobody-here/t.csv"), ["~nobody-here/t.csv", "csv.table"]),
    "row that is a command": (setting("  m3_no_refine: {", "  'm3; touch x': {"), ["'m3; touch x' can't name a row"]),
    "row that is a path": (setting("  m3_no_refine: {", "  ../m3: {"), ["systems: '../m3' can't name a row"]),
    "row that is an option": (setting("  m3_no_refine: {", "  --force: {"), ["systems: '--force' can't name a row"]),
    "several faults": (setting("seed: 0", "seed: -1\nsed: 1"), ["has 2 faults:", "\n  seed: ", "\n  sed: "]),
    "cell of a megabyte": (large_cell, ["table.csv, line 2", "field limit"]),
    "folder of weights": (weights(Path.mkdir), ["model.weights", "w.safetensors"]),
    "empty weights": (weights(Path.touch), ["model.weights", "w.safetensors is not a safetensors file"]),
    "Git LFS pointer": (weights(lambda w: w.write_text("version https://git-lfs\n")), ["is not a safetensors file"]),
    "renamed pickle": (weights(lambda w: w.write_bytes(pickle.dumps({"a": 1}))), ["is not a safetensors file"]),
    "unreadable list of backbones": (unreadable_cache, ["unknown backbone", "resnet5O"]),
}


@pytest.mark.parametrize("case", FIRST_STAGE)
def test_the_first_stage_prints_the_faults_and_writes_nothing(repository, capsys, case):
    damage, words = FIRST_STAGE[case]
    damage(repository)
    before = listing(repository)
    assert check_inputs.main() == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    check_sentence(message.strip(), words)
    after = listing(repository)
    if damage is unreadable_cache:  # renewed
        cache = str(Path("data", "work", "backbones.txt"))
        after.pop(cache), before.pop(cache)
    assert after == before


def test_a_damaged_inputs_json_is_replaced(repository):
    (repository / "data" / "inputs.json").write_bytes(b"\xff\xfe not json")
    assert check_inputs.main() == 0
    assert json.loads((repository / "data" / "inputs.json").read_bytes())["rows"] == 60


def test_a_folder_with_links_to_itself_is_read_once(repository):
    for name in ("loop", "again"):  # would lead to 2 to the 40th folders
        (repository / "photos" / name).symlink_to(repository)
    assert len([path for path in check_inputs.walk(repository / "photos") if path.suffix == ".jpg"]) == 60


# photos, read by 01_prepare


def link(target: str) -> Callable[[Path], None]:
    return lambda photo: (photo.unlink(), photo.symlink_to(target))


def content(data: bytes) -> Callable[[Path], None]:
    return lambda photo: photo.write_bytes(data)


def prepare_photos(source: object, folder: Path) -> None:
    images = catalogue.read(source.settings, 0.0)
    pack.pack(images, folder, config.Images(16, 16, "crop", "raw", 0.0), 1)


MISSING = ["1 of 60 photos are missing", "'photos/07.jpg'", "line 9"]
PHOTOS: dict[str, Case] = {
    "pipe": (lambda photo: (photo.unlink(), os.mkfifo(photo)), MISSING),
    "endless device": (link("/dev/zero"), MISSING),
    "link to itself": (link("07.jpg"), MISSING),
    "link to nothing": (link("nowhere"), MISSING),
    "folder": (lambda photo: (photo.unlink(), photo.mkdir()), MISSING),
    "script": (content(b"#!/bin/sh\ntouch x\n"), ["1 of 60 images", "07.jpg", "not a photo"]),
    "SVG": (content(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ["07.jpg", "not a photo"]),
    "PDF": (content(b"%PDF-1.4\n%%EOF\n"), ["07.jpg", "not a photo"]),
}


@pytest.mark.parametrize("case", PHOTOS)
def test_a_bad_photo_stops_packing(repository, tiny_catalogue, case):
    damage, words = PHOTOS[case]
    damage(tiny_catalogue.photos[7])
    before = set(listing(repository))
    with pytest.raises(InputError) as error:
        prepare_photos(tiny_catalogue, repository / "data" / "prepared")
    check_sentence(str(error.value), ["images.max_unreadable", *words])
    assert set(listing(repository)) == before


# a prepared folder of another version, read by every later stage


def table(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        change(pd.read_parquet(folder / "manifest.parquet")).to_parquet(folder / "manifest.parquet")

    return damage


def json_file(name: str, value: object) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(json.dumps(value))


def attribute(**changes: object) -> Callable[[Path], None]:
    values = {"name": "a", "classes": ["x", "y"], "multi": False} | changes
    return json_file("taxonomy.json", {"attributes": [values]})


def images(dtype: type, *shape: int) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "images.npy", np.zeros(shape, dtype))


UNPREPARED, IDS = "is not a prepared data set", "no class ids of taxonomy.json"
PREPARED: dict[str, Case] = {
    "numbers as classes": (attribute(classes=[1, 2]), [UNPREPARED, "dvc repro prepare"]),
    "text as a flag": (attribute(multi="perhaps"), [UNPREPARED]),
    "smaller taxonomy": (attribute(), [IDS, "dvc repro prepare"]),
    "no protocol": (lambda folder: (folder / "protocol.json").unlink(), [UNPREPARED, "protocol.json"]),
    "other protocol": (json_file("protocol.json", {"relevance": "graded"}), ["protocol.json", "another version"]),
    "words as labels": (table(lambda t: t.assign(labels=[["red"]] * 30)), [IDS]),
    "numbers as labels": (table(lambda t: t.assign(labels=1)), [UNPREPARED]),
    "negative labels": (table(lambda t: t.assign(labels=[[-1]] * 30)), [IDS]),
    "other word for valid": (table(lambda t: t.assign(split="val")), ["manifest.parquet is of another version"]),
    "float images": (images(np.float32, 30, 4, 4, 3), ["images.npy holds no images"]),
    "grey images": (images(np.uint8, 30, 4, 4), ["images.npy holds no images"]),
}


@pytest.mark.parametrize("case", PREPARED)
def test_a_prepared_folder_of_another_version_is_refused(prepared, case):
    damage, words = PREPARED[case]
    damage(prepared)
    before = listing(prepared)
    with pytest.raises(InputError) as error:
        manifest.open_prepared(prepared)
    check_sentence(str(error.value), [str(prepared), *words])
    assert listing(prepared) == before


# weight files, read where a network is built


def tensors(name: str) -> Callable[[Path], None]:
    return lambda path: save_file({name: torch.zeros(2)}, path)


def replaced(old: bytes, new: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        save_file(make_system("m3").state_dict(), path)
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new, 1))

    return damage


WEIGHTS: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    "safetensors as .pth": ("w.pth", tensors("layer"), ["does not end in .safetensors"]),
    "endless header": ("w.safetensors", lambda path: path.write_bytes((2**63).to_bytes(8, "little") + b"{"), []),
    "other network": ("w.safetensors", tensors("layer"), ["it has nothing for"]),
    "part of a system": ("w.safetensors", tensors("backbone.trunk.conv1.weight"), []),
    "other name": ("w.safetensors", replaced(b"conv1.0.weight", b"conv1.9.weight"), []),
    "unknown type": ("w.safetensors", replaced(b'"F32"', b'"U99"'), []),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_do_not_fit_are_refused(tmp_path, case):
    name, create, words = WEIGHTS[case]
    create(tmp_path / name)
    with pytest.raises(InputError) as error:
        backbone.create_trunk("resnet10t", BACKBONE, False, str(tmp_path / name))
    check_sentence(str(error.value), [name, "model.weights", *words])
