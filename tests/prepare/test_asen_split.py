"""The released split files are read with any line ends, or refused in one sentence; written files are read back."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downloads import BYTES, PIECES, by_name, check_any_bytes, check_refused, naive_lines
from m3lib.prepare import asen_split
from tiny import TAXONOMY, random_labels

FILES = {  # TAXONOMY: colour 3, details 4 (several), sleeve 2
    "filenames_train.txt": ["a/1.jpg", "a/2.jpg", "a/3 4.jpg", "b/4.jpg"],
    "label_train.txt": ["0 0 2 1 0 1 3", "2 2 1", "1 1 2 1 1 0 0"],
    "filenames_valid.txt": ["v/1.jpg", "v/2.jpg"],
    "query_valid.txt": ["0 0 0"],
    "candidate_valid.txt": ["1 0 0"],
    "filenames_test.txt": ["t/1.jpg", "t/2.jpg", "t/3.jpg", "t/4.jpg", "t/5.jpg"],
    "query_test.txt": ["3 1 3", "1 0 2"],
    "candidate_test.txt": ["0 2 1", "2 1 0"],
}
HELD_OUT = asen_split.HELD_OUT_FILES
TRAIN = [
    {"colour": ["blue"], "details": ["pocket", "hood"]},
    {"colour": ["red"], "details": ["collar", "belt"]},
    {"sleeve": ["short"]},
    {},
]
TEST = {  # t/5.jpg has no row
    "t/1.jpg": ("candidate", {"sleeve": ["short"]}),
    "t/2.jpg": ("query", {"colour": ["blue"]}),
    "t/3.jpg": ("candidate", {"details": ["pocket"]}),
    "t/4.jpg": ("query", {"details": ["hood"]}),
}


def put(folder: Path, end: str = "\n", trailing: str = "", last: bool = True, **changes: list[str]) -> None:
    for name, lines in FILES.items():
        lines = changes.get(name.removesuffix(".txt"), lines)
        (folder / name).write_bytes((end.join(line + trailing for line in lines) + (end if last else "")).encode())


def read_train(folder: Path) -> dict[str, list[int]]:
    names = list(asen_split.read_names(folder / "filenames_train.txt"))
    rows = asen_split.read_rows(folder / "label_train.txt", len(names), TAXONOMY)
    return {name: rows[i][1] if i in rows else [] for i, name in enumerate(names)}


def read_test(folder: Path) -> dict[str, tuple[str, int]]:
    frame, _ = asen_split.read_held_out(folder, "test", TAXONOMY)
    return {name: (role, row) for name, role, row in zip(frame["image"], frame["role"], frame["row"], strict=True)}


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("trailing", ["", "\t\t\t", "  "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_and_trailing_blanks_change_nothing(tmp_path, end, trailing, last):
    put(tmp_path, end, trailing, last)
    assert asen_split.all_exist(tmp_path, HELD_OUT)
    train = read_train(tmp_path)
    assert list(train) == FILES["filenames_train.txt"]
    assert [by_name(TAXONOMY, ids) for ids in train.values()] == TRAIN
    frame, notes = asen_split.read_held_out(tmp_path, "test", TAXONOMY)
    assert frame["image"].tolist() == list(TEST)  # in the order of the filenames
    rows = zip(frame["role"], frame["row"], strict=True)
    assert [(role, by_name(TAXONOMY, [m])) for role, m in rows] == list(TEST.values())
    rows = [("candidate", 1), ("query", 2), ("candidate", 2), ("query", 1)]
    assert frame["where"].tolist() == [f"{tmp_path}/{role}_test.txt, line {line}" for role, line in rows]
    assert notes == ("1 of 5 photos of filenames_test.txt have no row and are left out",)
    assert asen_split.read_held_out(tmp_path, "valid", TAXONOMY)[1] == ()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_of_excel_and_blank_last_lines_change_nothing(tmp_path, encoding, end):
    put(tmp_path)
    expected = read_train(tmp_path), read_test(tmp_path)
    for path in tmp_path.iterdir():
        text = path.read_text().rstrip("\n").replace("\n", end)
        path.write_bytes(f"{text}{end}{end} {end}".encode(encoding))
    assert (read_train(tmp_path), read_test(tmp_path)) == expected


def test_a_mark_between_joined_files_is_no_part_of_a_name(tmp_path):
    """As `cat` leaves it when two files with marks are joined."""
    put(tmp_path)
    path = tmp_path / "filenames_train.txt"
    path.write_text("\ufeffa/1.jpg\na/2.jpg\n\ufeffb/3.jpg\n")
    assert list(asen_split.read_names(path)) == ["a/1.jpg", "a/2.jpg", "b/3.jpg"]


def test_a_label_that_is_listed_twice_counts_once(tmp_path):
    put(tmp_path, label_train=["0 1 3 1 0 1 3"])
    assert by_name(TAXONOMY, read_train(tmp_path)["a/1.jpg"]) == {"details": ["pocket", "hood"]}


# bad files: name, its text, words of the sentence beside the file's name

BAD = {
    "empty file": ("query_test.txt", b"", ["empty"]),
    "only line ends": ("query_test.txt", b"\n\n", ["empty"]),
    "empty line": ("query_test.txt", b"3 1 3\r\n\r\n1 0 2\r\n", ["line 2", "empty"]),
    "words": ("query_test.txt", b"3 1 3\n1 red 2\n", ["line 2", "integers", "'1 red 2'"]),
    "other digits": ("query_test.txt", "3 1 ٣\n".encode(), ["line 1", "integers"]),
    "too long": ("query_test.txt", b"3 1 30000000000000000000\n", ["line 1", "integers"]),
    "two integers": ("query_test.txt", b"3 1\n", ["line 1", "`line attribute value [", "got 2"]),
    "two pairs": ("candidate_test.txt", b"0 2 1\n2 1 0 1 1\n", ["line 2", "`line attribute value`", "got 2 pairs"]),
    "half of UTF-16": ("query_test.txt", "3 1 3\n".encode("utf-16")[:-1], ["line ", "UTF-8"]),
    "photo out of range": ("query_test.txt", b"3 1 3\n5 0 2\n", ["line 2", "photo 5", "0 to 4"]),
    "photo below 0": ("query_test.txt", b"-1 1 3\n", ["line 1", "photo -1"]),
    "attribute out of range": ("query_test.txt", b"3 3 0\n", ["line 1", "attribute 3", "0 to 2"]),
    "value out of range": ("query_test.txt", b"3 2 2\n", ["line 1", "value 2", "'sleeve'", "0 to 1"]),
    "value below 0": ("query_test.txt", b"3 1 -1\n", ["line 1", "value -1", "'details'"]),
    "in query twice": ("query_test.txt", b"3 1 3\n3 1 2\n", ["line 2", "photo 3", "query_test.txt, line 1"]),
    "in query and candidate": ("candidate_test.txt", b"0 2 1\n1 1 0\n", ["line 2", "photo 1", "query_test.txt"]),
    "filename twice": ("filenames_test.txt", b"t/1.jpg\nt/2.jpg\nt//1.jpg\nx\n", ["line 3", "'t/1.jpg'", "line 1"]),
    "absolute path": ("filenames_test.txt", b"t/1.jpg\n/etc/passwd\nx\ny\n", ["line 2", "'/etc/passwd'", "inside"]),
    "two slashes": ("filenames_test.txt", b"//etc/passwd\n", ["line 1", "inside"]),
    "path upwards": ("filenames_test.txt", b"a/../../x\n", ["line 1", "'a/../../x'", "inside"]),
    "the folder itself": ("filenames_test.txt", b"a/..\n", ["line 1", "inside"]),
    "backslash": ("filenames_test.txt", b"t\\1.jpg\n", ["line 1", "inside"]),
    "zero byte": ("filenames_test.txt", b"t/1\0.jpg\n", ["line 1", "inside"]),
    "old line ends": ("filenames_test.txt", b"t/1.jpg\rt/2.jpg\r", ["line 1", "inside"]),
    "not UTF-8": ("filenames_test.txt", b"t/1.jpg\r\nt/caf\xe9.jpg\r\n", ["line 2", "UTF-8"]),
    "even number": ("label_train.txt", b"0 0 2\n1 0 2 1\n", ["line 2", "`line attribute value [", "got 4"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_sentence(tmp_path, case):
    name, data, words = BAD[case]
    put(tmp_path)
    (tmp_path / name).write_bytes(data)
    read = read_train if "train" in name else read_test
    check_refused(lambda: read(tmp_path), str(tmp_path / name), *words)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    put(tmp_path)
    (tmp_path / "query_test.txt").unlink()
    (tmp_path / "query_test.txt").mkdir()
    check_refused(lambda: read_test(tmp_path), str(tmp_path / "query_test.txt"), "can't be read")


def test_the_six_files_go_together(tmp_path):
    put(tmp_path)
    for name in HELD_OUT:
        (tmp_path / name).rename(tmp_path / "aside")
        others = [other for other in HELD_OUT if other != name]
        assert not asen_split.all_exist(tmp_path, HELD_OUT)
        assert asen_split.half_there(tmp_path, HELD_OUT).startswith(f"{', '.join(others)} without {name}:")
        (tmp_path / "aside").rename(tmp_path / name)
    for name in HELD_OUT:
        (tmp_path / name).unlink()
    assert not asen_split.all_exist(tmp_path, HELD_OUT)
    assert asen_split.all_exist(tmp_path, asen_split.TRAIN_FILES)


# rows and roles are drawn


def drawn(size: int = 900, seed: int = 0):
    """Return names, labels (none for some), splits and drawn rows."""
    rng = np.random.default_rng(seed)
    names = [f"photo {rng.integers(2**40)}/{i}.jpg" for i in range(size)]
    labels = [np.flatnonzero(row).tolist() for row in random_labels("partial", size, rng)]
    splits = rng.choice(["train", "valid", "test"], size)
    return names, labels, splits, asen_split.draw_rows(names, labels)


def test_a_row_is_one_of_the_labels():
    _, labels, _, rows = drawn(6000)
    assert [] in labels
    assert all(row in ids if ids else row == -1 for row, ids in zip(rows, labels, strict=True))
    pairs = [ids.index(row) for row, ids in zip(rows, labels, strict=True) if len(ids) == 3]
    counts = np.bincount(pairs)
    expected = len(pairs) / 3
    assert len(pairs) > 600
    assert (abs(counts - expected) < 4 * np.sqrt(expected)).all()


@pytest.mark.parametrize("query", [0.2, 0.5, 0.0, 1.0])
def test_roles_are_cut_by_their_share_in_every_attribute(query):
    names, _, splits, rows = drawn()
    roles = asen_split.draw_roles(names, rows, splits, query, TAXONOMY)
    attribute = np.where(rows >= 0, TAXONOMY.attribute_of_class[rows], -1)
    assert (roles[(splits == "train") | (attribute < 0)] == "").all()
    for split in ("valid", "test"):
        for n in range(3):
            counts = Counter(roles[(splits == split) & (attribute == n)])
            queries = min(max(round(query * counts.total()), 1), counts.total() - 1)
            assert counts == {"query": queries, "candidate": counts.total() - queries}


@pytest.mark.parametrize(("size", "expected"), [(1, ["candidate"]), (2, ["candidate", "query"])])
def test_one_row_is_a_candidate_and_two_rows_are_one_of_each(size, expected):
    names = [f"{i}.jpg" for i in range(size)]
    roles = asen_split.draw_roles(names, np.zeros(size, int), np.array(["valid"] * size), 0.2, TAXONOMY)
    assert sorted(roles) == expected


def test_rows_and_roles_do_not_depend_on_the_order():
    names, labels, splits, rows = drawn()
    roles = asen_split.draw_roles(names, rows, splits, 0.2, TAXONOMY)
    order = np.random.default_rng(1).permutation(len(names))
    shuffled = [names[i] for i in order]
    again = asen_split.draw_rows(shuffled, [labels[i] for i in order])
    assert (again == rows[order]).all()
    assert (asen_split.draw_roles(shuffled, again, splits[order], 0.2, TAXONOMY) == roles[order]).all()


# files that are written are read back


@pytest.mark.parametrize("seed", range(2))
def test_written_files_are_read_back(tmp_path, seed):
    names, labels, splits, rows = drawn(300, seed)
    known = np.array([bool(ids) for ids in labels])
    roles = asen_split.draw_roles(names, rows, splits, 0.3, TAXONOMY)
    rows = np.where(splits == "train", -1, rows)
    frame = pd.DataFrame({"image": names, "split": splits, "role": roles, "labels": labels, "row": rows})[known]
    asen_split.write(frame, TAXONOMY, tmp_path / "split")
    assert sorted(path.name for path in (tmp_path / "split").iterdir()) == sorted(FILES)
    train = frame[frame["split"] == "train"]
    assert read_train(tmp_path / "split") == dict(zip(train["image"], train["labels"], strict=True))
    for split in ("valid", "test"):
        part = frame[frame["split"] == split]
        read, notes = asen_split.read_held_out(tmp_path / "split", split, TAXONOMY)
        columns = ["image", "role", "row"]
        assert read[columns].to_dict("list") == part[columns].to_dict("list")
        assert notes == ()


# any bytes


def naive(folder: Path, split: str):
    """Return (photo, {(role, attribute, value)}) of each photo with a row, or of each photo of train."""
    names = naive_lines(folder / f"filenames_{split}.txt")
    rows = {name: set() for name in names} if split == "train" else {}
    for role in ["label"] if split == "train" else asen_split.ROLES:
        for line in naive_lines(folder / f"{role}_{split}.txt"):
            photo, *numbers = map(int, line.split())
            rows[names[photo]] = {(role, *numbers[k : k + 2]) for k in range(0, len(numbers), 2)}
    return rows.items()


def pair_of(m: int) -> tuple[int, int]:
    return next((n, m - start) for n, start in ((2, 7), (1, 3), (0, 0)) if m >= start)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a folder of split files, and their bytes."""
    folder = tmp_path_factory.mktemp("split")
    put(folder)
    return folder, {folder / name: (folder / name).read_bytes() for name in FILES if "valid" not in name}


@settings(max_examples=400, deadline=None)
@given(
    name=st.sampled_from([name for name in FILES if "valid" not in name]),
    edits=BYTES | st.lists(PIECES, max_size=12).map(b"".join),
)
def test_any_bytes_are_read_correctly_or_refused(small, name, edits):
    folder, files = small

    def train():
        return {photo: {("label", *pair_of(m)) for m in ids} for photo, ids in read_train(folder).items()}

    def test():
        return {photo: {(role, *pair_of(m))} for photo, (role, m) in read_test(folder).items()}

    split = "train" if "train" in name else "test"
    read = train if split == "train" else test
    check_any_bytes(files, folder / name, edits, read, lambda: naive(folder, split))
