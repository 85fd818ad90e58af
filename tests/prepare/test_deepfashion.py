"""DeepFashion's annotation files are read with exactly their labels and splits, or refused in one sentence."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downloads import (
    BYTES,
    CLOTH,
    CLOTH_FILE,
    DEEPFASHION,
    LABEL_FILE,
    PARTITION_FILE,
    TYPES,
    check_any_bytes,
    deepfashion,
    naive_lines,
    set_line,
)
from m3lib.prepare import deepfashion as reader
from m3lib.prepare.asen_split import by_photo

FILES = (CLOTH_FILE, LABEL_FILE, PARTITION_FILE)


@pytest.fixture
def download(tmp_path):
    return deepfashion(tmp_path / "set")


def read_classes(download):
    return reader.read_classes(download.folder / CLOTH_FILE)


# the classes of the five types


def test_the_classes_of_a_type_keep_their_order(download):
    taxonomy, class_ids = read_classes(download)
    assert taxonomy == DEEPFASHION
    assert [(taxonomy.class_name(m), taxonomy.attribute_of_class[m] + 1) for m in class_ids] == list(CLOTH)


def test_a_type_without_attributes_is_left_out(download):
    download.edit(CLOTH_FILE, lambda lines: lines.__setitem__(slice(None), [x for x in lines if not x.endswith("2")]))
    download.edit(CLOTH_FILE, set_line(1, "11"))
    taxonomy, class_ids = read_classes(download)
    assert taxonomy.names == ["texture", "shape", "part", "style"]
    assert [taxonomy.class_name(m) for m in class_ids] == [name for name, kind in CLOTH if kind != 2]


def test_the_second_class_of_a_name_gets_a_number(download):
    download.edit(CLOTH_FILE, set_line(8, "floral  print       1"))  # the name with other blanks
    taxonomy, class_ids = read_classes(download)
    assert taxonomy.attributes[0].classes == ("floral print", "floral print (1)", "polka dot 1")
    assert taxonomy.class_name(class_ids[5]) == "floral print (1)"


# layouts


def test_the_later_layout_of_the_download_reads_the_same(download):
    before = download.read()
    pixels = before.load(7)
    (download.folder / "Anno").rename(download.folder / "Anno_coarse")
    (download.folder / "Img").mkdir()
    shutil.move(download.folder / "img", download.folder / "Img/img")
    after = download.read()
    assert after.manifest.equals(before.manifest)
    assert np.array_equal(after.load(7), pixels)


def test_windows_line_ends_and_a_missing_last_one_change_nothing(download):
    before = download.read()
    for path in FILES:
        file = download.folder / path
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    after = download.read()
    assert after.taxonomy == before.taxonomy
    assert after.manifest.equals(before.manifest)


# bad files: the file, its change, words of the sentence beside the file's name

N = len(CLOTH)
GOOD = " ".join((["1", "-1", "0"] * N)[:N])
FIRST = "img/Dress_0/img_00000001.jpg"


def append(*texts: str):
    """Add rows and correct the number of rows."""

    def change(lines):
        lines.extend(texts)
        lines[0] = str(int(lines[0]) + len(texts))

    return change


BAD = {
    "no count": (CLOTH_FILE, set_line(1, "name  type"), ["line 1", "number of rows", "'name  type'"]),
    "long count": (CLOTH_FILE, set_line(1, "1" * 5000), ["line 1", "number of rows", "'111"]),
    "no rows": (CLOTH_FILE, lambda lines: lines.__setitem__(slice(None), ["0", "x"]), ["attribute"]),
    "empty": (CLOTH_FILE, lambda lines: lines.clear(), ["empty"]),
    "type 6": (CLOTH_FILE, set_line(5, "a-line     6"), ["line 5", "`name type`", "1 to 5", "a-line"]),
    "no name": (CLOTH_FILE, set_line(5, "   3"), ["line 5", "`name type`"]),
    "one class": (
        CLOTH_FILE,
        lambda lines: lines.__setitem__(slice(None), ["3", "h", "a 1", "b 2", "c 2"]),
        ["'texture'", "two"],
    ),
    "cut": (LABEL_FILE, lambda lines: lines.pop(), ["announces 90 rows, and 89 follow", "complete"]),
    "value 2": (LABEL_FILE, set_line(6, f"img/x.jpg {GOOD[:-2]}2"), ["line 6", "'2'", "1, -1 or 0"]),
    "few values": (LABEL_FILE, set_line(6, f"img/x.jpg {GOOD[:-2]}"), ["line 6", "13 values", "expected 14"]),
    "empty line": (LABEL_FILE, set_line(9, ""), ["line 9", "empty"]),
    "path upwards": (LABEL_FILE, set_line(6, f"img/../../x.jpg {GOOD}"), ["line 6", "'img/../../x.jpg'", "inside"]),
    "two labels": (LABEL_FILE, append(f"{FIRST} {'0 ' * N}"), ["line 93", repr(FIRST), "line above"]),
    "a word": (PARTITION_FILE, set_line(4, "img/x.jpg valid"), ["line 4", "`path part`", "train, val or test"]),
    "no part": (PARTITION_FILE, set_line(4, "img/x.jpg"), ["line 4", "`path part`"]),
    "train and test": (PARTITION_FILE, append(f"{FIRST} test"), ["line 93", repr(FIRST), "line above"]),
    "not UTF-8": (PARTITION_FILE, set_line(5, "img/\udce9.jpg train"), ["line 5", "UTF-8"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_sentence(download, case):
    path, change, words = BAD[case]
    download.edit(path, change)
    download.check_refused(str(download.folder / path), *words)


def test_a_photo_outside_the_partition_is_refused(download):
    download.edit(PARTITION_FILE, lambda lines: lines.pop(5))
    download.edit(PARTITION_FILE, set_line(1, "89"))
    download.check_refused("partition", repr(list(download.labels)[3]))
    (download.folder / PARTITION_FILE).unlink()
    download.check_refused(PARTITION_FILE, "released split")


def test_a_name_that_is_too_long_for_a_file_counts_as_missing(download):
    name = "img/" + 300 * "x" + ".jpg"
    download.edit(LABEL_FILE, append(f"{name} {GOOD}"))
    download.edit(PARTITION_FILE, append(f"{name} train"))
    assert "1 of 90 photos are missing and left out" in download.read(max_unreadable=0.02).notes[2]


# any bytes


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a download of eight photos, and the bytes of its files."""
    download = deepfashion(tmp_path_factory.mktemp("small"), count=8)
    return download, {download.folder / path: (download.folder / path).read_bytes() for path in FILES}


def naive_labels(download):
    """Return (photo, class names) of each row."""
    classes = [line.rsplit(None, 1) for line in naive_lines(download.folder / CLOTH_FILE, 2)]
    for line in naive_lines(download.folder / LABEL_FILE, 2):
        path, *values = line.rsplit(None, len(classes))
        rows = zip(classes, values, strict=True)
        yield path, {(TYPES[int(k) - 1], " ".join(name.split())) for (name, k), value in rows if int(value) == 1}


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from([CLOTH_FILE, LABEL_FILE]), edits=BYTES)
def test_any_bytes_for_labels_are_read_correctly_or_refused(small, path, edits):
    download, files = small

    def read():
        taxonomy, class_ids = read_classes(download)
        labels, _ = by_photo(reader.read_labels(download.folder / LABEL_FILE, class_ids), LABEL_FILE)
        names = [tuple(taxonomy.full_name(m).split(": ", 1)) for m in range(taxonomy.num_classes)]
        return {photo: {names[m] for m in ids} for photo, ids in labels.items()}

    check_any_bytes(files, download.folder / path, edits, read, lambda: naive_labels(download))


@settings(max_examples=200, deadline=None)
@given(edits=BYTES)
def test_any_bytes_for_a_partition_are_read_correctly_or_refused(small, edits):
    download, files = small
    path = download.folder / PARTITION_FILE

    def naive():
        for line in naive_lines(path, 2):
            photo, part = line.rsplit(None, 1)
            yield photo, "valid" if part == "val" else part

    check_any_bytes(files, path, edits, lambda: by_photo(reader.read_partition(path), PARTITION_FILE)[0], naive)
