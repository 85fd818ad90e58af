"""Photos are found by the names in a table, also in another spelling; what can't be found is hinted at."""

import shutil
import unicodedata
from pathlib import Path
from urllib.parse import quote

import pytest

from downloads import check_refused
from m3lib.prepare import photo_names
from own_photos import open_table


def rename_photo(tiny_catalogue, number: int, name: str) -> None:
    """Give a photo another name; the table still has the old one."""
    new = tiny_catalogue.table.parent / "photos" / name
    (tiny_catalogue.table.parent / f"photos/{number:02}.jpg").rename(new)


def write_cell(tiny_catalogue, row: int, cell: str) -> None:
    tiny_catalogue.change(lambda rows: rows[row].__setitem__(0, cell))


CAFE = unicodedata.normalize("NFC", "photos/café é.jpg")
SPELLINGS = {  # the file, the cell
    "backslashes": ("photos/a.jpg", "photos\\a.jpg"),
    "backslashes and a dot": ("photos/a.jpg", ".\\photos\\a.jpg"),
    "composed": (unicodedata.normalize("NFD", CAFE), CAFE),
    "decomposed": (CAFE, unicodedata.normalize("NFD", CAFE)),
    "percent signs": (CAFE, quote(CAFE)),
    "percent signs of NFD": (CAFE, quote(unicodedata.normalize("NFD", CAFE))),
    "letter case": ("photos/IMG_1.JPG", "Photos/img_1.jpg"),
    "case and backslashes": ("photos/IMG_1.JPG", "PHOTOS\\img_1.jpg"),
    "an invisible character": ("photos/a.jpg", "photos/a.jpg\u200b"),
    "a blank in the file": ("photos/a.jpg ", "photos/a.jpg"),
    "a file address": ("photos/a.jpg", "file://{folder}/photos/a.jpg"),
    "an absolute path": ("photos/a.jpg", "{folder}/photos/../photos/a.jpg"),
    "an absolute path in another case": ("photos/a.jpg", "{folder}/photos/A.JPG"),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_a_photo_is_found_in_another_spelling(tiny_catalogue, case):
    file, cell = SPELLINGS[case]
    rename_photo(tiny_catalogue, 7, Path(file).name)
    write_cell(tiny_catalogue, 8, cell.format(folder=tiny_catalogue.table.parent))
    table = open_table(tiny_catalogue)
    assert len(table.names) == 60
    assert table.names[7] == file
    if case == "an absolute path":
        assert table.notes == []
    else:
        (note,) = table.notes
        assert note.startswith("1 photos are found under another spelling of their name: ")
        assert note.endswith(f"on line 9 is {file!r}")


def test_a_folder_may_be_reached_through_a_link(tiny_catalogue, tmp_path_factory):
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    link.symlink_to(tiny_catalogue.table.parent)
    for row, folder in [(1, link), (2, tiny_catalogue.table.parent)]:
        write_cell(tiny_catalogue, row, f"{folder}/photos/{row - 1:02}.jpg")
    table = open_table(tiny_catalogue, table=str(link / "table.csv"))
    assert table.names[:2].tolist() == ["photos/00.jpg", "photos/01.jpg"]


def test_what_exists_as_written_comes_before_every_other_spelling(tiny_catalogue):
    photos = tiny_catalogue.table.parent / "photos"
    for name in ("A.jpg", "a.jpg", "a%20b.jpg", "a b.jpg"):
        shutil.copy(tiny_catalogue.photos[0], photos / name)
    for row, cell in enumerate(["photos\\A.jpg", "photos/a.jpg", "photos/a%20b.jpg"], 1):
        write_cell(tiny_catalogue, row, cell)
    assert open_table(tiny_catalogue).names[:3].tolist() == ["photos/A.jpg", "photos/a.jpg", "photos/a%20b.jpg"]
    write_cell(tiny_catalogue, 1, "PHOTOS/A.JPG")  # two files fit: neither is taken
    check_refused(lambda: open_table(tiny_catalogue), "1 of 60 photos are missing", "'PHOTOS/A.JPG'", "line 2")


@pytest.mark.parametrize("cell", ["photos\\03.jpg", "Photos/03.JPG", "{folder}/photos/03.jpg", "photos/%30%33.jpg"])
def test_two_spellings_of_one_photo_are_one_photo(tiny_catalogue, cell):
    write_cell(tiny_catalogue, 8, cell.format(folder=tiny_catalogue.table.parent))
    check_refused(lambda: open_table(tiny_catalogue), "line 9: the photo 'photos/03.jpg' is already on line 5")


@pytest.mark.parametrize("cell", ["/etc/passwd", "{folder}/../x.jpg", "../x.jpg", "photos/../../x.jpg"])
def test_no_path_leads_outside(tiny_catalogue, cell):
    folder = tiny_catalogue.table.parent
    shutil.copy(tiny_catalogue.photos[0], folder.parent / "x.jpg")
    write_cell(tiny_catalogue, 8, cell.format(folder=folder))
    check_refused(lambda: open_table(tiny_catalogue, max_unreadable=0.5), "line 9", "outside the table's folder")


@pytest.mark.parametrize("cell", ["photos\\..\\..\\x.jpg", "..%2Fx.jpg", "%2e%2e/x.jpg", "..\\x.jpg"])
def test_no_other_spelling_leads_outside(tiny_catalogue, cell):
    shutil.copy(tiny_catalogue.photos[0], tiny_catalogue.table.parent.parent / "x.jpg")
    write_cell(tiny_catalogue, 8, cell)
    check_refused(lambda: open_table(tiny_catalogue), "1 of 60 photos are missing", repr(cell))


HINTS = {
    "https://shop.example/a/03.jpg": "'https://shop.example/a/03.jpg' ({table}, line 2), which is an address: download",
    "//cdn.example/03.jpg": "which is an address",
    "www.example.com/03.jpg": "which is an address",
    "s3://bucket/03.jpg": "which is an address",
    "C:\\Users\\me\\photos\\03.jpg": "which is a path on a Windows drive",
    "d:/photos/03.jpg": "which is a path on a Windows drive",
    "\\\\server\\photos\\03.jpg": "which is a path on a Windows drive",
    "nothing": "line 2)",
    "03": "there is 'photos/03.jpg': name the photos with their folder and extension",
    "03.jpg": "there is 'photos/03.jpg'",
    "photos/03": "there is 'photos/03.jpg'",
    "photos/03.png": "there is 'photos/03.jpg'",
    "other/03.JPEG": "there is 'photos/03.jpg'",
}


@pytest.mark.parametrize("cell", HINTS)
def test_a_missing_photo_is_hinted_at(tiny_catalogue, cell):
    tiny_catalogue.change(lambda rows: rows.pop(4))
    write_cell(tiny_catalogue, 1, cell)
    hint = HINTS[cell].format(table=tiny_catalogue.table)
    check_refused(lambda: open_table(tiny_catalogue), "1 of 59 photos are missing", "images.max_unreadable", hint)


def test_a_folder_is_listed_once_and_only_if_a_name_is_not_as_written(tiny_catalogue, monkeypatch):
    listed = []
    real = photo_names.os.listdir
    monkeypatch.setattr(photo_names.os, "listdir", lambda folder: listed.append(Path(folder).name) or real(folder))
    assert len(open_table(tiny_catalogue).names) == 60
    assert listed == []
    tiny_catalogue.change(lambda rows: [row.__setitem__(0, row[0].upper()) for row in rows[1:]])
    assert len(open_table(tiny_catalogue).names) == 60
    assert set(listed) == {tiny_catalogue.table.parent.name, "photos"}
    assert len(listed) <= 4  # once for each form of a name
