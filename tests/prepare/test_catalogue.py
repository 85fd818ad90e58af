"""A catalogue of photos is read into a manifest, or refused in one sentence on the line, column or setting."""

import csv
import shutil
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from downloads import check_refused, labels_of
from m3lib import config, prepare
from m3lib.prepare import catalogue as catalogue_reader
from m3lib.prepare import photos
from tiny import ROOT, SETTINGS

CATALOGUE = ROOT.parent / "shared/catalogue/catalogue.csv"


def class_names(source: prepare.Source) -> list[dict[str, list[str]]]:
    """Return the class names of each row, by attribute."""
    return list(labels_of(source).values())


def read(catalogue, max_unreadable=0.0, **changes):
    return catalogue_reader.read(catalogue.set(**changes), catalogue.split, max_unreadable)


def edit_cell(row: int, column: int, value: str):
    def edit(rows):
        rows[row][column] = value

    return edit


# what is read


def test_labels_types_and_photos(tiny_catalogue):
    source = read(tiny_catalogue)
    assert [(a.name, a.classes, a.multi) for a in source.taxonomy.attributes] == [
        ("colour", ("blue", "green", "red"), False),
        ("sleeve", ("long", "short"), False),
        ("details", ("collar", "pocket"), True),
    ]
    names = ("colour", "sleeve", "details")
    cells = [zip(names, row[1:4], strict=True) for row in tiny_catalogue.rows()[1:]]
    assert class_names(source) == [{name: sorted(cell.split("|")) for name, cell in row if cell} for row in cells]
    assert list(source.manifest["image"]) == [f"photos/{i:02}.jpg" for i in range(60)]
    assert (source.load(7) == photos.decode(tiny_catalogue.photos[7])).all()
    assert source.notes == ()


def test_values_are_trimmed_and_in_one_unicode_form(tiny_catalogue):
    def edit(rows):
        for row in rows[1:]:
            row[1] = {"red": "  café ", "green": unicodedata.normalize("NFD", "café"), "blue": "thé"}[row[1]]
            row[3] = row[3].replace("|", " | |")
        rows[0][1] = unicodedata.normalize("NFD", " Größe")

    tiny_catalogue.change(edit)
    source = read(tiny_catalogue, attributes=["Größe", "details"])
    assert [a.classes for a in source.taxonomy.attributes] == [("café", "thé"), ("collar", "pocket")]


def test_all_columns_but_the_named_ones_are_attributes(tiny_catalogue):
    found = read(tiny_catalogue, attributes=[], group_column="product").taxonomy
    assert found.names == ["colour", "sleeve", "details"]
    assert "product" in read(tiny_catalogue, attributes=[]).taxonomy.names


def test_a_type_can_be_forced(tiny_catalogue):
    assert read(tiny_catalogue, multi=["sleeve"]).taxonomy.attributes[1].multi
    check_refused(lambda: read(tiny_catalogue, single=["details"]), "line 12: 'details' has 2 values, but csv.single")


def test_photos_without_any_label_are_left_out(tiny_catalogue):
    tiny_catalogue.change(lambda rows: rows[3].__setitem__(slice(1, 4), ["", " ", " | "]))
    source = read(tiny_catalogue)
    assert "photos/02.jpg" not in set(source.manifest["image"])
    assert (source.load(2) == photos.decode(tiny_catalogue.photos[3])).all()
    assert source.notes == ("1 of 60 photos have no known label and are left out",)


# rare classes


def rare_colours(catalogue):
    catalogue.change(lambda rows: [row.__setitem__(1, colour) for row, colour in zip(rows[1:4], "xyy", strict=True)])


def test_rare_classes_are_dropped_and_noted(tiny_catalogue):
    rare_colours(tiny_catalogue)
    source = read(tiny_catalogue, min_images=3)
    assert source.taxonomy.attributes[0].classes == ("blue", "green", "red")
    assert all("colour" not in row for row in class_names(source)[:3])
    assert source.notes == ("colour: classes with fewer than 3 images are dropped: 'y' (2), 'x' (1)",)


def test_rare_classes_fold_into_other(tiny_catalogue):
    rare_colours(tiny_catalogue)
    source = read(tiny_catalogue, min_images=3, rare="fold")
    assert source.taxonomy.attributes[0].classes == ("blue", "green", "other", "red")
    assert all(row["colour"] == ["other"] for row in class_names(source)[:3])
    assert "folded into 'other': 'y' (2), 'x' (1)" in source.notes[0]
    assert "other" not in read(tiny_catalogue, min_images=4, rare="fold").taxonomy.attributes[0].classes


def test_a_long_list_of_rare_classes_is_shortened(tiny_catalogue):
    tiny_catalogue.change(lambda rows: [row.__setitem__(1, f"c{i}") for i, row in enumerate(rows[1:13])])
    (note,) = read(tiny_catalogue).notes
    assert note.endswith("dropped: " + ", ".join(f"'c{i}' (1)" for i in (0, 1, 10, 11, 2, 3, 4, 5)) + ", and 4 more")


def test_an_attribute_without_two_classes(tiny_catalogue):
    tiny_catalogue.change(lambda rows: [row.__setitem__(2, "long") for row in rows[1:]])
    source = read(tiny_catalogue, attributes=[])
    assert "sleeve" not in source.taxonomy.names
    assert source.notes == ("column 'sleeve' is left out: fewer than two classes with 2 or more images",)
    check_refused(lambda: read(tiny_catalogue), "column 'sleeve': fewer than two classes", "csv.min_images")


# splits


def splits_of(source) -> dict[str, tuple[str, str]]:
    frame = source.manifest
    return {Path(image).name: pair for image, *pair in zip(frame["image"], frame["split"], frame["role"], strict=True)}


def test_splits_depend_on_the_photos_bytes_only(tiny_catalogue):
    before = splits_of(read(tiny_catalogue))
    assert Counter(split for split, _ in before.values()).keys() == {"train", "valid", "test"}
    folder = tiny_catalogue.table.parent
    (folder / "photos").rename(folder / "renamed")

    def edit(rows):
        for row in rows[1:]:
            row[0] = row[0].replace("photos", "./renamed")
        rows[1:] = rows[:0:-1]

    tiny_catalogue.change(edit)
    assert splits_of(read(tiny_catalogue)) == before


def test_equal_photos_share_a_split(tiny_catalogue):
    for photo in tiny_catalogue.photos[:20]:
        shutil.copy(photo, photo.with_name(f"copy-{photo.name}"))
    tiny_catalogue.change(lambda rows: rows.extend([["photos/copy-" + r[0][7:], *r[1:]] for r in rows[1:21]]))
    found = splits_of(read(tiny_catalogue))
    assert all(found[f"copy-{i:02}.jpg"] == found[f"{i:02}.jpg"] for i in range(20))


def test_a_group_shares_a_split_and_without_a_group_the_photo_decides(tiny_catalogue):
    ungrouped = splits_of(read(tiny_catalogue))
    tiny_catalogue.change(lambda rows: [row.__setitem__(4, " ") for row in rows[1:31]])
    found = splits_of(read(tiny_catalogue, group_column="product"))
    names = sorted(found)
    assert all(found[name] == ungrouped[name] for name in names[:30])
    assert all(len({tuple(found[name]) for name in names[i : i + 3]}) == 1 for i in range(30, 60, 3))
    assert len({found[name][0] for name in names[30:]}) > 1


def test_a_split_column_is_followed(tiny_catalogue):
    words = ["train", "valid", "test", "val", "Validation", "dev "]
    tiny_catalogue.change(lambda rows: [row.__setitem__(4, words[i % 6]) for i, row in enumerate(rows[1:])])
    source = read(tiny_catalogue, attributes=[], split_column="product")
    assert list(source.manifest["split"])[:6] == ["train", "valid", "test", "valid", "valid", "valid"]
    assert ((source.manifest["role"] == "") == (source.manifest["split"] == "train")).all()
    assert "product" not in source.taxonomy.names


# bad tables and settings: (edit of the rows, or bytes, or None), settings, words of the sentence

BAD_ROWS = {
    "split word": (None, {"split_column": "product"}, ["line 2", "'product'", "'p0'"]),
    "escape": (edit_cell(2, 0, "photos/../../x.jpg"), {}, ["line 3", "outside"]),
    "no photo named": (edit_cell(2, 0, "  "), {}, ["line 3", "'image'", "empty"]),
    "twice": (edit_cell(9, 0, "./photos//03.jpg"), {}, ["line 10", "line 5", "photos/03.jpg"]),
    "missing photo": (
        edit_cell(9, 0, "photos/no\n.jpg"),
        {},
        ["line 10", r"no\n.jpg", "1 of 60", "images.max_unreadable"],
    ),
    "ragged": (lambda rows: rows[6].append("x"), {}, ["line 7", "6 values", "5 columns"]),
    "quoted newline": (lambda rows: (rows[1].__setitem__(1, "a\nb\r\nc"), rows[2].pop()), {}, ["line 5", "4 values"]),
    "column twice": (edit_cell(0, 2, "colour"), {}, ["line 1", "'colour'"]),
    "column without a name": (edit_cell(0, 2, ""), {}, ["line 1", "column 3"]),
    "no image column": (edit_cell(0, 0, "file"), {}, ["'image'", "csv.image_column", "'file', 'colour'"]),
    "no class twice": (None, {"attributes": [], "min_images": 99}, ["no column has two classes with 99"]),
    "missing attribute": (None, {"attributes": ["color"]}, ["csv.attributes", "'color'", "'colour'"]),
    "missing multi": (None, {"multi": ["detail"]}, ["csv.multi", "'details'"]),
    "multi not chosen": (None, {"multi": ["product"]}, ["csv.multi", "'product'"]),
    "multi and single": (None, {"multi": ["colour"], "single": ["colour"]}, ["'colour'", "multi", "single"]),
    "missing split": (None, {"split_column": "fold"}, ["csv.split_column", "'fold'"]),
    "no table": (None, {"table": "/nowhere/x.csv"}, ["/nowhere/x.csv", "csv.table"]),
    "a folder": (None, {"table": "/"}, ["can't be read", "csv.table"]),
}
BAD_BYTES = {
    "nothing": (b"", ["empty"]),
    "Latin-1 after a mark": (b"\xef\xbb\xbfimage,colour\n1.jpg,caf\xe9\n", ["line 2", "UTF-8"]),
    "UTF-16": ("image,colour\n1.jpg,red\n".encode("utf-16"), ["line 1", "UTF-8"]),
    "zeros": (b"image,colour\n1.jpg,\0\n", ["zero bytes"]),
    "open quote": (b'image,colour\n1.jpg,red\n2.jpg,"red\n3.jpg,blue\n', ["line 3", "quotes"]),
    "semicolons": (b"image;colour\n1.jpg;red\n", ["'image;colour'", "commas"]),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_table_or_setting_is_one_sentence(tiny_catalogue, case):
    edit, changes, words = BAD_ROWS[case]
    if edit:
        tiny_catalogue.change(edit)
    check_refused(lambda: read(tiny_catalogue, **changes), *words)


@pytest.mark.parametrize("case", BAD_BYTES)
def test_bytes_that_are_no_table_are_one_sentence(tiny_catalogue, case):
    data, words = BAD_BYTES[case]
    tiny_catalogue.table.write_bytes(data)
    check_refused(lambda: read(tiny_catalogue), str(tiny_catalogue.table), *words)


def test_a_few_missing_photos_are_noted(tiny_catalogue):
    for photo in tiny_catalogue.photos[5:7]:
        photo.unlink()
    source = read(tiny_catalogue, max_unreadable=0.05)
    assert len(source.manifest) == 58
    assert "2 of 60 photos are missing" in source.notes[0]
    assert f"'photos/05.jpg' ({tiny_catalogue.table}, line 7)" in source.notes[0]


def test_windows_line_ends_a_mark_and_blank_lines_change_nothing(tiny_catalogue):
    plain = read(tiny_catalogue)
    text = tiny_catalogue.table.read_bytes().replace(b"\r\n", b"\n")
    tiny_catalogue.table.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n", 40) + b"\n\n")
    other = read(tiny_catalogue)
    assert other.taxonomy == plain.taxonomy
    assert other.manifest.equals(plain.manifest)


AWKWARD = st.sampled_from(['"', "a,b", "a\nb", "x\r\ny", "<b>&amp;</b>", "=1+1", "é", "e\u0301", "日本", " a ", ""])
CELLS = st.lists(AWKWARD | st.text("ab,\"\n\u2028'|", max_size=4), max_size=3).map("|".join)


def naive_labels(cells: list[str]) -> list[set[str]]:
    """Return the names of each cell on one line each, since names are printed and drawn."""
    texts = [unicodedata.normalize("NFC", cell.replace("\u2028", " ")) for cell in cells]
    return [{" ".join(name.split()) for name in text.split("|")} - {""} for text in texts]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(CELLS, min_size=60, max_size=60))
def test_any_label_that_csv_can_hold_comes_back(tiny_catalogue, cells):
    tiny_catalogue.change(lambda rows: [row.__setitem__(3, cell) for row, cell in zip(rows[1:], cells, strict=True)])
    rows = class_names(read(tiny_catalogue, attributes=[], min_images=1))
    expected = naive_labels(cells)
    if len(set().union(*expected)) > 1:
        assert [set(row.get("details", ())) for row in rows] == expected


def test_paths_follow_the_repository_that_a_person_works_in(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "find_root", lambda: tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert config.data_path("a/b.csv") == tmp_path / "a/b.csv"
    monkeypatch.setenv("DVC_ROOT", "/home/me/repo")
    assert config.data_path("a/b.csv") == Path("/home/me/repo/a/b.csv")
    assert config.data_path("/photos/b.csv") == Path("/photos/b.csv")


def test_read_checks_the_source(tiny_catalogue):
    given = replace(SETTINGS, source="csv", csv=tiny_catalogue.settings, split=tiny_catalogue.split)
    assert len(prepare.read(given).manifest) == 60
    without_valid = replace(given, split=config.Split(valid=0.0, test=0.5, query=0.5))
    check_refused(lambda: prepare.read(without_valid), "no valid query image has a label for colour")


# photos that people took


@pytest.mark.skipif(not CATALOGUE.is_file(), reason=f"the shared catalogue of photos is not at {CATALOGUE}")
def test_every_row_of_a_real_catalogue_is_read():
    attributes = ["gender", "category", "colour", "season", "usage"]
    table = replace(SETTINGS.csv, table=str(CATALOGUE), attributes=attributes)
    source = prepare.read(replace(SETTINGS, source="csv", csv=table))
    assert source.taxonomy.names == attributes
    assert len(source.manifest) == 8000
    with CATALOGUE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, found in zip(rows[::97], class_names(source)[::97], strict=True):
        assert found == {name: [row[name]] for name in attributes if row[name]}
    for i in range(0, 8000, 800):
        assert source.load(i).shape[2] == 3
