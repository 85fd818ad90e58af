"""The rules that all public benchmarks share: splits, protocols, missing photos, contradictions, the survey."""

import itertools
import shutil
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from downloads import (
    LABEL_FILE,
    SIZE,
    SPLIT,
    darn,
    deepfashion,
    fashionai,
    labels_of,
    released_split,
    rows_of,
    set_line,
)
from m3lib import prepare
from m3lib.data.manifest import assign_splits
from m3lib.errors import InputError
from m3lib.prepare import pack, public

LABELS = {  # the label files
    "deepfashion": [LABEL_FILE],
    "fashionai": [f"fashionAI_attributes_train{i}/Annotations/label.csv" for i in (1, 2)],
    "darn": ["labels.csv"],
}
PUBLISHED = {"deepfashion": "pair", "fashionai": "row", "darn": "row"}
SURVEY = {  # a file of the survey, and words on the origin
    "deepfashion": ("list_attr_img.txt", "mmlab.ie.cuhk.edu.hk"),
    "fashionai": (" or ".join(LABELS["fashionai"]), "tianchi.aliyun.com"),
    "darn": ("labels.csv", "request to the authors"),
}


@pytest.fixture(params=[deepfashion, fashionai, darn], ids=list(LABELS))
def download(request, tmp_path):
    count = {"count": 200} if request.param is fashionai else {}
    return request.param(tmp_path / "set", **count)


@pytest.fixture
def without_labels(download):
    """A download without its label files, and its released rows."""
    if download.name == "deepfashion":
        pytest.skip("only DeepFashion's own files name its classes")
    rows = released_split(download)
    for path in LABELS[download.name]:
        (download.folder / path).unlink()
    return download, rows


def expected_labels(download, rows, protocol):
    """Return the labels of each photo; under `row`, only the row's class outside train."""
    if protocol != "row":
        return download.labelled
    return download.labelled | {name: {row.attribute: [row.class_]} for name, row in rows.items() if row.class_}


def count_roles(rows, attribute):
    """Count queries and candidates of an attribute in valid and in test."""
    return Counter((row.split, row.role) for row in rows.values() if row.attribute == attribute)


# splits


def test_without_the_released_split_one_is_drawn(download):
    source, names = download.read(protocol="pair"), list(download.labelled)
    assert source.taxonomy == download.taxonomy
    assert labels_of(source) == download.labelled
    rows = rows_of(source)
    splits = assign_splits(names, SPLIT).tolist()
    if download.splits:  # DeepFashion has an official partition
        splits = [download.splits[name] for name in names]
    assert [rows[name].split for name in names] == splits
    for name, row in rows.items():
        assert (row.role == "") == (row.class_ == "") == (row.split == "train")
        assert row.split == "train" or row.class_ in download.labels[name][row.attribute]
    for attribute in download.taxonomy.names:
        counts = count_roles(rows, attribute)
        for split in ("valid", "test"):
            queries = counts[split, "query"]
            assert queries == max(1, round(SPLIT.query * (queries + counts[split, "candidate"])))
    assert any(note.startswith("no released split files") for note in source.notes)
    for i in (3, 7):
        assert np.array_equal(source.load(i), Image.open(download.folder / source.manifest["image"][i]))
        assert source.load(i).shape == (*SIZE, 3)


@pytest.mark.parametrize("train", [True, False])
def test_the_released_split_is_followed(download, train):
    rows = released_split(download, train)
    source = download.read(protocol="pair")
    assert rows_of(source) == rows
    assert labels_of(source) == download.labelled
    assert not any(note.startswith("no released split files") for note in source.notes)


def test_photos_outside_the_released_train_files_are_left_out(download):
    rows = released_split(download)
    for file in ("filenames_train.txt", "label_train.txt"):
        download.edit(file, lambda lines: lines.pop())
    assert len(rows) - len(rows_of(download.read())) == 1


def test_the_released_split_is_enough_without_label_files(without_labels):
    download, rows = without_labels
    source = download.read(protocol="pair")
    assert rows_of(source) == rows
    assert labels_of(source) == expected_labels(download, rows, "row")
    (download.folder / "filenames_train.txt").unlink()
    download.check_refused("label_train.txt without filenames_train.txt")


# protocols and shares


@pytest.mark.parametrize("protocol", ["published", "pair", "row", "any"])
def test_protocols(download, protocol):
    rows = released_split(download)
    source = download.read(protocol=protocol)
    protocol = PUBLISHED[download.name] if protocol == "published" else protocol
    assert source.relevance == ("any" if protocol == "any" else "pair")
    assert rows_of(source) == rows
    assert labels_of(source) == expected_labels(download, rows, protocol)
    assert source.notes[-1] == f"protocol: {protocol}"


def test_a_share_of_the_photos(download):
    split = replace(SPLIT, query=0.5)
    everything = rows_of(download.read(protocol="pair", split=split))
    source = download.read(protocol="pair", split=split, fraction=0.8)
    rows = rows_of(source)
    assert 0.65 < len(rows) / len(everything) < 0.95
    assert all(row.split == everything[name].split for name, row in rows.items())
    note = f"{len(rows)} of {len(everything)} photos are used (benchmark.fraction): results can't be compared"
    assert note in source.notes


# photos


def test_missing_photos_are_counted_up_to_the_limit(download):
    released_split(download)
    names = list(download.labelled)
    missing = [names[i] for i in (4, 9, 11)]
    for name in missing:
        (download.folder / name).unlink()
    source = download.read(max_unreadable=0.04, protocol="pair")
    assert set(source.manifest["image"]) == set(names) - set(missing)
    counted = f"3 of {len(names)} photos are missing"
    (note,) = [note for note in source.notes if f"{counted} and left out, the first is" in note]
    assert any(str(download.folder / name) in note for name in missing)
    download.check_refused(counted, "images.max_unreadable = 0.01", max_unreadable=0.01)


def test_a_damaged_photo_is_left_out_of_the_store(download, tmp_path):
    names = list(download.labelled)
    path = download.folder / names[11]
    path.write_bytes(path.read_bytes()[:300])
    settings = download.settings(max_unreadable=0.02)
    source = pack.pack(prepare.read(settings), tmp_path / "prepared", settings.images, workers=1)
    assert set(source.manifest["image"]) == set(names) - {names[11]}
    assert f"1 of {len(names)} images can't be read" in source.notes[-2]
    assert str(path) in source.notes[-1]


# contradictions and bad rows


def test_a_released_row_that_contradicts_the_labels_is_refused(download):
    released_split(download)
    index, n, _ = map(int, download.lines("query_test.txt")[2].split())
    name, attribute = download.lines("filenames_test.txt")[index], download.taxonomy.attributes[n]
    wrong = next(class_ for class_ in attribute.classes if class_ not in download.labels[name][attribute.name])
    download.edit("query_test.txt", set_line(3, f"{index} {n} {attribute.classes.index(wrong)}"))
    row, file = repr(f"{attribute.name}: {wrong}"), LABELS[download.name][0].rpartition("/")[2]
    download.check_refused("query_test.txt, line 3", repr(name), row, file)


@pytest.mark.parametrize(
    ("file", "other", "words"),
    [
        ("filenames_train.txt", "filenames_test.txt", ["filenames_train.txt, line 2", "in test as well"]),
        ("filenames_test.txt", "filenames_valid.txt", ["_test.txt, line", "in valid already"]),
        ("filenames_train.txt", "", ["filenames_train.txt, line 2", "does not name 'pic/x.jpg'"]),
        ("filenames_test.txt", "", ["_test.txt, line", "does not name 'pic/x.jpg'"]),
    ],
)
def test_a_photo_in_two_splits_or_without_labels_is_refused(download, file, other, words):
    released_split(download)
    name = download.lines(other)[0] if other else "pic/x.jpg"
    download.edit(file, set_line(2, name))
    download.check_refused(repr(name), *words)


def test_equal_rows_are_noted(download):
    before, file = download.read(), LABELS[download.name][0]

    def repeat(lines):
        lines += [lines[3], f"./{lines[4]}"]
        if file == LABEL_FILE:
            lines[0] = str(int(lines[0]) + 2)

    download.edit(file, repeat)
    after = download.read()
    assert after.manifest.equals(before.manifest)
    file = "list_attr_img.txt" if file == LABEL_FILE else file
    assert after.notes == (f"2 rows of {file} repeat another", *before.notes)


# the survey


def test_a_survey_lists_the_files_and_where_to_get_them(download, tmp_path):
    dataset, (file, origin) = prepare.DATASETS[download.name], SURVEY[download.name]
    text, complete = public.survey(dataset, tmp_path / "nothing")
    assert not complete
    for word in (file, " or ".join(dataset.photos.paths), "filenames_test.txt"):
        assert any(line.startswith("  missing") and word in line for line in text.splitlines()), word
    for word in (str(tmp_path / "nothing"), origin, "github.com/Maryeon/asen", "benchmark.folder"):
        assert word in text
    text, complete = public.survey(dataset, download.folder)
    assert complete
    assert f"-S source={download.name}" in text
    assert "without it, one is drawn" in text
    released_split(download)
    text, complete = public.survey(dataset, download.folder)
    assert complete
    assert "missing" not in text


PARTS = {  # of a download and its released split: each is there as a whole or not at all
    "deepfashion": ["Anno/list_attr_cloth.txt", "Anno/list_attr_img.txt", "Eval", "img"],
    "fashionai": [f"fashionAI_attributes_train{i}/{name}" for i in (1, 2) for name in ("Annotations", "Images")],
    "darn": ["labels.csv", "pic"],
}
SPLIT_PARTS = ["filenames_test.txt", "query_test.txt", "filenames_train.txt", "label_train.txt"]


def test_a_survey_says_complete_exactly_if_no_missing_file_stops_reading(download, tmp_path):
    """For every subset of a download's files; what was taken away comes back from a folder aside."""
    released_split(download)
    parts, dataset = [*PARTS[download.name], *SPLIT_PARTS], prepare.DATASETS[download.name]
    settings = download.settings()
    readable = 0
    for there in itertools.product([True, False], repeat=len(parts)):
        aside = tmp_path / "aside"
        for part, stays in zip(parts, there, strict=True):
            kept, away = download.folder / part, aside / part
            source, target = (away, kept) if stays else (kept, away)
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                source.rename(target)
        for top in download.folder.glob("fashionAI*"):
            if not any(top.iterdir()):
                top.rmdir()
        complete = public.survey(dataset, download.folder)[1]
        with nullcontext() if complete else pytest.raises(InputError, match="is not complete"):
            public.read(dataset, settings)
        readable += complete
    assert 2 <= readable < 2 ** len(parts) / 2


def test_an_empty_label_file_is_no_label_file(without_labels):
    download, rows = without_labels
    for path in LABELS[download.name]:
        (download.folder / path).touch()
    assert public.survey(prepare.DATASETS[download.name], download.folder)[1]
    assert rows_of(download.read(protocol="pair")) == rows


@pytest.mark.parametrize("size", [0, None])
def test_an_empty_or_missing_split_file_is_named(download, size):
    released_split(download)
    for name in ("query_valid.txt", "label_train.txt"):
        path = download.folder / name
        text = path.read_bytes()
        path.unlink() if size is None else path.write_bytes(b"")
        download.check_refused(f"without {name}: put all of them there, or none")
        path.write_bytes(text)


def test_what_lies_in_a_folder_further_down_or_in_an_archive_is_found(download, tmp_path):
    deeper = tmp_path / "above"
    deeper.mkdir()
    download.folder.rename(deeper / "set")
    download.folder = deeper
    download.check_refused(f"{deeper / 'set'} holds ", "set benchmark.folder to that folder")
    (deeper / "set").rename(tmp_path / "set")
    (deeper / "Img").mkdir()
    (deeper / "Img" / "img.zip").touch()
    download.check_refused("unpack Img/img.zip")
    assert "unpack Img/img.zip" in public.survey(prepare.DATASETS[download.name], deeper)[0]


def test_what_the_released_split_lacks_is_named_beside_missing_labels(without_labels):
    download, _ = without_labels
    (download.folder / "filenames_test.txt").unlink()
    (download.folder / "query_test.txt").write_bytes(b"")
    lacking = "and the released split, which could replace it, lacks filenames_test.txt, query_test.txt"
    download.check_refused(f"{LABELS[download.name][-1]} is missing, {lacking}")


def test_an_incomplete_download_is_one_sentence(download):
    for path in prepare.DATASETS[download.name].photos.paths:
        shutil.rmtree(download.folder / path, ignore_errors=True)
    download.check_refused(download.name, f"make data SOURCE={download.name}")
