"""A FashionAI download is read with exactly its labels and splits, or refused in one sentence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downloads import (
    EDITS,
    apply,
    check_words,
    fashionai,
    labels_of,
    released_split,
    resolve,
    rows_of,
    set_line,
)
from m3lib import config
from m3lib.errors import InputError
from m3lib.prepare import fashionai as reader

ONE, TWO = (f"{name}/Annotations/label.csv" for name in reader.FOLDERS)
SPLIT = config.Split(valid=0.3, test=0.35, query=0.3)


@pytest.fixture
def download(tmp_path):
    return fashionai(tmp_path / "set", count=200)


# what is read


def test_one_of_the_two_folders_is_enough(download):
    (download.folder / TWO).unlink()
    source = download.read(split=SPLIT)
    assert labels_of(source) == {name: own for name, own in download.labels.items() if name.startswith(ONE[:27])}
    assert len(source.manifest) == 104


@pytest.mark.parametrize("whole", [True, False])
def test_doubtful_photos_leave_train_alone(download, whole):
    if whole:
        released_split(download)
    kept, dropped = (rows_of(download.read(maybe=maybe, split=SPLIT)) for maybe in ("keep", "drop"))
    gone = set(kept) - set(dropped)
    assert gone == {name for name in download.maybe if kept[name].split == "train"}
    assert len(gone) > 5
    assert any(row.split != "train" and name in download.maybe for name, row in dropped.items())
    assert dropped == {name: row for name, row in kept.items() if name not in gone}
    notes = download.read(maybe="drop", split=SPLIT).notes
    total = len([row for row in kept.values() if row.split == "train"]) if whole else 200
    assert any(note.startswith(f"{len(gone)} of {total} photos are left out") and "doubtful" in note for note in notes)


def test_doubtful_photos_can_not_be_dropped_unknown(download):
    released_split(download)
    for path in (ONE, TWO):
        (download.folder / path).unlink()
    with pytest.raises(InputError) as raised:
        download.read(maybe="drop")
    check_words(raised, ["benchmark.maybe", str(download.folder)])


def test_equal_rows_are_noted_and_line_ends_change_nothing(download):
    before = download.read(split=SPLIT)
    lines = download.lines(ONE)
    download.edit(ONE, lambda rows: rows.extend([lines[3], f" ./{lines[4].replace(',', ' , ')}"]))
    path = download.folder / ONE
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    after = download.read(split=SPLIT)
    assert after.manifest.equals(before.manifest)
    assert after.notes == (f"2 rows of {ONE} repeat another", *before.notes)


# bad files: the change of the first label.csv, words of the sentence beside the file's name

SKIRT = "Images/skirt_length_labels/x.jpg,skirt_length_labels"
FIRST = "Images/skirt_length_labels/000.jpg,skirt_length_labels"
BAD = {
    "empty": (lambda lines: lines.clear(), ["empty"]),
    "empty line": (set_line(4, " "), ["line 4", "empty"]),
    "a header": (lambda lines: lines.insert(0, "path,attribute_labels,string"), ["line 1", "'attribute_labels'"]),
    "two fields": (set_line(4, SKIRT), ["line 4", "`path,attribute_labels,letters`", "2 fields"]),
    "four fields": (set_line(4, f"{SKIRT},y,nnnnn"), ["line 4", "4 fields"]),
    "semicolons": (set_line(4, f"{SKIRT},nnnnyn".replace(",", ";")), ["line 4", "1 fields"]),
    "attribute": (set_line(4, "Images/x.jpg,skirt_labels,yn"), ["line 4", "'skirt_labels'", "skirt_length_labels"]),
    "letters missing": (set_line(4, f"{SKIRT},nnnyn"), ["line 4", "'nnnyn'", "6 letters", "'skirt length'"]),
    "a letter too many": (set_line(4, f"{SKIRT},nnnynnn"), ["line 4", "6 letters"]),
    "no y": (set_line(4, f"{SKIRT},nnmnnn"), ["line 4", "one y"]),
    "two y": (set_line(4, f"{SKIRT},nynnyn"), ["line 4", "one y"]),
    "other letter": (set_line(4, f"{SKIRT},nnynnx"), ["line 4", "'nnynnx'", "y, m, n"]),
    "capital": (set_line(4, f"{SKIRT},NNYNNN"), ["line 4", "y, m, n"]),
    "no path": (set_line(4, ",skirt_length_labels,nnynnn"), ["line 4", "''", "inside"]),
    "upwards": (set_line(4, f"../{SKIRT},nnynnn"), ["line 4", "'../Images/", "inside"]),
    "absolute": (set_line(4, f"/{SKIRT},nnynnn"), ["line 4", "'/Images/", "inside"]),
    "other folder": (set_line(4, f"Images/../../{SKIRT},nnynnn"), ["line 4", "inside"]),
    "other class": (
        lambda lines: lines.extend(f"{FIRST},{'n' * i}y{'n' * (5 - i)}" for i in range(2)),
        ["line 10", "/Images/skirt_length_labels/000.jpg'", " above"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_one_sentence(download, case):
    change, words = BAD[case]
    download.edit(ONE, change)
    with pytest.raises(InputError) as raised:
        download.read(split=SPLIT)
    check_words(raised, [str(download.folder / ONE), *words])


# any bytes


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    made = fashionai(tmp_path_factory.mktemp("small"), count=16)
    path = made.folder / ONE
    return path, path.read_bytes()


def naive(data):
    """Path to attribute and place of the y, by hand."""
    found = {}
    for line in data.decode().split("\n"):
        if line.strip():
            path, attribute, letters = (part.strip() for part in line.split(","))
            found.setdefault(resolve(path), []).append((attribute, letters.index("y"), "m" in letters))
    return found


@settings(max_examples=400, deadline=None)
@given(edits=EDITS | st.binary(max_size=60))
def test_any_table_is_read_rightly_or_refused(small, edits):
    path, data = small
    path.write_bytes(edits if isinstance(edits, bytes) else apply(data, edits))
    try:
        labels, doubtful, repeated = reader.read_annotations(path, "top")
    except InputError as error:
        check_text(str(error), path)
        return
    expected = naive(path.read_bytes())
    assert repeated == sum(len(own) - 1 for own in expected.values())
    assert doubtful == {f"top/{name}" for name, own in expected.items() if any(maybe for _, _, maybe in own)}
    names = [name.replace(" ", "_") + "_labels" for name in reader.ATTRIBUTES]
    found = {}
    for name, (m,) in labels.items():
        n = int(reader.TAXONOMY.attribute_of_class[m])
        found[name.removeprefix("top/")] = {(names[n], m - int(reader.TAXONOMY.offsets[n]))}
    assert found == {name: {(a, y) for a, y, _ in own} for name, own in expected.items()}


def check_text(text, path):
    assert str(path) in text
    assert text.isprintable()
