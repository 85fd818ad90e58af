"""Any bytes in DeepFashion's annotation files are read as a naive parser reads them, or refused in one sentence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downloads import (
    BOX_FILE,
    CLOTH_FILE,
    EDITS,
    LABEL_FILE,
    OFFICIAL,
    PARTITION_FILE,
    TYPES,
    apply,
    deepfashion,
    read_labels,
    resolve,
)
from m3lib.errors import InputError
from m3lib.prepare import deepfashion as reader


def naive_rows(data):
    lines = data.split(b"\n")[2:]
    return [text for line in lines if (text := line.decode()).strip()]


def naive_labels(download):
    """Photo to names of classes, by hand."""
    classes = [line.rsplit(None, 1) for line in naive_rows((download.folder / CLOTH_FILE).read_bytes())]
    found = {}
    for line in naive_rows((download.folder / LABEL_FILE).read_bytes()):
        path, *values = line.rsplit(None, len(classes))
        own = {
            (TYPES[int(kind) - 1], " ".join(name.split()))
            for (name, kind), value in zip(classes, values, strict=True)
            if int(value) == 1
        }
        found.setdefault(resolve(path), []).append(own)
    assert all(own == every[0] for every in found.values() for own in every)
    return {path: every[0] for path, every in found.items()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Eight photos, and the bytes of the files."""
    made = deepfashion(tmp_path_factory.mktemp("small"), count=8)
    files = {path: (made.folder / path).read_bytes() for path in (CLOTH_FILE, LABEL_FILE, PARTITION_FILE, BOX_FILE)}
    return made, files


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from([CLOTH_FILE, LABEL_FILE]), edits=EDITS | st.binary(max_size=60))
def test_any_labels_are_read_rightly_or_refused(small, path, edits):
    made, files = small
    for name, data in files.items():
        if name == path:
            data = edits if isinstance(edits, bytes) else apply(data, edits)
        (made.folder / name).write_bytes(data)
    try:
        found, _ = read_labels(made)
    except InputError as error:
        check_text(str(error), made)
        return
    plain = {name: {(a, c) for a, classes in own.items() for c in classes} for name, own in found.items()}
    assert plain == naive_labels(made)


@settings(max_examples=200, deadline=None)
@given(path=st.sampled_from([PARTITION_FILE, BOX_FILE]), edits=EDITS | st.binary(max_size=60))
def test_any_partition_and_boxes_are_read_rightly_or_refused(small, path, edits):
    made, files = small
    file = made.folder / path
    file.write_bytes(edits if isinstance(edits, bytes) else apply(files[path], edits))
    try:
        found = reader.read_partition(file) if path == PARTITION_FILE else reader.read_boxes(file)
    except InputError as error:
        check_text(str(error), made)
        return
    words = [line.rsplit(None, 1 if path == PARTITION_FILE else 4) for line in naive_rows(file.read_bytes())]
    if path == PARTITION_FILE:
        assert found == {resolve(name): OFFICIAL[part] for name, part in words}
    else:
        assert found == {resolve(name): tuple(map(int, numbers)) for name, *numbers in words}


def check_text(text, made):
    assert str(made.folder) in text
    assert text.isprintable()
