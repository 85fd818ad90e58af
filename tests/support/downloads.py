"""Small official downloads of the public benchmarks, drawn on the spot, with the truth that a reader has to find."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from m3lib import config, prepare
from m3lib.data.manifest import Source
from m3lib.prepare import darn
from m3lib.prepare import deepfashion as deepfashion_reader
from m3lib.prepare import fashionai as fashionai_reader
from m3lib.taxonomy import Attribute, Taxonomy
from tiny import SETTINGS

SPLIT = config.Split(valid=0.3, test=0.3, query=0.2)
SIZE = (18, 24)  # of a photo, width and height
PARTS = ("train", "val", "test")
OFFICIAL = {"train": "train", "val": "valid", "test": "test"}
CLOTH = (  # name and type, in the order of the file: the types are mixed
    ("crew neck", 4),
    ("floral print", 1),
    ("a-line", 3),
    ("cotton blend", 2),
    ("boho chic", 5),
    ("striped", 1),
    ("v-neck 3/4 sleeve", 4),
    ("denim", 2),
    ("red carpet look", 5),
    ("fit and flare", 3),
    ("polka dot 1", 1),
    ("lace", 2),
    ("hood", 4),
    ("maxi", 3),
)
TYPES = ("texture", "fabric", "shape", "part", "style")
DEEPFASHION = Taxonomy(
    tuple(
        Attribute(name, tuple(class_ for class_, own in CLOTH if own == kind), multi=True)
        for kind, name in enumerate(TYPES, 1)
    )
)
CLOTH_FILE, LABEL_FILE = "Anno/list_attr_cloth.txt", "Anno/list_attr_img.txt"
BOX_FILE, PARTITION_FILE = "Anno/list_bbox.txt", "Eval/list_eval_partition.txt"

Labels = dict[str, list[str]]  # of a photo, by attribute


@dataclass
class Download:
    """A folder as it was downloaded. labels: photo to its labels, those without any too; the rest as a set has it."""

    name: str
    folder: Path
    taxonomy: Taxonomy
    labels: dict[str, Labels]
    parts: dict[str, str] = field(default_factory=dict)
    boxes: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    maybe: set[str] = field(default_factory=set)

    @property
    def labelled(self) -> dict[str, Labels]:
        return {name: own for name, own in self.labels.items() if own}

    def settings(self, max_bad: float = 0.0, split: config.Split = SPLIT, **changes: object) -> config.Settings:
        benchmark = replace(SETTINGS.benchmark, folder=str(self.folder), **changes)
        images = replace(SETTINGS.images, max_bad=max_bad, height=16, width=16)
        return replace(SETTINGS, source=self.name, benchmark=benchmark, images=images, split=split)

    def read(self, **changes: object) -> Source:
        return prepare.read(self.settings(**changes))

    def lines(self, path: str) -> list[str]:
        return (self.folder / path).read_text().splitlines()

    def edit(self, path: str, change: Callable[[list[str]], object]) -> None:
        """Change a file's lines in place; line n of the file is element n - 1."""
        lines = self.lines(path)
        change(lines)
        (self.folder / path).write_text("".join(f"{line}\n" for line in lines))

    def photo(self, i: int) -> Path:
        """The i-th photo that has a label."""
        return self.folder / list(self.labelled)[i]


def set_line(number: int, text: str) -> Callable[[list[str]], object]:
    return lambda lines: lines.__setitem__(number - 1, text)


def write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def draw_photos(folder: Path, names: Sequence[str], rng: np.random.Generator) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
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
        own = defaultdict(list)
        for (class_, kind), value in zip(CLOTH, values[i], strict=True):
            if value == 1:
                own[TYPES[kind - 1]].append(class_)
        done.labels[name] = dict(own)
        done.parts[name] = PARTS[i % 3]
        left, top = (int(x) for x in rng.integers(0, 8, 2))
        done.boxes[name] = (left, top, left + int(rng.integers(1, 10)), top + int(rng.integers(1, 16)))
    rows = [f"{name:<40} " + " ".join(f"{v:>2}" for v in row) + " " for name, row in zip(names, values, strict=True)]
    write(folder / CLOTH_FILE, [str(len(CLOTH)), "attribute_name  attribute_type", *(f"{n:<20}{k}" for n, k in CLOTH)])
    write(folder / LABEL_FILE, [str(count), "image_name  attribute_labels", *rows])
    boxes = [f"{name:<40} {' '.join(f'{x:03}' for x in done.boxes[name])}" for name in names]
    write(folder / BOX_FILE, [str(count), "image_name  x_1  y_1  x_2  y_2", *boxes])
    parts = [f"{name:<40} {part}" for name, part in done.parts.items()]
    write(folder / PARTITION_FILE, [str(count), "image_name  evaluation_status", *parts])
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
        own = int(rng.integers(len(attribute.classes)))
        letters = ["n"] * len(attribute.classes)
        letters[own] = "y"
        if i % 5 == 0:
            letters[own - 1] = "m"
            done.maybe.add(f"{top}/{path}")
        rows[top].append(f"{path},{column},{''.join(letters)}")
        done.labels[f"{top}/{path}"] = {attribute.name: [attribute.classes[own]]}
    for top, lines in rows.items():
        write(folder / top / "Annotations/label.csv", lines)
    draw_photos(folder, list(done.labels), rng)
    return done


def darn_set(folder: Path, count: int = 180, seed: int = 0) -> Download:
    """One label in four is missing, in both ways; the last photo has none."""
    rng = np.random.default_rng(seed)
    done = Download("darn", folder, darn.TAXONOMY, {})
    rows = [",".join(["path", *done.taxonomy.names])]
    for i in range(count):
        name = f"pic/{i // 3:05}/{i}_a.jpg"
        values = [int(rng.integers(min(3, len(a.classes)))) for a in done.taxonomy.attributes]
        there = (rng.random(len(values)) < 0.75) & (i < count - 1)
        there[i % 9] = i < count - 1
        cells = [str(v) if here else ("-1", "")[i % 2] for v, here in zip(values, there, strict=True)]
        rows.append(",".join([name, *cells]))
        done.labels[name] = {
            a.name: [str(v)] for a, v, here in zip(done.taxonomy.attributes, values, there, strict=True) if here
        }
    write(folder / "labels.csv", rows)
    draw_photos(folder, list(done.labels), rng)
    return done


MAKERS = {"deepfashion": deepfashion, "fashionai": fashionai, "darn": darn_set}


@dataclass(frozen=True)
class Row:
    """What the released files say of a photo; attribute and class_ by name, none in train."""

    split: str
    role: str = ""
    attribute: str = ""
    class_: str = ""


def released_split(
    done: Download, end: str = "\n", trailing: str = "", last: bool = True, train: bool = True, seed: int = 1
) -> dict[str, Row]:
    """Write the released files of a download; every attribute has queries and candidates in valid and in test.

    end: of a line. trailing: what stands before it. last: whether the last line ends too. train: whether the files of
    train are there. Train's labels are all of a photo's.
    """
    rng = np.random.default_rng(seed)
    names = list(done.labelled)
    rows: dict[str, Row] = {}
    used = Counter()
    for i in rng.permutation(len(names)):
        own = done.labels[names[i]]
        attribute = min(own, key=lambda a: used[a])
        k, used[attribute] = used[attribute], used[attribute] + 1
        split, role = ("train", "valid", "test")[k % 3], ("query", "candidate", "candidate")[k // 3 % 3]
        class_ = own[attribute][int(rng.integers(len(own[attribute])))]
        rows[names[i]] = Row(split, role, attribute, class_) if split != "train" else Row(split)

    def put(name: str, lines: list[str]) -> None:
        text = end.join(line + trailing for line in lines) + (end if last else "")
        (done.folder / name).write_bytes(text.encode())

    for split in ("train", "valid", "test"):
        own = [name for name, row in rows.items() if row.split == split]
        if split == "train":
            if train:
                put("filenames_train.txt", own)
                put("label_train.txt", [f"{i} {pairs(done, done.labels[name])}" for i, name in enumerate(own)])
            continue
        put(f"filenames_{split}.txt", own)
        for role in ("query", "candidate"):
            chosen = [(i, rows[name]) for i, name in enumerate(own) if rows[name].role == role]
            put(f"{role}_{split}.txt", [f"{i} {pairs(done, {row.attribute: [row.class_]})}" for i, row in chosen])
    return rows


def pairs(done: Download, labels: Labels) -> str:
    """`attribute value ...` of labels by name."""
    return " ".join(
        f"{done.taxonomy.names.index(a)} {done.taxonomy.attributes[done.taxonomy.names.index(a)].classes.index(c)}"
        for a, own in labels.items()
        for c in own
    )


# what a source says


def by_name(taxonomy: Taxonomy, ids: Sequence[int]) -> Labels:
    assert list(ids) == sorted(set(ids))
    own = defaultdict(list)
    for m in ids:
        own[taxonomy.names[taxonomy.attribute_of_class[m]]].append(taxonomy.class_name(m))
    return dict(own)


def read_classes(done: Download) -> tuple[Taxonomy, list[int]]:
    return deepfashion_reader.read_classes(done.folder / CLOTH_FILE)


def read_labels(done: Download) -> tuple[dict[str, Labels], int]:
    """What the reader finds in a DeepFashion download, by name, and how many rows repeat another."""
    taxonomy, class_ids = read_classes(done)
    labels, repeated = deepfashion_reader.read_labels(done.folder / LABEL_FILE, class_ids)
    return {name: by_name(taxonomy, ids) for name, ids in labels.items()}, repeated


def labels_of(source: Source, *splits: str) -> dict[str, Labels]:
    """Photo to labels by name, of some splits or of all."""
    frame = source.manifest
    frame = frame[frame["split"].isin(splits)] if splits else frame
    assert frame["image"].is_unique
    return {name: by_name(source.taxonomy, ids) for name, ids in zip(frame["image"], frame["labels"], strict=True)}


def rows_of(source: Source) -> dict[str, Row]:
    """Photo to its split, role and row, as `released_split` has it."""
    found = {}
    columns = ("image", "split", "role", "row")
    for name, split, role, row in zip(*(source.manifest[column] for column in columns), strict=True):
        own = by_name(source.taxonomy, [row]) if row >= 0 else {"": [""]}
        ((attribute, (class_,)),) = own.items()
        found[name] = Row(split, role, attribute, class_)
    return found


def check_drawn_roles(source: Source, query: float) -> None:
    """The rows of each attribute in valid and in test are cut by the share `query`, at least one of each."""
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for row in rows_of(source).values():
        counts[row.split, row.attribute][row.role] += 1
    for split in ("valid", "test"):
        for attribute in source.taxonomy.names:
            found = counts[split, attribute]
            total = found.total()
            assert total >= 2, "the download is too small for the test"
            assert found == {"query": max(1, round(query * total)), "candidate": total - max(1, round(query * total))}


def sentence(raised: pytest.ExceptionInfo) -> str:
    text = str(raised.value)
    assert len(text.splitlines()) == 1, text
    assert text.isprintable(), repr(text)
    return text


def check_words(raised: pytest.ExceptionInfo, words: Sequence[str]) -> None:
    assert all(word in sentence(raised) for word in words), sentence(raised)


# awkward photos and bytes


def save_odd_photos(paths: Sequence[Path]) -> None:
    """Grey, CMYK, and one that its EXIF block turns by a quarter, each 18 x 24, the last 24 x 18 as it is stored."""
    grey, cmyk, turned = paths
    Image.new("L", SIZE, 100).save(grey)
    Image.new("CMYK", SIZE, (0, 255, 255, 0)).save(cmyk)
    stored = Image.new("RGB", SIZE[::-1], "blue")
    stored.paste("red", (0, 0, 12, 18))
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored picture is to be turned clockwise: its left is the top
    stored.save(turned, exif=exif, quality=95)


def check_odd_photos(pictures: Sequence[np.ndarray]) -> None:
    grey, cmyk, turned = (picture.astype(int) for picture in pictures)
    assert [picture.shape for picture in (grey, cmyk, turned)] == [(24, 18, 3)] * 3
    assert abs(grey - 100).max() < 4
    assert abs(cmyk - (255, 0, 0)).max() < 12
    assert abs(turned[:8] - (255, 0, 0)).max() < 40
    assert abs(turned[-8:] - (0, 0, 255)).max() < 40


def cut_off(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


SINGLE = b'ymna0123 /,"\\\t\r\n\0\x0b\x1f\xff'
LONGER = (b"-1", b"00000000003", b"99999999999", b"\r\n", b"\n\n", b"../", b"/../", "\xa0\u2028\u0663".encode())
PIECES = st.sampled_from([b"", *(bytes([code]) for code in SINGLE), *LONGER])
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), PIECES), min_size=1, max_size=4)


def apply(data: bytes, edits: Sequence[tuple[float, int, bytes]]) -> bytes:
    """Each edit puts a piece in place of 0 to 3 bytes somewhere."""
    for place, gone, piece in edits:
        start = int(place * len(data))
        data = data[:start] + piece + data[start + gone :]
    return data


def resolve(path: str) -> str:
    """A path without empty parts, `.` and `..`, by hand."""
    kept = []
    for part in path.strip().split("/"):
        if part == "..":
            kept.pop()
        elif part not in ("", "."):
            kept.append(part)
    return "/".join(kept)
