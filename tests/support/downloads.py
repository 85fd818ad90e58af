"""Small downloads of the public benchmarks, drawn when a test runs, with the labels that a reader must return."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from m3lib import config, prepare
from m3lib.data.manifest import Source
from m3lib.errors import InputError
from m3lib.prepare import darn as darn_reader
from m3lib.prepare import fashionai as fashionai_reader
from m3lib.prepare import splits
from m3lib.taxonomy import Attribute, Taxonomy
from tiny import SETTINGS

SPLIT = config.Split(valid=0.3, test=0.3, query=0.2, group_duplicates=True, seed=0)
SIZE = (24, 18)  # of a photo, height and width
CLOTH = (  # name and type, in the order of the file: the types are mixed
    ("crew neck", 4), ("floral print", 1), ("a-line", 3), ("cotton blend", 2), ("boho chic", 5), ("striped", 1),
    ("v-neck 3/4 sleeve", 4), ("denim", 2), ("red carpet look", 5), ("fit and flare", 3), ("polka dot 1", 1),
    ("lace", 2), ("hood", 4), ("maxi", 3),
)  # fmt: skip
TYPES = ("texture", "fabric", "shape", "part", "style")
DEEPFASHION = Taxonomy(
    tuple(Attribute(name, tuple(c for c, k in CLOTH if k == kind), multi=True) for kind, name in enumerate(TYPES, 1))
)
CLOTH_FILE, LABEL_FILE = "Anno/list_attr_cloth.txt", "Anno/list_attr_img.txt"
PARTITION_FILE = "Eval/list_eval_partition.txt"

Labels = dict[str, list[str]]  # of a photo: attribute -> classes, in the order of the taxonomy


@dataclass
class Download:
    """A folder as downloaded. labels: those of every photo, also of photos without any; splits: the official ones."""

    name: str
    folder: Path
    taxonomy: Taxonomy
    labels: dict[str, Labels]
    splits: dict[str, str] = field(default_factory=dict)

    @property
    def labelled(self) -> dict[str, Labels]:
        return {name: labels for name, labels in self.labels.items() if labels}

    def settings(self, max_unreadable: float = 0.0, split: config.Split = SPLIT, **changes: object) -> config.Settings:
        benchmark = replace(SETTINGS.benchmark, folder=str(self.folder), **changes)
        images = replace(SETTINGS.images, max_unreadable=max_unreadable, height=16, width=16)
        return replace(SETTINGS, source=self.name, benchmark=benchmark, images=images, split=split)

    def read(self, **changes: object) -> Source:
        """Read the download and draw what it does not give, without looking at the photos."""
        settings = self.settings(**changes)
        return splits.draw(prepare.read(settings), settings.split)

    def lines(self, path: str) -> list[str]:
        return (self.folder / path).read_text().splitlines()

    def edit(self, path: str, change: Callable[[list[str]], object]) -> None:
        """Change a file's lines in place; line n of the file is element n - 1."""
        lines = self.lines(path)
        change(lines)
        write(self.folder / path, lines)

    def check_refused(self, *words: str, **changes: object) -> None:
        check_refused(lambda: self.read(**changes), str(self.folder), *words)


def check_refused(read: Callable[[], object], *words: str) -> None:
    """Check that a call raises InputError with one printable line that contains all words."""
    with pytest.raises(InputError) as raised:
        read()
    text = str(raised.value)
    assert text.isprintable(), repr(text)
    assert all(word in text for word in words), text


def set_line(number: int, text: str) -> Callable[[list[str]], object]:
    return lambda lines: lines.__setitem__(number - 1, text)


def write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")  # also text that is not UTF-8


def draw_photos(folder: Path, names: Sequence[str], rng: np.random.Generator) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def deepfashion(folder: Path, count: int = 90, seed: int = 0) -> Download:
    """The last photo has no label; the second's name contains blanks and numbers."""
    rng = np.random.default_rng(seed)
    names = [f"img/Dress_{i // 3}/img_{i % 3 + 1:08}.jpg" for i in range(count)]
    names[1] = "img/A  Dress 1 0/img 1.jpg"
    values = np.where(rng.random((count, len(CLOTH))) < 0.3, 1, rng.choice([-1, -1, 0], (count, len(CLOTH))))
    values[:-1][(values[:-1] < 1).all(axis=1), 0] = 1
    values[-1] = -1
    done = Download("deepfashion", folder, DEEPFASHION, {})
    for i, name in enumerate(names):
        done.labels[name] = defaultdict(list)
        for (class_, kind), value in zip(CLOTH, values[i], strict=True):
            if value == 1:
                done.labels[name][TYPES[kind - 1]].append(class_)
        done.splits[name] = ("train", "valid", "test")[i % 3]
    rows = [f"{name:<40} " + " ".join(f"{v:>2}" for v in row) + " " for name, row in zip(names, values, strict=True)]
    write(folder / CLOTH_FILE, [str(len(CLOTH)), "attribute_name  attribute_type", *(f"{n:<20}{k}" for n, k in CLOTH)])
    write(folder / LABEL_FILE, [str(count), "image_name  attribute_labels", *rows])
    splits = [f"{name:<40} {split.replace('valid', 'val')}" for name, split in done.splits.items()]
    write(folder / PARTITION_FILE, [str(count), "image_name  evaluation_status", *splits])
    draw_photos(folder, names, rng)
    return done


def fashionai(folder: Path, count: int = 160, seed: int = 0) -> Download:
    """Every fifth row has an m."""
    rng = np.random.default_rng(seed)
    done = Download("fashionai", folder, fashionai_reader.TAXONOMY, {})
    rows = defaultdict(list)
    for i in range(count):
        attribute = done.taxonomy.attributes[i % 8]
        column = attribute.name.replace(" ", "_") + "_labels"
        path = f"Images/{column}/{i:03}.jpg"
        top = fashionai_reader.FOLDERS[i // 8 % 2]
        y = int(rng.integers(len(attribute.classes)))
        letters = ["n"] * len(attribute.classes)
        letters[y] = "y"
        if i % 5 == 0:
            letters[y - 1] = "m"
        rows[top].append(f"{path},{column},{''.join(letters)}")
        done.labels[f"{top}/{path}"] = {attribute.name: [attribute.classes[y]]}
    for top, lines in rows.items():
        write(folder / top / "Annotations/label.csv", lines)
    draw_photos(folder, list(done.labels), rng)
    return done


def darn(folder: Path, count: int = 180, seed: int = 0) -> Download:
    """One label in four is missing, in both ways; the last photo has none."""
    rng = np.random.default_rng(seed)
    done = Download("darn", folder, darn_reader.TAXONOMY, {})
    rows = [",".join(["path", *done.taxonomy.names])]
    for i in range(count):
        name = f"pic/{i // 3:05}/{i}_a.jpg"
        values = [int(rng.integers(min(3, len(a.classes)))) for a in done.taxonomy.attributes]
        known = (rng.random(len(values)) < 0.75) & (i < count - 1)
        known[i % 9] = i < count - 1
        rows.append(",".join([name, *(str(v) if k else ("-1", "")[i % 2] for v, k in zip(values, known, strict=True))]))
        labels = zip(done.taxonomy.names, values, known, strict=True)
        done.labels[name] = {attribute: [str(value)] for attribute, value, k in labels if k}
    write(folder / "labels.csv", rows)
    draw_photos(folder, list(done.labels), rng)
    return done


class Row(NamedTuple):
    """The entry of a photo in the released files; attribute and class_ by name, none in train."""

    split: str
    role: str = ""
    attribute: str = ""
    class_: str = ""


def released_split(done: Download, train: bool = True) -> dict[str, Row]:
    """Write the released files of a download; every attribute has queries and candidates in valid and in test.

    train: whether to write the files of train, with all labels of each photo.
    """
    rng = np.random.default_rng(1)
    names = list(done.labelled)
    rows: dict[str, Row] = {}
    used = Counter()
    for i in rng.permutation(len(names)):
        labels = done.labels[names[i]]
        attribute = min(labels, key=lambda a: used[a])
        k, used[attribute] = used[attribute], used[attribute] + 1
        split, role = ("train", "valid", "test")[k % 3], ("query", "candidate", "candidate")[k // 3 % 3]
        class_ = labels[attribute][int(rng.integers(len(labels[attribute])))]
        rows[names[i]] = Row(split, role, attribute, class_) if split != "train" else Row(split)
    for split in ("train", "valid", "test") if train else ("valid", "test"):
        lines, names = defaultdict(list), [name for name, row in rows.items() if row.split == split]
        for i, name in enumerate(names):
            row = rows[name]
            labels = {row.attribute: [row.class_]} if row.role else done.labels[name]
            lines[row.role or "label"].append(f"{i} {pairs(done.taxonomy, labels)}")
        for file, texts in (("filenames", names), *lines.items()):
            write(done.folder / f"{file}_{split}.txt", texts)
    return rows


def pairs(taxonomy: Taxonomy, labels: Labels) -> str:
    """Return `attribute value ...` of labels by name."""
    numbers = [(taxonomy.names.index(attribute), class_) for attribute in labels for class_ in labels[attribute]]
    return " ".join(f"{n} {taxonomy.attributes[n].classes.index(class_)}" for n, class_ in numbers)


# contents of a source


def by_name(taxonomy: Taxonomy, ids: Sequence[int]) -> Labels:
    """Return the class names of each attribute from class ids, which must ascend."""
    assert list(ids) == sorted(set(ids))
    labels = defaultdict(list)
    for m in ids:
        labels[taxonomy.names[taxonomy.attribute_of_class[m]]].append(taxonomy.class_name(m))
    return dict(labels)


def labels_of(source: Source) -> dict[str, Labels]:
    """Return photo -> labels by name."""
    frame = source.manifest
    assert frame["image"].is_unique
    return {name: by_name(source.taxonomy, ids) for name, ids in zip(frame["image"], frame["labels"], strict=True)}


def rows_of(source: Source) -> dict[str, Row]:
    """Return photo -> its split, role and row, in the form of `released_split`."""
    rows = {}
    for name, split, role, row in source.manifest[["image", "split", "role", "row"]].itertuples(index=False):
        labels = by_name(source.taxonomy, [row]) if row >= 0 else {"": [""]}
        ((attribute, (class_,)),) = labels.items()
        rows[name] = Row(split, role, attribute, class_)
    return rows


# any bytes

SINGLE = b'ymna0123 /,"\\\t\r\n\0\x0b\x1f\xff'
LONGER = (b"-1", b"00000000003", b"99999999999", b"\r\n", b"\n\n", b"../", b"/../", "\xa0\u2028\u0663".encode())
PIECES = st.sampled_from([b"", *(bytes([code]) for code in SINGLE), *LONGER])
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), PIECES), min_size=1, max_size=4)
BYTES = EDITS | st.binary(max_size=60)


def apply(data: bytes, edits: Sequence[tuple[float, int, bytes]]) -> bytes:
    """Replace 0 to 3 bytes somewhere by a piece, for each edit."""
    for place, gone, piece in edits:
        start = int(place * len(data))
        data = data[:start] + piece + data[start + gone :]
    return data


def check_any_bytes(files: dict[Path, bytes], path: Path, edits: object, read: Callable, naive: Callable) -> None:
    """Write files and spoil one; `read` must return photo -> value as the rows of `naive`, or raise one sentence."""
    for other, data in files.items():
        other.write_bytes(data)
    path.write_bytes(edits if isinstance(edits, bytes) else apply(files[path], edits))
    try:
        found = read()
    except InputError as error:
        refusal = str(error)
    else:
        expected = defaultdict(list)
        for name, value in naive():
            expected[resolve(name)].append(value)
        assert {name: [value] * len(expected[name]) for name, value in found.items()} == expected
        return
    assert str(path.parent) in refusal
    assert all(line.isprintable() for line in refusal.split("\n"))


def naive_lines(path: Path, start: int = 0) -> list[str]:
    """Return the lines of a file that are not empty, without its first `start` lines."""
    return [text for line in path.read_bytes().split(b"\n")[start:] if (text := line.decode().strip().strip("\ufeff"))]


def resolve(path: str) -> str:
    """Return a path without empty parts, `.` and `..`."""
    parts = []
    for part in path.strip().split("/"):
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)
