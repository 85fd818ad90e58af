"""A DeepFashion download is read with exactly its labels, splits and boxes, or refused in one sentence."""

import shutil

import numpy as np
import pytest
from PIL import Image

from downloads import (
    BOX_FILE,
    CLOTH,
    CLOTH_FILE,
    DEEPFASHION,
    LABEL_FILE,
    PARTITION_FILE,
    TYPES,
    check_words,
    deepfashion,
    read_classes,
    read_labels,
    set_line,
)
from m3lib.errors import InputError


@pytest.fixture
def download(tmp_path):
    return deepfashion(tmp_path / "set")


def rises(labels):
    """Class names as a reader gives them: in the order of the taxonomy."""
    order = {attribute.name: attribute.classes for attribute in DEEPFASHION.attributes}
    return {
        name: {a: sorted(own[a], key=order[a].index) for a in TYPES if a in own} for name, own in labels.items() if own
    }


# what is read


def test_the_classes_of_a_type_keep_their_order(download):
    taxonomy, class_ids = read_classes(download)
    assert taxonomy == DEEPFASHION
    assert [(taxonomy.class_name(m), taxonomy.attribute_of_class[m]) for m in class_ids] == [
        (name, kind - 1) for name, kind in CLOTH
    ]


def test_a_type_without_attributes_is_left_out(download):
    download.edit(CLOTH_FILE, lambda lines: lines.__setitem__(slice(None), [x for x in lines if not x.endswith("2")]))
    download.edit(CLOTH_FILE, set_line(1, "11"))
    taxonomy, class_ids = read_classes(download)
    assert taxonomy.names == ["texture", "shape", "part", "style"]
    assert [taxonomy.class_name(m) for m in class_ids] == [name for name, kind in CLOTH if kind != 2]


def test_a_name_that_stands_twice_in_a_type_gets_its_number(download):
    download.edit(CLOTH_FILE, set_line(8, "floral  print       1"))  # the name with other blanks
    taxonomy, class_ids = read_classes(download)
    assert taxonomy.attributes[0].classes == ("floral print", "floral print (1)", "polka dot 1")
    assert taxonomy.class_name(class_ids[5]) == "floral print (1)"


@pytest.mark.parametrize("box", [True, False])
def test_boxes_cut_the_photo(download, box):
    source = download.read(box=box)
    for i, name in enumerate(source.manifest["image"]):
        photo = np.asarray(Image.open(download.folder / name))
        left, top, right, bottom = download.boxes[name]
        assert np.array_equal(source.load(i), photo[top:bottom, left:right] if box else photo)


def test_a_box_is_cut_to_the_photo_and_one_beside_it_is_a_bad_photo(download):
    names = list(download.labels)
    download.edit(BOX_FILE, set_line(3, f"{names[0]}  5 6 500 600"))
    download.edit(BOX_FILE, set_line(6, f"{names[3]}  18 0 25 9"))
    source = download.read(box=True)
    rows = {name: i for i, name in enumerate(source.manifest["image"])}
    assert source.load(rows[names[0]]).shape == (18, 13, 3)
    with pytest.raises(InputError) as raised:
        source.load(rows[names[3]])
    check_words(raised, [repr(names[3]), "(18, 0, 25, 9)", "outside"])


def test_the_later_layout_of_the_download_reads_the_same(download):
    before = download.read(box=True)
    picture = before.load(7)
    (download.folder / "Anno").rename(download.folder / "Anno_coarse")
    (download.folder / "Img").mkdir()
    shutil.move(download.folder / "img", download.folder / "Img/img")
    after = download.read(box=True)
    assert after.manifest.equals(before.manifest)
    assert np.array_equal(after.load(7), picture)


def test_equal_rows_are_noted(download):
    lines = download.lines(LABEL_FILE)
    download.edit(LABEL_FILE, lambda rows: rows.extend([lines[4], "./" + lines[5]]))
    download.edit(LABEL_FILE, set_line(1, "92"))
    assert read_labels(download) == (rises(download.labels) | {list(download.labels)[-1]: {}}, 2)
    assert download.read().notes[0] == "2 rows of list_attr_img.txt repeat another"


def test_windows_line_ends_and_a_missing_last_one_change_nothing(download):
    before = download.read(box=True)
    for path in (CLOTH_FILE, LABEL_FILE, BOX_FILE, PARTITION_FILE):
        file = download.folder / path
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    after = download.read(box=True)
    assert after.taxonomy == before.taxonomy
    assert after.manifest.equals(before.manifest)
    assert after.load.boxes == before.load.boxes


# bad files: the file, its change, words of the sentence beside the file's name

N = len(CLOTH)
GOOD = " ".join((["1", "-1", "0"] * N)[:N])
OTHER = " ".join((["-1", "1", "0"] * N)[:N])


def append(text: str, count: int | None = None):
    def change(lines):
        lines.append(text)
        lines[0] = str(int(lines[0]) + 1)

    return change


BAD = {
    "no count": (
        CLOTH_FILE,
        set_line(1, "attribute_name  type"),
        ["line 1", "number of rows", "'attribute_n"],
    ),
    "negative count": (CLOTH_FILE, set_line(1, "-14"), ["line 1", "number of rows", "'-14'"]),
    "endless count": (CLOTH_FILE, set_line(1, "1" * 5000), ["line 1", "number of rows", "'111"]),
    "other count": (CLOTH_FILE, set_line(1, "15"), ["line 1", "announces 15 rows, and 14 follow"]),
    "no rows": (CLOTH_FILE, lambda lines: lines.__setitem__(slice(None), ["0", "x"]), ["attribute"]),
    "empty": (CLOTH_FILE, lambda lines: lines.clear(), ["line 1", "number of rows"]),
    "type 6": (CLOTH_FILE, set_line(5, "a-line     6"), ["line 5", "`name type`", "1 to 5", "a-line"]),
    "no type": (CLOTH_FILE, set_line(5, "a-line"), ["line 5", "`name type`"]),
    "no name": (CLOTH_FILE, set_line(5, "   3"), ["line 5", "`name type`"]),
    "empty line": (CLOTH_FILE, set_line(7, "  "), ["line 7", "empty"]),
    "one class": (
        CLOTH_FILE,
        lambda lines: lines.__setitem__(slice(None), ["3", "h", "a 1", "b 2", "c 2"]),
        ["'texture'", "two"],
    ),
    "labels: other count": (LABEL_FILE, set_line(1, "89"), ["announces 89 rows, and 90 follow"]),
    "labels: cut": (LABEL_FILE, lambda lines: lines.pop(), ["announces 90 rows, and 89 follow", "complete"]),
    "labels: no header": (LABEL_FILE, lambda lines: lines.pop(1), ["announces 90 rows, and 89 follow"]),
    "value 2": (LABEL_FILE, set_line(6, f"img/x.jpg {GOOD[:-2]}2"), ["line 6", "'2'", "1, -1 or 0"]),
    "value --1": (LABEL_FILE, set_line(6, f"img/x.jpg -{OTHER}"), ["line 6", "'--1'", "1, -1 or 0"]),
    "value 1-1": (LABEL_FILE, set_line(6, f"img/x.jpg 1{OTHER}"), ["line 6", "'1-1'", "1, -1 or 0"]),
    "value -10": (LABEL_FILE, set_line(6, f"img/x.jpg {GOOD}0"), ["line 6", "1, -1 or 0"]),
    "value too few": (LABEL_FILE, set_line(6, f"img/x.jpg {GOOD[:-2]}"), ["line 6", "13 values", "expected 14"]),
    "no values": (LABEL_FILE, set_line(6, "img/x.jpg"), ["line 6", "0 values", "expected 14"]),
    "value in the middle": (LABEL_FILE, set_line(6, f"img/x.jpg {GOOD[:8]} x {GOOD[10:]}"), ["line 6", "'x'"]),
    "labels: empty line": (LABEL_FILE, set_line(9, ""), ["line 9", "empty"]),
    "labels: path upwards": (LABEL_FILE, set_line(6, f"img/../../x.jpg {GOOD}"), ["line 6", "'img/../../x.jpg'"]),
    "labels: absolute": (LABEL_FILE, set_line(6, f"/img/x.jpg {GOOD}"), ["line 6", "'/img/x.jpg'", "inside"]),
    "photo twice, otherwise": (
        LABEL_FILE,
        append(f"img/Dress_0/img_00000001.jpg {'0 ' * N}"),
        ["line 93", "'img/Dress_0/img_00000001.jpg'", "line above"],
    ),
    "box: a word": (BOX_FILE, set_line(4, "img/x.jpg 1 2 x 4"), ["line 4", "`path x1 y1 x2 y2`"]),
    "box: negative": (BOX_FILE, set_line(4, "img/x.jpg -1 2 3 4"), ["line 4", "`path x1 y1 x2 y2`"]),
    "box: too long": (BOX_FILE, set_line(4, "img/x.jpg 1 2 3 40000000000"), ["line 4", "`path x1 y1 x2 y2`"]),
    "box: three numbers": (BOX_FILE, set_line(4, "img/x.jpg 1 2 3"), ["line 4", "`path x1 y1 x2 y2`"]),
    "box: no area": (BOX_FILE, set_line(4, "img/x.jpg 5 2 5 4"), ["line 4", "5 2 5 4", "no area"]),
    "box: upside down": (BOX_FILE, set_line(4, "img/x.jpg 1 4 5 2"), ["line 4", "no area"]),
    "box: twice": (
        BOX_FILE,
        append("img/Dress_0/img_00000001.jpg 0 0 1 1"),
        ["line 93", "'img/Dress", "line above"],
    ),
    "box: count": (BOX_FILE, lambda lines: lines.pop(), ["announces 90 rows, and 89 follow"]),
    "part: a word": (PARTITION_FILE, set_line(4, "img/x.jpg valid"), ["line 4", "`path part`", "train, val or test"]),
    "part: none": (PARTITION_FILE, set_line(4, "img/x.jpg"), ["line 4", "`path part`"]),
    "part: upwards": (PARTITION_FILE, set_line(4, "../img/x.jpg test"), ["line 4", "'../img/x.jpg'", "inside"]),
    "train and test": (
        PARTITION_FILE,
        append("img/Dress_0/img_00000001.jpg test"),
        ["line 93", "'img/Dress_0/img_00000001.jpg'", "line above"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_sentence(download, case):
    path, change, words = BAD[case]
    download.edit(path, change)
    with pytest.raises(InputError) as raised:
        download.read(box=True)
    check_words(raised, [str(download.folder / path), *words])


@pytest.mark.parametrize("path", [CLOTH_FILE, LABEL_FILE, BOX_FILE, PARTITION_FILE])
def test_a_file_that_is_not_utf8_is_one_sentence(download, path):
    lines = (download.folder / path).read_bytes().split(b"\n")
    lines[4] = b"caf\xe9" + lines[4]
    (download.folder / path).write_bytes(b"\n".join(lines))
    with pytest.raises(InputError) as raised:
        download.read(box=True)
    check_words(raised, [str(download.folder / path), "line 5", "UTF-8"])


def test_a_photo_outside_the_partition_is_refused(download):
    download.edit(PARTITION_FILE, lambda lines: lines.pop(5))
    download.edit(PARTITION_FILE, set_line(1, "89"))
    with pytest.raises(InputError) as raised:
        download.read()
    check_words(raised, [str(download.folder), "partition", repr(list(download.labels)[3])])


def test_the_first_fault_is_told(download):
    download.edit(LABEL_FILE, set_line(20, "img/x.jpg 1"))
    download.edit(LABEL_FILE, set_line(6, "img/x.jpg 1"))
    with pytest.raises(InputError, match="line 6: "):
        download.read()


def test_a_box_is_asked_for_only_where_there_are_boxes(download):
    (download.folder / BOX_FILE).unlink()
    assert len(download.read().manifest) == 89
    with pytest.raises(InputError) as raised:
        download.read(box=True)
    check_words(raised, ["benchmark.box", "Anno/list_bbox.txt"])


def test_no_split_at_all_is_one_sentence(download):
    (download.folder / PARTITION_FILE).unlink()
    with pytest.raises(InputError) as raised:
        download.read()
    check_words(raised, [str(download.folder), "Eval/list_eval_partition.txt", "released split"])


def test_a_name_too_long_for_a_file_counts_as_missing(download):
    name = "img/" + 300 * "x" + ".jpg"
    download.edit(LABEL_FILE, append(f"{name} {GOOD}"))
    download.edit(PARTITION_FILE, append(f"{name} train"))
    assert "1 of 90 photos are missing and left out" in download.read(max_bad=0.02).notes[2]
