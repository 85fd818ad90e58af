"""A catalogue of photos is read into a manifest: its splits, its roles, and the photos that are missing."""

import csv
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from downloads import check_refused
from m3lib import config, prepare
from m3lib.errors import InputError
from m3lib.prepare import photos
from own_photos import class_names, read
from tiny import ROOT, SETTINGS

CATALOGUE = ROOT.parent / "shared/catalogue/catalogue.csv"


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


def unlabel(rows):
    """Rows 3 and 4 lose every label; row 5's only class is rare."""
    for row in rows[3:6]:
        row[1:4] = ["", " ", " | "]
    rows[5][1] = "plaid"


def test_photos_without_a_label_are_rows_that_only_a_search_finds(tiny_catalogue):
    labelled = read(tiny_catalogue).manifest
    tiny_catalogue.change(unlabel)
    source = read(tiny_catalogue)
    frame = source.manifest
    assert frame["image"].tolist() == labelled["image"].tolist()
    assert frame["labels"].iloc[2:5].tolist() == [[], [], []]
    assert frame["split"].iloc[2:5].tolist() == ["none"] * 3
    assert frame["role"].iloc[2:5].tolist() == ["unlabelled", "unlabelled", "rare"]
    assert (source.load(2) == photos.decode(tiny_catalogue.photos[2])).all()
    assert (
        "57 of 60 photos are labelled; the other 3 (2 without any value, 1 with rare classes only)" in source.notes[-1]
    )


def without(rows, indices):
    return [row for i, row in enumerate(rows) if i not in indices]


def test_unlabelled_photos_change_nothing_for_the_others(tiny_catalogue):
    tiny_catalogue.change(unlabel)
    everything = read(tiny_catalogue)
    tiny_catalogue.write(without(tiny_catalogue.rows(), (3, 4, 5)))
    labelled = read(tiny_catalogue)
    assert everything.taxonomy == labelled.taxonomy
    rows = everything.manifest[everything.manifest["split"] != "none"].reset_index(drop=True)
    assert rows.equals(labelled.manifest)


def test_a_split_column_does_not_make_a_photo_labelled(tiny_catalogue):
    tiny_catalogue.change(unlabel)
    tiny_catalogue.change(
        lambda rows: [row.__setitem__(4, ["train", "valid", "test"][i % 3]) for i, row in enumerate(rows[1:])]
    )
    frame = read(tiny_catalogue, split_column="product").manifest
    assert frame["split"].iloc[2:5].tolist() == ["none"] * 3


def test_a_few_missing_photos_are_noted(tiny_catalogue):
    for photo in tiny_catalogue.photos[5:7]:
        photo.unlink()
    source = read(tiny_catalogue, max_unreadable=0.05)
    assert len(source.manifest) == 58
    assert "2 of 60 photos are missing" in source.notes[0]
    assert f"'photos/05.jpg' ({tiny_catalogue.table}, line 7)" in source.notes[0]


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


def test_paths_follow_the_repository_that_a_person_works_in(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "find_root", lambda: tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert config.data_path("a/b.csv") == tmp_path / "a/b.csv"
    monkeypatch.setenv("DVC_ROOT", "/home/me/repo")
    assert config.data_path("a/b.csv") == Path("/home/me/repo/a/b.csv")
    assert config.data_path("/photos/b.csv") == Path("/photos/b.csv")


def test_a_given_split_wins_over_groups_and_the_divided_groups_are_counted(tiny_catalogue):
    def edit(rows):
        rows[0].append("part")
        for i, row in enumerate(rows[1:]):
            row.append(["train", "valid", "test"][i % 3] if i < 30 else "train")

    tiny_catalogue.change(edit)
    source = read(tiny_catalogue, group_column="product", split_column="part")
    assert source.manifest["split"].tolist() == ["train", "valid", "test"] * 10 + ["train"] * 30
    counted = "10 of 20 groups of csv.group_column lie in several splits of csv.split_column"
    assert source.notes[-1] == f"{counted}, which are kept as they are, such as 'p0' (train, valid, test)"
    assert not any("several splits" in note for note in read(tiny_catalogue, group_column="product").notes)


def test_read_checks_the_source(tiny_catalogue):
    given = replace(SETTINGS, source="csv", csv=tiny_catalogue.settings, split=tiny_catalogue.split)
    assert len(prepare.read(given).manifest) == 60
    without_valid = replace(given, split=config.Split(valid=0.0, test=0.5, query=0.5, group_duplicates=True, seed=0))
    assert len(prepare.read(without_valid).manifest) == 60  # nothing can be validated
    without_test = replace(given, split=config.Split(valid=0.5, test=0.0, query=0.5, group_duplicates=True, seed=0))
    with pytest.raises(InputError, match=r"^no test image has a label: .* raise split\.test$"):
        prepare.read(without_test)
    without_train = replace(given, split=config.Split(valid=0.0, test=1.0, query=0.5, group_duplicates=True, seed=0))
    check_refused(lambda: prepare.read(without_train), "no train image has a label", "lower split.valid and split.test")


@pytest.mark.parametrize(("only", "missing"), [("train", "test"), ("test", "train"), ("valid", "train")])
def test_advice_on_a_given_split_names_its_column(tiny_catalogue, only, missing):
    tiny_catalogue.change(lambda rows: [row.__setitem__(4, only) for row in rows[1:]])
    table = replace(tiny_catalogue.settings, attributes=["colour"], split_column="product")
    given = replace(SETTINGS, source="csv", csv=table, split=tiny_catalogue.split)
    with pytest.raises(InputError, match=f"mark labelled photos as {missing} in the column 'product'"):
        prepare.read(given)


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
