"""A DARN table is read with exactly its labels, or refused in one sentence."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downloads import BYTES, check_any_bytes, darn, released_split, set_line
from m3lib.prepare import asen_split
from m3lib.prepare import darn as reader

TABLE = "labels.csv"
HEADER = ",".join(["path", *reader.ATTRIBUTES])


@pytest.fixture
def download(tmp_path):
    return darn(tmp_path / "set")


def test_blanks_a_mark_line_ends_and_quotes_change_nothing(download):
    before = download.read()
    rows = [line.split(",") for line in download.lines(TABLE)]
    rows[1:] = [[f'"{row[0]}"', *(f" {cell} " for cell in row[1:])] for row in rows[1:]]
    text = "\r\n".join(",".join(row) for row in rows)
    (download.folder / TABLE).write_bytes(b"\xef\xbb\xbf" + text.encode())
    after = download.read()
    assert after.manifest.equals(before.manifest)
    assert after.notes == before.notes


BAD = {  # the change of the table, words of the sentence beside the file's name
    "header only": (lambda lines: lines.__delitem__(slice(1, None)), ["empty"]),
    "other header": (set_line(1, ",".join(reversed(HEADER.split(",")))), ["line 1", f"must be {HEADER}"]),
    "too few values": (set_line(5, "pic/1/1.jpg,0,0"), ["line 5", "3 values", "10 columns"]),
    "a word": (set_line(5, "pic/1/1.jpg,0,0,red" + 6 * ",0"), ["line 5", "'clothes color'", "'red'", "-1 for unknown"]),
    "below -1": (set_line(5, "pic/1/1.jpg,0,-2" + 7 * ",0"), ["line 5", "'clothes button'", "'-2'"]),
    "out of range": (set_line(5, "pic/1/1.jpg,0,13" + 7 * ",0"), ["line 5", "value 13", "'clothes button'", "0 to 12"]),
    "other digits": (set_line(5, "pic/1/1.jpg,٣" + 8 * ",0"), ["line 5", "'clothes category'", "'٣'"]),
    "not UTF-8": (set_line(4, "pic/\udce9.jpg" + 9 * ",0"), ["line 4", "UTF-8"]),
    "no path": (set_line(5, " " + 9 * ",0"), ["line 5", "''", "inside"]),
    "a line end in a path": (set_line(5, '"pic/a\nb.jpg"' + 9 * ",0"), ["line 5", r"'pic/a\nb.jpg'", "inside"]),
    "fewer labels": (lambda lines: lines.append(re.sub(r"\d+$", "-1", lines[3])), ["line 182", "line above"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_one_sentence(download, case):
    change, words = BAD[case]
    download.edit(TABLE, change)
    download.check_refused(str(download.folder / TABLE), *words)


def test_a_released_row_of_an_unknown_attribute_is_refused(download):
    released_split(download)
    index = int(download.lines("query_test.txt")[2].split()[0])
    name = download.lines("filenames_test.txt")[index]
    attribute = next(n for n, a in enumerate(reader.ATTRIBUTES) if a not in download.labels[name])
    download.edit("query_test.txt", set_line(3, f"{index} {attribute} 0"))
    class_ = repr(f"{list(reader.ATTRIBUTES)[attribute]}: 0")
    download.check_refused("query_test.txt, line 3", repr(name), class_, "in labels.csv")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a table of ten photos and its bytes."""
    path = darn(tmp_path_factory.mktemp("small"), count=10).folder / TABLE
    return path, path.read_bytes()


def naive(path):
    """Return (photo, class ids) of each row."""
    lines = re.split(r"\r\n|\r|\n", path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode())
    for line in [line for line in lines if line.replace(",", " ").strip()][1:]:
        name, *cells = line.split(",")
        values = [int(cell.strip() or -1) for cell in cells]
        yield name, [sum(list(reader.ATTRIBUTES.values())[:n]) + v for n, v in enumerate(values) if v >= 0]


@settings(max_examples=400, deadline=None)
@given(edits=BYTES | st.binary(max_size=60).map(lambda tail: HEADER.encode() + b"\n" + tail))
def test_any_bytes_are_read_correctly_or_refused(small, edits):
    path, data = small

    def read():
        labels, _ = asen_split.by_photo(reader.read_labels(path), TABLE)
        return {} if b'"' in path.read_bytes() else labels  # the tests of csv tables cover quotes

    check_any_bytes({path: data}, path, edits, read, lambda: () if b'"' in path.read_bytes() else naive(path))
