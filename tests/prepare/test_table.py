"""A table and the photos that it names are read, or refused in one sentence on the line, column or setting."""

import pytest

from downloads import check_refused
from own_photos import read


def edit_cell(row: int, column: int, value: str):
    def edit(rows):
        rows[row][column] = value

    return edit


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


def test_windows_line_ends_a_mark_and_blank_lines_change_nothing(tiny_catalogue):
    plain = read(tiny_catalogue)
    text = tiny_catalogue.table.read_bytes().replace(b"\r\n", b"\n")
    tiny_catalogue.table.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n", 40) + b"\n\n")
    other = read(tiny_catalogue)
    assert other.taxonomy == plain.taxonomy
    assert other.manifest.equals(plain.manifest)
