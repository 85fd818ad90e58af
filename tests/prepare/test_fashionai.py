"""FashionAI's label.csv is read with exactly its labels, or refused in one sentence."""

import shutil

import pytest
from hypothesis import given, settings

from downloads import BYTES, check_any_bytes, fashionai, labels_of, naive_lines, released_split, set_line
from m3lib import config
from m3lib.prepare import fashionai as reader
from m3lib.prepare.asen_split import by_photo

ONE, TWO = (f"{name}/Annotations/label.csv" for name in reader.FOLDERS)
SPLIT = config.Split(valid=0.3, test=0.35, query=0.3, group_duplicates=True, seed=0)


@pytest.fixture
def download(tmp_path):
    return fashionai(tmp_path / "set", count=200)


def test_one_of_the_two_folders_is_enough(download):
    (download.folder / TWO).unlink()
    source = download.read(split=SPLIT)
    assert labels_of(source) == {name: own for name, own in download.labels.items() if name.startswith(ONE[:27])}
    assert len(source.manifest) == 104
    assert f"the photos of {TWO[:27]} are left out: it has no Annotations/label.csv" in source.notes
    shutil.rmtree(download.folder / TWO[:27])
    only_one = download.read(split=SPLIT)
    assert only_one.manifest.equals(source.manifest)
    assert not any("left out" in note for note in only_one.notes)
    released_split(download)
    download.check_refused(f"{TWO} is missing", f"{TWO[:27]}/Images is missing")


def test_blanks_and_line_ends_change_nothing(download):
    before = download.read(split=SPLIT)
    path = download.folder / ONE
    path.write_bytes(path.read_bytes().replace(b",", b" , ").replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    assert download.read(split=SPLIT).manifest.equals(before.manifest)


SKIRT = "Images/skirt_length_labels/x.jpg,skirt_length_labels"
BAD = {  # the change of the first label.csv, words of the sentence beside the file's name
    "a header": (lambda lines: lines.insert(0, "path,attribute_labels,string"), ["line 1", "'attribute_labels'"]),
    "two fields": (set_line(4, SKIRT), ["line 4", "`path,attribute_labels,letters`", "2 fields"]),
    "attribute": (set_line(4, "Images/x.jpg,skirt_labels,yn"), ["line 4", "'skirt_labels'", "skirt_length_labels"]),
    "letters missing": (set_line(4, f"{SKIRT},nnnyn"), ["line 4", "'nnnyn'", "6 letters", "'skirt length'"]),
    "not UTF-8": (set_line(4, f"\udce9{SKIRT},nnnnny"), ["line 4", "UTF-8"]),
    "no y": (set_line(4, f"{SKIRT},nnmnnn"), ["line 4", "one y"]),
    "other letter": (set_line(4, f"{SKIRT},nnynnx"), ["line 4", "'nnynnx'", "y, m, n"]),
    "other folder": (set_line(4, f"Images/../../{SKIRT},nnynnn"), ["line 4", "inside"]),
    "other class": (
        lambda lines: lines.extend(f"{SKIRT},{'n' * i}y{'n' * (5 - i)}" for i in range(2)),
        ["line 106", "'Images/skirt_length_labels/x.jpg'", " above"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_one_sentence(download, case):
    change, words = BAD[case]
    download.edit(ONE, change)
    download.check_refused(str(download.folder / ONE), *words)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a table of eight photos and its bytes."""
    path = fashionai(tmp_path_factory.mktemp("small"), count=16).folder / ONE
    return path, path.read_bytes()


def naive(path):
    """Return (photo, [class id]) of each row."""
    names = list(reader.ATTRIBUTES)
    counts = [classes.count("|") + 1 for classes in reader.ATTRIBUTES.values()]
    for line in naive_lines(path):
        name, attribute, letters = (field.strip() for field in line.split(","))
        n = names.index(attribute.removesuffix("_labels").replace("_", " "))
        yield name, [sum(counts[:n]) + letters.index("y")]


@settings(max_examples=400, deadline=None)
@given(edits=BYTES)
def test_any_bytes_are_read_correctly_or_refused(small, edits):
    path, data = small
    check_any_bytes({path: data}, path, edits, lambda: by_photo(reader.read_labels(path), ONE)[0], lambda: naive(path))


def test_a_byte_order_mark_is_no_part_of_the_first_photos_name(download):
    """Excel and Notepad write one; the first photo was dropped as missing."""
    before = download.read(split=SPLIT)
    for file, encoding in ((ONE, "utf-8-sig"), (TWO, "utf-16")):
        path = download.folder / file
        path.write_bytes(path.read_text().encode(encoding))
    assert download.read(split=SPLIT).manifest.equals(before.manifest)
