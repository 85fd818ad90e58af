"""A DARN download is read with exactly its labels and splits, or refused in one sentence."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downloads import (
    EDITS,
    apply,
    check_drawn_roles,
    check_words,
    darn_set,
    labels_of,
    released_split,
    resolve,
    rows_of,
    set_line,
)
from m3lib import config
from m3lib.data.manifest import assign_splits
from m3lib.errors import InputError
from m3lib.prepare import darn as reader
from m3lib.prepare import public

TABLE = "labels.csv"


@pytest.fixture
def download(tmp_path):
    return darn_set(tmp_path / "set")


def expected_labels(download, rows, protocol):
    """Labels of every photo; under `row`, of valid and test that of the row alone."""
    expected = download.labelled
    if protocol != "row":
        return expected
    return expected | {name: {row.attribute: [row.class_]} for name, row in rows.items() if row.class_}


# what is read


def test_without_the_released_split_one_is_drawn(download):
    source = download.read(protocol="pair")
    assert [len(a.classes) for a in source.taxonomy.attributes] == [20, 13, 55, 7, 28, 11, 26, 8, 17]
    assert labels_of(source) == download.labelled
    names = list(download.labelled)
    found = rows_of(source)
    assert [found[name].split for name in names] == assign_splits(names, download.settings().split).tolist()
    check_drawn_roles(source, 0.2)
    held_out = {name: row for name, row in found.items() if row.split != "train"}
    assert all(download.labels[name][row.attribute] == [row.class_] for name, row in held_out.items())
    assert source.notes[0] == "1 of 180 photos in labels.csv have no label"
    assert source.notes[1].startswith("no released split files")


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("form", [{}, {"end": "\r\n", "trailing": "\t \t", "last": False}])
@pytest.mark.parametrize(
    ("protocol", "relevance"), [("published", "pair"), ("row", "pair"), ("pair", "pair"), ("any", "any")]
)
def test_the_released_split_is_followed(download, form, train, protocol, relevance):
    expected = released_split(download, train=train, **form)
    source = download.read(protocol=protocol)
    protocol = "row" if protocol == "published" else protocol
    assert rows_of(source) == expected
    assert labels_of(source) == expected_labels(download, expected, protocol)
    assert source.relevance == relevance
    assert source.notes[-1] == f"protocol: {protocol}"


def test_the_released_split_is_enough_without_the_table(download):
    expected = released_split(download)
    (download.folder / TABLE).unlink()
    source = download.read(protocol="pair")
    assert rows_of(source) == expected
    assert labels_of(source) == expected_labels(download, expected, "row")
    (download.folder / "filenames_train.txt").unlink()
    with pytest.raises(InputError) as raised:
        download.read()
    check_words(raised, [str(download.folder), "label_train.txt without filenames_train.txt"])


def test_labels_of_train_alone_make_no_split(download):
    released_split(download)
    for split in ("valid", "test"):
        for kind in ("filenames", "query", "candidate"):
            (download.folder / f"{kind}_{split}.txt").unlink()
    (download.folder / TABLE).unlink()
    with pytest.raises(InputError) as raised:
        download.read()
    check_words(raised, [str(download.folder), "no split files", "no labels"])


def test_a_share_of_the_photos(download):
    split = config.Split(valid=0.3, test=0.3, query=0.5)
    whole = download.read(protocol="pair", split=split)
    source = download.read(protocol="pair", split=split, share=0.8)
    names = set(source.manifest["image"])
    assert 0.65 < len(names) / 179 < 0.95
    gone = [row.role for name, row in rows_of(whole).items() if name not in names]
    assert set(gone) == {"", "query", "candidate"}
    assert rows_of(source) == {name: row for name, row in rows_of(whole).items() if name in names}
    assert f"{len(names)} of 179 photos are used (benchmark.share): results can't be compared" in source.notes


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


# awkward photos


def test_missing_photos_are_counted_up_to_the_limit(download):
    released_split(download)
    gone = [list(download.labelled)[i] for i in range(0, 179, 18)]  # addresses die
    for name in gone:
        (download.folder / name).unlink()
    source = download.read(max_bad=0.06, protocol="pair")
    assert set(source.manifest["image"]) == set(download.labelled) - set(gone)
    assert f"10 of 179 photos are missing and left out, the first is '{download.folder}/pic/" in source.notes[-2]
    with pytest.raises(InputError) as raised:
        download.read(max_bad=0.05, protocol="pair")
    check_words(raised, ["10 of 179", str(download.folder), "images.max_bad = 0.05", "/pic/"])


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


def test_bytes_that_are_not_utf8_are_one_sentence(download):
    path = download.folder / TABLE
    path.write_bytes(path.read_bytes().replace(b"\npic", b"\np\xe9c", 1))
    with pytest.raises(InputError) as raised:
        download.read()
    check_words(raised, [str(path), "line 2", "UTF-8"])


# a released split that does not fit


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


def test_a_photo_in_train_and_valid_is_refused(download):
    released_split(download)
    name = download.lines("filenames_valid.txt")[3]
    download.edit("filenames_train.txt", set_line(5, name))
    with pytest.raises(InputError) as raised:
        download.read()
    check_words(raised, [f"{download.folder / 'filenames_train.txt'}, line 5", repr(name), "valid as well"])


# what is there


def test_a_survey_names_every_file_and_where_it_is_had(download, tmp_path):
    text, complete = public.survey(reader.DATASET, tmp_path / "nothing")
    assert not complete
    for word in ("labels.csv or label_train.txt", " pic:", "filenames_test.txt"):
        assert any(line.startswith("  missing") and word in line for line in text.splitlines()), word
    for word in (str(tmp_path / "nothing"), "request to the authors", "github.com/Maryeon/asen", "the 2 missing"):
        assert word in text
    text, complete = public.survey(reader.DATASET, download.folder)
    assert complete
    assert "-S source=darn" in text
    released_split(download)
    (download.folder / TABLE).unlink()
    assert public.survey(reader.DATASET, download.folder)[1]
    (download.folder / "label_train.txt").unlink()
    assert not public.survey(reader.DATASET, download.folder)[1]


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
