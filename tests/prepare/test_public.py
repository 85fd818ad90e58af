"""The rules that all public benchmarks share: splits, protocols, missing photos, contradictions, the survey."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from downloads import (
    LABEL_FILE,
    OFFICIAL,
    SPLIT,
    check_drawn_roles,
    check_odd_photos,
    check_words,
    cut_off,
    darn_set,
    deepfashion,
    fashionai,
    labels_of,
    released_split,
    rows_of,
    save_odd_photos,
    set_line,
)
from m3lib import prepare
from m3lib.data.manifest import assign_splits
from m3lib.errors import InputError
from m3lib.prepare import pack, public

LABELS = {
    "deepfashion": [LABEL_FILE],
    "fashionai": [f"fashionAI_attributes_train{i}/Annotations/label.csv" for i in (1, 2)],
    "darn": ["labels.csv"],
}
PUBLISHED = {"deepfashion": "pair", "fashionai": "row", "darn": "row"}
EXPECTED_MISSING = {
    "deepfashion": [
        "list_attr_cloth.txt",
        "list_attr_img.txt",
        "list_bbox.txt",
        "list_eval_partition.txt",
        "img or Img/img",
    ],
    "fashionai": [" or ".join(LABELS["fashionai"]), "fashionAI_attributes_train1 or fashionAI_attributes_train2"],
    "darn": ["labels.csv or label_train.txt", " pic:"],
}
ORIGIN = {"deepfashion": "mmlab.ie.cuhk.edu.hk", "fashionai": "tianchi.aliyun.com", "darn": "request to the authors"}


@pytest.fixture(params=[deepfashion, fashionai, darn_set], ids=list(LABELS))
def download(request, tmp_path):
    count = {"count": 200} if request.param is fashionai else {}
    return request.param(tmp_path / "set", **count)


@pytest.fixture(params=[fashionai, darn_set], ids=["fashionai", "darn"])
def with_optional_labels(request, tmp_path):
    """A download whose label files may be missing."""
    return request.param(tmp_path / "set")


def expected_labels(download, rows=(), protocol="pair"):
    """Return the labels of each photo in the order of the taxonomy; under `row`, only the row's class outside train."""
    order = {attribute.name: attribute.classes for attribute in download.taxonomy.attributes}
    labels = {
        name: {a: sorted(classes, key=order[a].index) for a, classes in of_photo.items()}
        for name, of_photo in download.labelled.items()
    }
    if protocol == "row":
        labels |= {name: {row.attribute: [row.class_]} for name, row in rows.items() if row.class_}
    return labels


def remove_labels(download):
    for path in LABELS[download.name]:
        (download.folder / path).unlink()


# splits


def test_without_the_released_split_one_is_drawn(download):
    source, names = download.read(protocol="pair"), list(download.labelled)
    assert source.taxonomy == download.taxonomy
    assert labels_of(source) == expected_labels(download)
    rows = rows_of(source)
    splits = assign_splits(names, SPLIT).tolist()
    if download.parts:  # DeepFashion has an official partition
        splits = [OFFICIAL[download.parts[name]] for name in names]
    assert [rows[name].split for name in names] == splits
    check_drawn_roles(source, SPLIT.query)
    for name, row in rows.items():
        assert (row.role == "") == (row.class_ == "") == (row.split == "train")
        assert row.split == "train" or row.class_ in download.labels[name][row.attribute]
    assert any(note.startswith("no released split files") for note in source.notes)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("form", [{}, {"end": "\r\n", "trailing": "\t \t", "last": False}])
def test_the_released_split_is_followed(download, form, train):
    rows = released_split(download, train=train, **form)
    source = download.read(protocol="pair")
    assert rows_of(source) == rows
    assert labels_of(source) == expected_labels(download)
    assert not any(note.startswith("no released split files") for note in source.notes)


def test_photos_outside_the_released_train_files_stay_out(download):
    rows = released_split(download)
    for file in ("filenames_train.txt", "label_train.txt"):
        download.edit(file, lambda lines: lines.pop())
    assert len(rows) - len(rows_of(download.read())) == 1


def test_the_released_split_is_enough_without_label_files(with_optional_labels):
    download = with_optional_labels
    rows = released_split(download)
    remove_labels(download)
    source = download.read(protocol="pair")
    assert rows_of(source) == rows
    assert labels_of(source) == expected_labels(download, rows, "row")
    (download.folder / "filenames_train.txt").unlink()
    with pytest.raises(InputError, match=r"label_train.txt without filenames_train.txt"):
        download.read()


def test_neither_labels_nor_a_split_is_one_sentence(with_optional_labels):
    download = with_optional_labels
    released_split(download)
    remove_labels(download)
    for path in download.folder.glob("*_[vt][ae][ls][it]*.txt"):
        path.unlink()
    with pytest.raises(InputError) as raised:
        download.read()
    check_words(raised, [str(download.folder), "no split files", "no labels"])


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
    source = download.read(protocol="pair", split=split, share=0.8)
    rows = rows_of(source)
    assert 0.65 < len(rows) / len(everything) < 0.95
    assert rows == {name: row for name, row in everything.items() if name in rows}
    assert {row.role for name, row in everything.items() if name not in rows} == {"", "query", "candidate"}
    note = f"{len(rows)} of {len(everything)} photos are used (benchmark.share): results can't be compared"
    assert note in source.notes
    assert source.load(3).shape == (24, 18, 3)


# photos


def test_missing_photos_are_counted_up_to_the_limit(download):
    released_split(download)
    missing = [list(download.labelled)[i] for i in (4, 9, 11)]
    for name in missing:
        (download.folder / name).unlink()
    source = download.read(max_bad=0.04, protocol="pair")
    assert set(source.manifest["image"]) == set(download.labelled) - set(missing)
    total = len(download.labelled)
    (note,) = [note for note in source.notes if f"3 of {total} photos are missing and left out, the first is" in note]
    assert any(str(download.folder / name) in note for name in missing)
    with pytest.raises(InputError) as raised:
        download.read(max_bad=0.01)
    check_words(raised, [f"3 of {total}", str(download.folder), "images.max_bad = 0.01"])


def test_a_photo_that_is_cut_off_is_left_out_of_the_store(download, tmp_path):
    cut_off(download.photo(11))
    settings = download.settings(max_bad=0.02)
    source = pack.pack(prepare.read(settings), tmp_path / "prepared", settings.images, workers=1)
    total = len(download.labelled)
    assert len(source.manifest) == total - 1
    assert f"1 of {total} images can't be read" in source.notes[-2]
    assert str(download.photo(11)) in source.notes[-1]
    with pytest.raises(InputError) as raised:
        pack.pack(prepare.read(settings), tmp_path / "prepared", replace(settings.images, max_bad=0.001), workers=1)
    check_words(raised, ["images can't be read", "images.max_bad", str(download.photo(11))])


def test_grey_cmyk_and_turned_photos(download):
    names = list(download.labelled)[:3]
    save_odd_photos([download.folder / name for name in names])
    source = download.read()
    rows = {name: i for i, name in enumerate(source.manifest["image"])}
    check_odd_photos([source.load(rows[name]) for name in names])


# contradictions and bad bytes


def test_a_released_row_that_contradicts_the_labels_is_refused(download):
    released_split(download)
    index, attribute, _ = map(int, download.lines("query_test.txt")[2].split())
    name = download.lines("filenames_test.txt")[index]
    classes = download.taxonomy.attributes[attribute].classes
    wrong = next(
        class_ for class_ in classes if class_ not in download.labels[name][download.taxonomy.names[attribute]]
    )
    download.edit("query_test.txt", set_line(3, f"{index} {attribute} {classes.index(wrong)}"))
    with pytest.raises(InputError) as raised:
        download.read()
    row = repr(f"{download.taxonomy.names[attribute]}: {wrong}")
    where = f"{download.folder / 'query_test.txt'}, line 3"
    check_words(raised, [where, repr(name), row, LABELS[download.name][0].rpartition("/")[2]])


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
    with pytest.raises(InputError) as raised:
        download.read()
    check_words(raised, [str(download.folder), repr(name), *words])


def test_a_label_file_that_is_not_utf8_is_one_sentence(download):
    path = download.folder / LABELS[download.name][0]
    lines = path.read_bytes().split(b"\n")
    lines[3] = b"caf\xe9" + lines[3]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError) as raised:
        download.read()
    check_words(raised, [str(path), "line 4", "UTF-8"])


# the survey


def test_a_survey_lists_what_is_there_and_where_to_get_the_rest(download, tmp_path):
    dataset = prepare.DATASETS[download.name]
    text, complete = public.survey(dataset, tmp_path / "nothing")
    assert not complete
    for word in (*EXPECTED_MISSING[download.name], "filenames_test.txt"):
        assert any(line.startswith("  missing") and word in line for line in text.splitlines()), word
    for word in (str(tmp_path / "nothing"), ORIGIN[download.name], "github.com/Maryeon/asen", "benchmark.folder"):
        assert word in text
    assert all(len(line) < 180 for line in text.splitlines())
    text, complete = public.survey(dataset, download.folder)
    assert complete
    assert f"-S source={download.name}" in text
    assert "optional; without it, a split is drawn" in text
    released_split(download)
    text, complete = public.survey(dataset, download.folder)
    assert complete
    assert "missing" not in text


def test_an_incomplete_download_is_one_sentence(download):
    for path in prepare.DATASETS[download.name].photos.paths:
        shutil.rmtree(download.folder / path, ignore_errors=True)
    with pytest.raises(InputError) as raised:
        download.read()
    check_words(raised, [download.name, str(download.folder), f"make data SOURCE={download.name}"])


def test_two_readings_are_equal(download):
    first, second = download.read(), download.read()
    assert first.manifest.equals(second.manifest)
    assert np.array_equal(first.load(7), second.load(7))
