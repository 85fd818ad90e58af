"""Rubbish in: a table of bad inputs, each by the door that a person uses, each one clear sentence and nothing written.

Further ones stand with what they spoil: test_config (70 settings), test_sources (30 tables), test_images (photos),
test_deepfashion, test_fashionai, test_darn and test_released (label files), test_abilities (settings that contradict
each other), test_checkpoints (checkpoints of another run). Here: files of another kind or version, and hostile ones.
"""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from m3lib import config
from m3lib import prepare as sources
from m3lib.data import manifest
from m3lib.errors import InputError
from m3lib.pipeline import check_inputs
from m3lib.prepare import pack
from tiny import ROOT, TAXONOMY, make_prepared, random_labels

PARAMS = (ROOT / "params.yaml").read_text()
Case = tuple[Callable, list[str]]


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every file under a folder and what is in it; None for what is no file."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def check_sentence(text: str, words: list[str]) -> None:
    assert text.isprintable(), text
    assert 20 < len(text) < 1300
    assert "Traceback" not in text
    for word in words:
        assert word in text, text


@pytest.fixture
def repository(tiny_catalogue, monkeypatch) -> Path:
    """A repository in a temporary folder, whose params.yaml names the small catalogue beside it."""
    folder = tiny_catalogue.table.parent
    (folder / "dvc.yaml").touch()
    (folder / "params.yaml").write_text(with_csv(PARAMS))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(config, "__file__", str(folder / "m3lib" / "config.py"))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (folder / "data" / "work").mkdir(parents=True)  # timm's names as an earlier run left them: its import takes seconds
    (folder / "data" / "work" / "backbones.txt").write_text("resnet10t\nresnet50\n")
    return folder


def with_csv(text: str) -> str:
    return text.replace("source: wardrobe", "source: csv").replace("data/catalogue/catalogue.csv", "table.csv")


def put(old: str, new: str) -> Callable[[Path], None]:
    """Change params.yaml by its text, as a person does."""

    def change(folder: Path) -> None:
        text = (folder / "params.yaml").read_text()
        assert old in text
        (folder / "params.yaml").write_text(text.replace(old, new, 1))

    return change


def whole(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "params.yaml").write_bytes(data)


def weights(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        make(folder / name)
        put("  weights: ''", f"  weights: {name}")(folder)

    return change


def table(old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "table.csv"
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new, 1))

    return change


LAUGHS = b"a: &a [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(11)
)  # 9 to the 12th words, were they written out

# By the pipeline's first stage, `python -m m3lib.pipeline.check_inputs`: (what is spoilt, words of the sentence)
AT_THE_DOOR: dict[str, Case] = {
    "a folder": (lambda f: ((f / "params.yaml").unlink(), (f / "params.yaml").mkdir()), ["params.yaml", "directory"]),
    "no file": (lambda f: (f / "params.yaml").unlink(), ["params.yaml does not exist", "git checkout"]),
    "an image": (whole(b"\x89PNG\r\n\x1a\n"), ["params.yaml", "codec can't decode byte 0x89"]),
    "zeros": (whole(bytes(50)), ["params.yaml", "special characters are not allowed"]),
    "a tab": (whole(b"train:\n\tlr: 1\n"), ["params.yaml, line 2"]),
    "an open bracket": (whole(b"variants: [m3\nseed: 0\n"), ["params.yaml, line 2"]),
    "two documents": (whole(b"seed: 0\n---\nseed: 1\n"), ["params.yaml, line 2", "single document"]),
    "a Python object": (whole(b"seed: !!python/object/apply:os.system ['touch x']\n"), ["line 1", "python/object"]),
    "a date that is none": (whole(b"seed: 2024-99-99\n"), ["params.yaml", "month must be in 1..12"]),
    "a time that is none": (whole(b"seed: !!timestamp soon\n"), ["params.yaml can't be read"]),
    "an integer that is none": (whole(b"seed: !!int ''\n"), ["params.yaml can't be read"]),
    "too deep": (whole(b"[" * 5000), ["params.yaml can't be read", "RecursionError"]),
    "a billion laughs": (whole(LAUGHS), ["params.yaml, a: there is no such setting"]),
    "a setting of a billion laughs": (
        whole(LAUGHS + PARAMS.replace("seed: 0", "seed: *l", 1).encode()),
        ["params.yaml, a: there is no such setting"],
    ),
    "itself": (put("seed: 0", "seed: &s [*s]"), ["params.yaml, seed", "[[[...]]]"]),
    "a key twice": (put("seed: 0", "seed: 0\nseed: 1"), ["params.yaml, line", "'seed' stands there twice"]),
    "a key of two lines": (put("seed: 0", 'seed: 0\n"a\\nb": 1'), [r"params.yaml, a\nb: there is no such setting"]),
    "ten thousand digits": (put("seed: 0", "seed: " + "9" * 10_000), ["params.yaml can't be read", "ValueError"]),
    "a wide hexadecimal": (put("seed: 0", "seed: 0x" + "f" * 9000), ["params.yaml, seed", "a number of 36000 bits"]),
    "a wide float": (put("lr: 0.008", "lr: 0x" + "f" * 400), ["params.yaml, train.lr", "inf"]),
    "a seed past 32 bits": (put("seed: 0", "seed: 4294967296"), ["params.yaml, seed", "between 0 and 4.29497e+09"]),
    "a million threads": (put("threads: 2", "threads: 1000000"), ["params.yaml, threads", "between 1 and 1024"]),
    "a path with a zero": (put("table: table.csv", r'table: "a\0b"'), ["params.yaml, csv.table", "can't be printed"]),
    "half a character": (put("table: table.csv", r'table: "\ud800.csv"'), ["params.yaml, csv.table"]),
    "a turn of direction": (put("backbone: resnet10t", r'backbone: "a\u202eb"'), ["params.yaml, model.backbone"]),
    "a home of no one": (put("table: table.csv", "table: ~nobody-here/t.csv"), ["~nobody-here/t.csv", "csv.table"]),
    "a variant twice": (put("variants: [classifier", "variants: [m3, m3"), ["variants: 'm3' is listed twice"]),
    "a variant that is a command": (
        put("  m3: {net", "  'm3; touch x': {net"),
        ["systems", "'m3; touch x' is no name"],
    ),
    "a variant that is a path": (put("  m3: {net", "  ../m3: {net"), ["systems", "'../m3' is no name"]),
    "a variant that is an option": (put("  m3: {net", "  --force: {net"), ["systems", "'--force' is no name"]),
    "a variant with a blank": (put("  m3: {net", "  m 3: {net"), ["systems", "'m 3' is no name"]),
    "no table": (lambda f: (f / "table.csv").unlink(), ["table.csv", "No such file", "csv.table"]),
    "a table of zeros": (lambda f: (f / "table.csv").write_bytes(bytes(99)), ["table.csv", "zero bytes"]),
    "a spreadsheet": (lambda f: (f / "table.csv").write_bytes(b"PK\x03\x04\xff\xfe"), ["table.csv, line 1", "UTF-8"]),
    "a web page": (lambda f: (f / "table.csv").write_text("<html>\n<body>\n"), ["table.csv", "no column 'image'"]),
    "a cell of a megabyte": (table(b"red", b"r" * 10**6), ["table.csv, line 2", "field limit"]),
    "a photo of the system": (table(b"photos/07.jpg", b"/etc/passwd"), ["line 9", "outside the table's folder"]),
    "a photo above": (table(b"photos/07.jpg", b"photos/../../x"), ["line 9", "outside the table's folder"]),
    "weights that are a folder": (weights("w.safetensors", Path.mkdir), ["model.weights", "w.safetensors"]),
    "weights that are empty": (weights("w.safetensors", Path.touch), ["model.weights", "no safetensors file"]),
    "weights that are text": (
        weights("w.safetensors", lambda path: path.write_text("version https://git-lfs\n")),
        ["model.weights", "no safetensors file"],
    ),
    "weights that are a pickle": (
        weights("w.pt", lambda path: path.write_bytes(pickle.dumps({"a": 1}))),
        ["model.weights: w.pt is no safetensors file"],
    ),
    "a renamed pickle": (
        weights("w.safetensors", lambda path: path.write_bytes(pickle.dumps({"a": 1}))),
        ["model.weights: w.safetensors is no safetensors file"],
    ),
    "a list of names that is no text": (
        lambda f: (
            (f / "data" / "work" / "backbones.txt").write_bytes(b"\xff\xfe"),
            put("backbone: resnet10t", "backbone: resnet1O")(f),
        ),
        ["unknown backbone", "resnet1O"],
    ),
}


@pytest.mark.parametrize("case", AT_THE_DOOR)
def test_the_first_stage_ends_with_one_sentence(repository, capsys, case):
    spoil, words = AT_THE_DOOR[case]
    spoil(repository)
    before = listing(repository)
    assert check_inputs.main() == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    check_sentence(said.strip(), words)
    after = listing(repository)
    if "backbones" not in str(words):
        kept = str(Path("data", "work", "backbones.txt"))
        after.pop(kept), before.pop(kept)
    assert after == before


def test_a_spoilt_record_of_the_inputs_is_written_anew(repository):
    (repository / "data" / "inputs.json").write_bytes(b"\xff\xfe not json")
    assert check_inputs.main() == 0
    assert json.loads((repository / "data" / "inputs.json").read_bytes())["rows"] == 60


def test_a_folder_that_links_to_itself_is_walked_once(repository):
    for name in ("round", "again"):  # without a look at where it has been, 2 to the 40th folders
        (repository / "photos" / name).symlink_to(repository)
    assert len([path for path, _ in check_inputs.walk(repository / "photos") if path.suffix == ".jpg"]) == 60


# By `sources.read` and `images.pack`, as 01_prepare does


def link(target: str) -> Callable[[Path], None]:
    def spoil(photo: Path) -> None:
        photo.unlink()
        photo.symlink_to(target)

    return spoil


def pipe(photo: Path) -> None:
    photo.unlink()
    os.mkfifo(photo)


def replaced(data: bytes) -> Callable[[Path], None]:
    return lambda photo: (photo.unlink(), photo.write_bytes(data))


GIF = b"GIF89a\x0a\x00\x0a\x00\x00\x00\x00,\x00\x00\x00\x00\x60\xea\x60\xea\x00\x02\x02L\x01\x00;"  # 60,000 on 10
PHOTOS: dict[str, Case] = {
    "a pipe": (pipe, ["1 of 60 photos are missing", "'photos/07.jpg'", "line 9"]),
    "an endless device": (link("/dev/zero"), ["1 of 60 photos are missing", "'photos/07.jpg'"]),
    "a link to itself": (link("07.jpg"), ["1 of 60 photos are missing", "'photos/07.jpg'"]),
    "a link to nothing": (link("nowhere"), ["1 of 60 photos are missing", "'photos/07.jpg'"]),
    "a folder": (lambda photo: (photo.unlink(), photo.mkdir()), ["1 of 60 photos are missing"]),
    "nothing": (replaced(b""), ["1 of 60 images", "07.jpg", "not a photo"]),
    "a script": (replaced(b"#!/bin/sh\ntouch x\n"), ["07.jpg", "not a photo"]),
    "a page": (replaced(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ["07.jpg", "not a photo"]),
    "a PDF": (replaced(b"%PDF-1.4\n%%EOF\n"), ["07.jpg", "not a photo"]),
    "an archive": (replaced(b"PK\x03\x04" + bytes(60)), ["07.jpg", "not a photo"]),
    "a GIF larger than it says": (replaced(GIF), ["07.jpg", "more than 64 megapixels"]),
    "a JPEG's first bytes": (replaced(b"\xff\xd8\xff\xe0\x00\x10JFIF"), ["07.jpg"]),
}


def prepare(catalogue, folder: Path) -> None:
    source = sources.catalogue.read(catalogue.settings, catalogue.split, 0.0)
    pack.pack(source, folder, config.Images(16, 16, "crop", "raw", 0.0), 1)


@pytest.mark.parametrize("case", PHOTOS)
def test_a_bad_photo_stops_packing_with_one_sentence(repository, tiny_catalogue, case):
    spoil, words = PHOTOS[case]
    spoil(tiny_catalogue.photos[7])
    before = set(listing(repository))
    with pytest.raises(InputError) as raised:
        prepare(tiny_catalogue, repository / "data" / "prepared")
    check_sentence(str(raised.value), ["images.max_bad", *words])
    assert set(listing(repository)) == before


# By `manifest.open_prepared`: prepared folders of another version


@pytest.fixture
def prepared(tmp_path) -> Path:
    labels = random_labels("multi", 30, np.random.default_rng(0))
    made = make_prepared(labels, [manifest.SUBSETS[i % 5] for i in range(30)])
    manifest.save(manifest.Source(TAXONOMY, made.manifest, made.images.__getitem__), tmp_path)
    np.save(tmp_path / "images.npy", made.images)
    assert len(manifest.open_prepared(tmp_path).labels) == 30
    return tmp_path


def columns(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        change(pd.read_parquet(folder / "manifest.parquet")).to_parquet(folder / "manifest.parquet")

    return spoil


def text(name: str, value: object) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


def store(array: np.ndarray, **options: bool) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "images.npy", array, **options)


def attribute(**changes: object) -> Callable[[Path], None]:
    return text("taxonomy.json", {"attributes": [{"name": "a", "classes": ["x", "y"], "multi": False} | changes]})


PREPARED: dict[str, Case] = {
    "a taxonomy that is a list": (text("taxonomy.json", []), ["not a prepared data set", "dvc repro prepare"]),
    "a taxonomy of null": (text("taxonomy.json", {"attributes": None}), ["not a prepared data set"]),
    "a taxonomy too deep": (text("taxonomy.json", "[" * 10**5), ["not a prepared data set"]),
    "classes that are numbers": (attribute(classes=[1, 2]), ["not a prepared data set"]),
    "one class": (attribute(classes=["x"]), ["not a prepared data set", "at least two different classes"]),
    "several or not, unsaid": (attribute(multi="perhaps"), ["not a prepared data set"]),
    "a smaller taxonomy": (attribute(), ["no class ids of taxonomy.json", "dvc repro prepare"]),
    "no protocol": (lambda folder: (folder / "protocol.json").unlink(), ["not a prepared data set", "protocol.json"]),
    "another protocol": (text("protocol.json", {"relevance": "graded"}), ["protocol.json", "another version"]),
    "a protocol that is a list": (text("protocol.json", ["pair"]), ["not a prepared data set"]),
    "a manifest that is a table": (text("manifest.parquet", "image,split\n1.jpg,train\n"), ["not a prepared data set"]),
    "no labels": (columns(lambda t: t.drop(columns="labels")), ["not a prepared data set", "labels"]),
    "labels in words": (columns(lambda t: t.assign(labels=[["red"]] * 30)), ["no class ids of taxonomy.json"]),
    "labels alone": (columns(lambda t: t.assign(labels=1)), ["not a prepared data set"]),
    "labels below zero": (columns(lambda t: t.assign(labels=[[-1]] * 30)), ["no class ids of taxonomy.json"]),
    "another word for valid": (columns(lambda t: t.assign(split="val")), ["manifest.parquet is of another version"]),
    "a row too many": (columns(lambda t: pd.concat([t, t[:1]])), ["31 rows", "30 images", "don't match"]),
    "pictures of another depth": (store(np.zeros((30, 4, 4, 3), np.float32)), ["images.npy holds no images"]),
    "pictures without colour": (store(np.zeros((30, 4, 4), np.uint8)), ["images.npy holds no images"]),
    "objects": (store(np.array([{}] * 30), allow_pickle=True), ["not a prepared data set", "Python objects"]),
}


@pytest.mark.parametrize("case", PREPARED)
def test_a_prepared_folder_of_another_version_is_one_sentence(prepared, case):
    spoil, words = PREPARED[case]
    spoil(prepared)
    before = listing(prepared)
    with pytest.raises(InputError) as raised:
        manifest.open_prepared(prepared)
    check_sentence(str(raised.value), [str(prepared), *words])
    assert listing(prepared) == before
