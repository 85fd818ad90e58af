"""A DARN download is read with exactly its labels and splits, or refused in one sentence."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downloads import (
    EDITS,
    apply,
    check_words,
    darn_set,
    released_split,
    resolve,
    set_line,
)
from m3lib.errors import InputError
from m3lib.prepare import darn as reader

TABLE = "labels.csv"


@pytest.fixture
def download(tmp_path):
    return darn_set(tmp_path / "set")


# what is read


def test_equal_rows_are_noted(download):
    before = download.read()
    lines = download.lines(TABLE)
    download.edit(TABLE, lambda rows: rows.extend([lines[3], f"./{lines[4].replace(',-1', ',')}"]))
    after = download.read()
    assert after.manifest.equals(before.manifest)
    assert after.notes == ("2 rows of labels.csv repeat another", *before.notes)


def test_blanks_a_mark_line_ends_and_quotes_change_nothing(download):
    before = download.read()
    rows = [line.split(",") for line in download.lines(TABLE)]
    rows[1:] = [[f'"{row[0]}"', *(f" {cell} " for cell in row[1:])] for row in rows[1:]]
    text = "\r\n".join(",".join(row) for row in rows)
    (download.folder / TABLE).write_bytes(b"\xef\xbb\xbf" + text.encode())
    after = download.read()
    assert after.manifest.equals(before.manifest)
    assert after.notes == before.notes


# bad tables: the change, words of the sentence beside the file's name

HEADER = ",".join(["path", *reader.ATTRIBUTES])


def add(*rows: str):
    return lambda lines: lines.extend(rows)


BAD = {
    "empty": (lambda lines: lines.clear(), ["empty"]),
    "header only": (lambda lines: lines.__delitem__(slice(1, None)), ["empty"]),
    "no header": (lambda lines: lines.pop(0), ["line 1"]),
    "other order": (set_line(1, ",".join(["path", *reversed(reader.ATTRIBUTES)])), ["line 1", f"must be {HEADER}"]),
    "semicolons": (
        lambda lines: lines.__setitem__(slice(None), [line.replace(",", ";") for line in lines]),
        ["line 1", "must be path,clothes category,"],
    ),
    "too few values": (set_line(5, "pic/1/1.jpg,0,0"), ["line 5", "3 values", "10 columns"]),
    "too many values": (set_line(5, "pic/1/1.jpg" + 10 * ",0"), ["line 5", "11 values", "10 columns"]),
    "a word": (set_line(5, "pic/1/1.jpg,0,0,red" + 6 * ",0"), ["line 5", "'clothes color'", "'red'", "-1 for unknown"]),
    "a fraction": (set_line(5, "pic/1/1.jpg,0,0,1.0" + 6 * ",0"), ["line 5", "'clothes color'", "'1.0'"]),
    "below -1": (set_line(5, "pic/1/1.jpg,0,-2" + 7 * ",0"), ["line 5", "'clothes button'", "'-2'"]),
    "out of range": (set_line(5, "pic/1/1.jpg,0,13" + 7 * ",0"), ["line 5", "value 13", "'clothes button'", "0 to 12"]),
    "too long": (set_line(5, "pic/1/1.jpg,00000000003" + 8 * ",0"), ["line 5", "'clothes category'", "number"]),
    "other digits": (set_line(5, "pic/1/1.jpg,٣" + 8 * ",0"), ["line 5", "'clothes category'", "'٣'"]),
    "no path": (set_line(5, " " + 9 * ",0"), ["line 5", "''", "inside"]),
    "upwards": (set_line(5, "pic/../../x" + 9 * ",0"), ["line 5", "'pic/../../x'", "inside"]),
    "absolute": (set_line(5, "/pic/1.jpg" + 9 * ",0"), ["line 5", "'/pic/1.jpg'", "inside"]),
    "backslash": (set_line(5, "pic\\1.jpg" + 9 * ",0"), ["line 5", "inside"]),
    "a line end in a path": (set_line(5, '"pic/a\nb.jpg"' + 9 * ",0"), ["line 5", r"'pic/a\nb.jpg'", "inside"]),
    "open quote": (set_line(5, '"pic/1.jpg' + 9 * ",0"), ["line 5", "quotes"]),
    "twice, otherwise": (add("pic/x" + 9 * ",0", "pic/x,1" + 8 * ",0"), ["line 183", "'pic/x'", "line above"]),
    "twice, fewer": (add("pic/x" + 9 * ",0", "pic/x,-1" + 8 * ",0"), ["line 183", "'pic/x'", "line above"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_one_sentence(download, case):
    change, words = BAD[case]
    download.edit(TABLE, change)
    with pytest.raises(InputError) as raised:
        download.read()
    check_words(raised, [str(download.folder / TABLE), *words])


@pytest.mark.parametrize("known", [True, False])
def test_a_released_row_that_contradicts_the_table_is_refused(download, known):
    """Another class than the table's, or one of an attribute that the table knows nothing of."""
    released_split(download)
    index, attribute, value = map(int, download.lines("query_test.txt")[2].split())
    name = download.lines("filenames_test.txt")[index]
    if known:
        value += 1
    else:
        attribute = next(n for n, a in enumerate(reader.ATTRIBUTES) if a not in download.labels[name])
        value = 0
    download.edit("query_test.txt", set_line(3, f"{index} {attribute} {value}"))
    with pytest.raises(InputError) as raised:
        download.read()
    told = f"{list(reader.ATTRIBUTES)[attribute]}: {value}"
    check_words(raised, [f"{download.folder / 'query_test.txt'}, line 3", repr(name), repr(told), "in labels.csv"])


# any bytes


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    made = darn_set(tmp_path_factory.mktemp("small"), count=10)
    path = made.folder / TABLE
    return path, path.read_bytes()


def naive(data):
    """Photo to a number for each attribute, -1 where there is none, by hand."""
    lines = [line for line in re.split(r"\r\n|\r|\n", data.removeprefix(b"\xef\xbb\xbf").decode()) if line]
    found = {}
    for line in lines[1:]:
        path, *cells = line.split(",")
        found.setdefault(resolve(path), set()).add(tuple(int(cell.strip() or -1) for cell in cells))
    return found


@settings(max_examples=400, deadline=None)
@given(edits=EDITS | st.binary(max_size=60).map(lambda tail: HEADER.encode() + b"\n" + tail) | st.binary(max_size=60))
def test_any_table_is_read_rightly_or_refused(small, edits):
    path, data = small
    path.write_bytes(edits if isinstance(edits, bytes) else apply(data, edits))
    try:
        labels, _ = reader.read_labels(path)
    except InputError as error:
        check_text(str(error), path)
        return
    if b'"' in path.read_bytes():  # quoting is for `tables`, whose tests have it
        return
    found = {}
    for name, ids in labels.items():
        row = [-1] * 9
        for m in ids:
            n = int(reader.TAXONOMY.attribute_of_class[m])
            row[n] = m - int(reader.TAXONOMY.offsets[n])
        found[name] = {tuple(row)}
    assert found == naive(path.read_bytes())


def check_text(text, path):
    assert str(path) in text
    assert text.isprintable()
